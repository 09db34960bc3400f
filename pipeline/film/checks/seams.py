"""Seams: how much changes where chunks or windows are joined, beside how much changes at the other borders of latent frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from .check import Found
from .pictures import Picture

_LARGEST, _NOTICED = 3.0, 1.0  # times the other borders, and grey levels above that; joins of the demo model's films reach 1.3 times
_NEIGHBOURS = 8  # other borders that a join is compared with, those right before it


class Seams:
    """joins: frames that begin a chunk or a window's part. asked: those of them at which a new prompt begins, where a jump may be wanted. stride:
    frames of a latent frame; border: the first frame that begins one, but for the film's own.
    """

    kind = "seam"

    def __init__(self, joins: Collection[int], asked: Collection[int], stride: int, border: int = 1) -> None:
        self._joins, self._asked, self._stride, self._border = frozenset(joins), frozenset(asked), stride, border
        self.joins: list[int] = []
        self.changes: list[float] = []  # at these
        self._last: deque[float] = deque(maxlen=_NEIGHBOURS)
        self._sum, self._count = 0.0, 0

    def see(self, frame: int, picture: Picture) -> Found | None:
        if picture.change is None or (frame - self._border) % self._stride:
            return None
        if frame not in self._joins:
            self._last.append(picture.change)
            self._sum, self._count = self._sum + picture.change, self._count + 1
            return None
        self.joins.append(frame)
        self.changes.append(picture.change)
        if frame in self._asked or not self._last:
            return None
        usual = sum(self._last) / len(self._last)
        if picture.change <= _LARGEST * usual + _NOTICED:
            return None
        limit = f"limit {_LARGEST:g} times and {_NOTICED:g} more"
        return Found(frame, f"a join changes by {picture.change:.1f} grey levels, borders before it by {usual:.1f} ({limit})")

    @property
    def border_change(self) -> float | None:
        """The mean change at borders that are no joins."""
        return self._sum / self._count if self._count else None

    @property
    def ratio(self) -> float | None:
        """The mean change at joins over that at the other borders."""
        if not self.changes or not self.border_change:
            return None
        return sum(self.changes) / len(self.changes) / self.border_change
