"""Loops: the take repeats what it showed some time before."""

from __future__ import annotations

import numpy as np

from .check import Check, Found, Part
from .pictures import Picture

# Over the distance of neighbouring frames. Motion that comes back to where it was is never quite where it was: films of the demo model in which
# things bounce, circle or cross the picture again and again have 1.0 and more, 0.7 where all stands still.
_NEAREST = 0.5
_LONGEST = 20  # seconds of a period


class Loops(Check):
    """A loop is that for one period, and a second at least, each frame is nearer to the one a period before it than half of the way from frame to
    frame. Distances are root mean squares over the small pictures. What repeats itself twice in the frames that are learnt, and on, is the motion
    that was asked for.

    Holds small pictures of the last _LONGEST seconds.
    """

    kind = "loop"

    def __init__(self, part: Part, num_frames: int) -> None:
        """num_frames: of the part."""
        super().__init__(part)
        longest = max(1, min(_LONGEST * part.second, num_frames // 2))
        self._periods = np.arange(max(3, part.second // 4), longest + 1)
        self._past: np.ndarray | None = None
        self._squares = np.zeros(longest, np.float32)
        self._steps = np.zeros(part.second, np.float32)  # distances of the last neighbouring frames
        self._needed = np.maximum(self._periods, part.second)  # frames that a loop of each lasts, at least
        self._runs = np.zeros(len(self._periods), np.int64)
        self._distances = np.zeros(len(self._periods))  # summed over frames: a period apart ...
        self._beside = np.zeros(len(self._periods))  # ... and of neighbouring frames at the same time

    def see(self, frame: int, picture: Picture) -> Found | None:
        seen, longest = frame - self.part.start, len(self._squares)
        if self._past is None:
            self._past, self._first = np.zeros((longest, len(picture.small)), np.float32), picture.small
        small = picture.small - self._first  # small numbers, for the precision of differences of squares
        square = small @ small
        found = None
        if seen:
            squared = np.maximum(0, self._squares + square - 2 * (self._past @ small)) / len(small)
            self._steps[seen % len(self._steps)] = np.sqrt(squared[(seen - 1) % longest])
            there = self._periods[: max(0, seen - self._periods[0] + 1)] if len(self._periods) else self._periods
            if len(there):
                found = self._judge(frame, np.sqrt(squared[(seen - there) % longest]))
        self._past[seen % longest], self._squares[seen % longest] = small, square
        return found

    def _judge(self, frame: int, distances: np.ndarray) -> Found | None:
        """distances: to the frame each period before, for the periods that go back no farther than the part."""
        seen, there = frame - self.part.start, slice(len(distances))
        step = float(self._steps.sum()) / min(seen, len(self._steps))
        runs = self._runs[there]
        runs += 1
        runs[distances >= _NEAREST * step] = 0
        self._distances[there] += distances
        self._beside[there] += step
        if seen < self.part.learnt or runs.max() < self.part.second:
            return None
        is_usual = (self._periods[there] <= self.part.learnt // 2) & (runs == seen - self._periods[there] + 1)
        is_loop = runs >= self._needed[there]
        if is_usual.any() or not is_loop.any():
            return None
        which = int(np.argmax(is_loop))
        return Found(frame - int(runs[which]) + 1, f"the same every {self._periods[which]} frames")

    def nearest(self, num_seen: int) -> tuple[int, float] | None:
        """The period after which the part is most like what it was, and the mean distance from it over that of neighbouring frames; None where
        there is none that was seen as long as a loop lasts, or where nothing changes. num_seen: frames of the part so far.
        """
        is_seen = (num_seen - self._periods >= self._needed) & (self._beside > 0)
        if not is_seen.any():
            return None
        ratios = np.divide(self._distances, self._beside, out=np.full(len(self._periods), np.inf), where=is_seen)
        which = int(ratios.argmin())
        return int(self._periods[which]), float(ratios[which])
