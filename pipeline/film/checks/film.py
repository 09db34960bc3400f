"""All checks of one take, as its frames stream by. Knows frames; knows nothing of models, jobs or files.

What is held does not grow with the film but for 200 bytes a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .check import Check, Found, Part
from .drift import Colours, Drift
from .figures import Checks, Curves, Mark, second_of
from .freeze import Freeze
from .loops import Loops
from .pictures import Floats, Picture, pictures, sampled
from .seams import Seams

_FEWEST = 8  # frames that a part is judged by; a second has half of them at least
_POINTS = 60  # of a curve
_AT_ONCE = 16  # frames that are looked at together


@dataclass(frozen=True)
class Plan:
    """What is known of a film before its first frame.

    num_frames: of the whole film. first: of its first chunk, window or clip. stride: frames of a latent frame. joins: the frames that begin a chunk,
    or a window's own part. prompts: the frames from which on a prompt is rendered, 0 among them. border: the frame that begins the second latent
    frame: the first one is a single frame, but after an earlier film.
    """

    num_frames: int
    fps: Fraction
    first: int
    stride: int
    joins: tuple[int, ...] = ()
    prompts: tuple[int, ...] = (0,)
    border: int = 1


class FilmChecks:
    """Add the film's frames in order, in any portions; `marks` tells at any time which limits were passed, `result` all figures.

    checks = FilmChecks(Plan(num_frames=129, fps=Fraction(16), first=33, stride=4, joins=(33, 57, 81, 105)))
    for frames in decoded:
        checks.add(frames)
    checks.result().seam_ratio
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._first = max(1, min(plan.first, plan.num_frames // 2))
        self._seams = Seams(plan.joins, plan.prompts, plan.stride, plan.border)
        self._stops = dict(pairwise((*plan.prompts, plan.num_frames)))
        self._freeze: Freeze | None = None
        self._loops: Loops | None = None
        self._drift: Drift | None = None
        self._drifted: NDArray[np.float64] | None = None  # until the running part began
        self._marks: dict[str, Mark] = {}
        self._stillest: list[float] = []  # of parts that are over; so is the next
        self._nearest: list[tuple[int, float]] = []
        self._begun = 0  # where the running part began
        self._colours: list[NDArray[np.float16]] = []  # of each frame
        self._before: Tensor | None = None
        self.num_frames = 0  # seen so far

    def add(self, frames: Tensor) -> None:
        """frames: the film's next ones, uint8 RGB [frames, height, width, 3], on any device. Raises ValueError for others, and for too many."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}; give uint8 [frames, height, width, 3]")
        if self.num_frames + len(frames) > self._plan.num_frames:
            raise ValueError(f"{self.num_frames + len(frames)} frames came for a film of num_frames={self._plan.num_frames}; plan its true length")
        for planes in map(sampled, frames.split(_AT_ONCE)):
            for picture in pictures(planes, self._before):
                self._see(picture)
            self._before = planes[-1].clone()

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The first passing of each limit so far, in the order of frames."""
        return tuple(sorted(self._marks.values(), key=lambda mark: mark.frame))

    def _see(self, picture: Picture) -> None:
        frame = self.num_frames
        if frame in self._stops:
            self._begin(frame)
        self._colours.append(picture.colours.astype(np.float16))
        running: tuple[Check | Seams | None, ...] = (self._freeze, self._loops, self._drift, self._seams)
        for check in running:
            if check is not None and (found := check.see(frame, picture)):
                self._mark(check.kind, found)
        self.num_frames += 1

    def _mark(self, kind: str, found: Found) -> None:
        self._marks.setdefault(kind, Mark(kind, found.frame, second_of(found.frame, self._plan.fps), found.text))

    def _begin(self, start: int) -> None:
        """Another prompt is rendered from here on."""
        self._end()
        length = self._stops[start] - start
        learnt = min(self._plan.first, length // 2)
        if learnt < _FEWEST:  # too short to tell
            return
        part = Part(start, learnt, min(learnt // 2, max(_FEWEST // 2, round(self._plan.fps))))
        self._freeze, self._loops, self._drift, self._begun = Freeze(part), Loops(part, length), Drift(part, self._drifted), start

    def _end(self) -> None:
        self._stillest, self._nearest = self._of_movement()
        self._drifted = self._drift.total if self._drift else self._drifted
        self._freeze = self._loops = self._drift = None

    def _of_movement(self) -> tuple[list[float], list[tuple[int, float]]]:
        """What the parts tell, the running one among them."""
        stillest = self._freeze.stillest if self._freeze else None
        nearest = self._loops.nearest(self.num_frames - self._begun) if self._loops else None
        return [*self._stillest, *([] if stillest is None else [stillest])], [*self._nearest, *([] if nearest is None else [nearest])]

    def result(self) -> Checks:
        """All figures of the frames so far. Raises ValueError before the first."""
        if not self.num_frames:
            raise ValueError("no frame has come yet; add frames before asking for the result")
        colours = np.stack(self._colours).astype(np.float32)
        usual = Colours(colours[: self._first])
        shifts, similarities = usual.shift(colours), usual.similarity(colours)
        stillest, nearest = self._of_movement()
        period, distance = min(nearest, key=lambda one: one[1], default=(None, None))
        return Checks(
            num_frames=self.num_frames,
            joins=tuple(self._seams.joins),
            join_changes=tuple(round(change, 2) for change in self._seams.changes),
            border_change=_rounded(self._seams.border_change),
            seam_ratio=_rounded(self._seams.ratio, 3),
            background_shift=round(float(np.abs(shifts[-self._first :].mean(axis=0)).max()), 2),
            similarity=round(float(similarities[-self._first :].mean()), 3),
            stillest=_rounded(min(stillest, default=None), 3),
            loop_period=period,
            loop_distance=_rounded(distance, 3),
            marks=self.marks,
            curves=self._curves(usual, shifts, similarities),
        )

    def _curves(self, usual: Colours, shifts: Floats, similarities: Floats) -> Curves:
        half = max(1, round(self._plan.fps)) // 2
        frames = [round(frame) for frame in np.linspace(0, self.num_frames - 1, min(_POINTS, self.num_frames))]
        around = [slice(max(0, frame - half), frame + half + 1) for frame in frames]
        means = np.array([shifts[one].mean(axis=0) for one in around])
        colours = (usual.background + means).round().clip(0, 255).astype(int)
        return Curves(
            frame=tuple(frames),
            background=tuple(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours),
            background_shift=tuple(round(float(shift), 1) for shift in np.abs(means).max(axis=1)),
            similarity=tuple(round(float(similarities[one].mean()), 3) for one in around),
        )


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)
