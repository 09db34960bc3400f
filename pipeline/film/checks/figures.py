"""What the checks of a take tell, as plain data. Light to import: manifests and pages are read without numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

# Of the mean of a second. Films of the demo model that hold stay within 3 grey levels, and keep 0.94.
FARTHEST = 8.0  # grey levels that a background may drift
LEAST_SIMILAR = 0.85  # that colours must stay to those that they began with


@dataclass(frozen=True)
class Mark:
    """A limit that the take passed. kind: `freeze`, `loop`, `drift` or `seam`. frame: from where on; second: when that is shown. text: the figure
    and its limit.
    """

    kind: str
    frame: int
    second: float
    text: str

    def __str__(self) -> str:
        return f"{self.kind} at {self.second:.1f} s: {self.text}"


@dataclass(frozen=True)
class Curves:
    """At frames that are evenly spaced over the film, the first and the last among them; each the mean of the second around it.

    background: the colour of the background, #rrggbb. background_shift: how far it is from that of the first chunk, in grey levels of the
    channel that changed most. similarity: to the first chunk.
    """

    frame: tuple[int, ...] = ()
    background: tuple[str, ...] = ()
    background_shift: tuple[float, ...] = ()
    similarity: tuple[float, ...] = ()


@dataclass(frozen=True)
class Checks:
    """num_frames: that were looked at: all of the film.

    joins: the frames that begin a chunk, or a window's own part. join_changes: how far each is from the frame before, the mean absolute difference
    over pixels and channels in grey levels, 0 to 255; border_change: the mean of that at the other borders of latent frames; seam_ratio: the mean
    at joins over that at the other borders, None where there are no joins, or nothing changes.

    background_shift: of the last chunk's background to the first's, in grey levels of the channel that changed most. similarity: of the last
    chunk's colours to the first's, 1 where they are the same, 0 where they are 64 grey levels apart.

    stillest: the least movement within a second, over that in the first chunk under the same prompt. loop_period: the frames after which the take
    is most like what it was; loop_distance: how far it is from it, over how far neighbouring frames are apart, 0 where it repeats itself exactly.
    The three are None in takes that are too short, or in which nothing moves.

    marks: where each limit was first passed, in the order of frames.
    """

    num_frames: int
    joins: tuple[int, ...]
    join_changes: tuple[float, ...]
    border_change: float | None
    seam_ratio: float | None
    background_shift: float
    similarity: float
    stillest: float | None
    loop_period: int | None
    loop_distance: float | None
    marks: tuple[Mark, ...]
    curves: Curves

    def at(self, fps: Fraction) -> Checks:
        """Of the same frames, shown at another rate."""
        return replace(self, marks=tuple(replace(mark, second=second_of(mark.frame, fps)) for mark in self.marks))

    @property
    def summary(self) -> str:
        """The marks in a few words, `loop at 3.1 s, drift at 8.0 s`; empty without any."""
        return ", ".join(f"{mark.kind} at {mark.second:.1f} s" for mark in self.marks)


def second_of(frame: int, fps: Fraction) -> float:
    """Where players show a frame, to a hundredth."""
    return round(float(frame / fps), 2)
