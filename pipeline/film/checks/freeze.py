"""Freezes: nothing moves any more where something moved before."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

import numpy as np
from numpy.typing import NDArray

from .check import Check, Found, Part
from .pictures import Picture

Doubles = NDArray[np.float64]

# Films of the demo model: 0.3 and more of the movement in their first chunk, also where all stands still from the beginning; the flicker
# of its VAE over a thing that stands still is 0.05 of the movement of a thing that moves.
_LEAST = 0.1


class Freeze(Check):
    """Movement is the root mean square of a second's small pictures about their mean: things that go on moving add up, flicker does not. A part in
    which nothing moves from its beginning on cannot freeze.

    stillest: the least movement of a second since `learnt`, over the median of it in `learnt`, as a film's first frame may be off; None while
    there is none.
    """

    kind = "freeze"

    def __init__(self, part: Part) -> None:
        super().__init__(part)
        self.stillest: float | None = None
        self._last: deque[Doubles] = deque()
        self._sum, self._squares = np.zeros(1), np.zeros(1)  # over these
        self._learnt: list[float] = []

    def _movement(self) -> float:
        """Of the last second."""
        mean = self._sum / self.part.second
        square = float(self._squares.sum()) / self.part.second
        return math.sqrt(max(0.0, square - float(mean @ mean)) / len(mean))

    def see(self, frame: int, picture: Picture) -> Found | None:
        small = picture.small.astype(np.float64)
        self._last.append(small)
        self._sum, self._squares = self._sum + small, self._squares + small * small
        if len(self._last) < self.part.second:
            return None
        movement = self._movement()
        first = self._last.popleft()
        self._sum, self._squares = self._sum - first, self._squares - first * first
        if frame < self.part.start + self.part.learnt:
            self._learnt.append(movement)
            return None
        if not (usual := median(self._learnt)):
            return None
        share = movement / usual
        self.stillest = share if self.stillest is None else min(self.stillest, share)
        if share >= _LEAST:
            return None
        return Found(frame - self.part.second + 1, f"a second has {share:.1%} of the movement before (limit {_LEAST:.0%})")
