"""What is kept of each latent frame where windows begin elsewhere at each step: a window takes over what others kept of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TypeVar

from ..predictors import Predictor
from ..triggers import Trigger
from .holds import declared

Owner = TypeVar("Owner", bound=Trigger | Predictor)


@dataclass
class Frame:
    """What a window keeps of one of its latent frames. trigger: holds the frame's probe and no more, None where probes are not of frames.
    predictors: by unit and name of the feature; places: for each of them, where in its window the frame was when the feature was computed.
    """

    trigger: Trigger | None = None
    predictors: dict[str, Predictor] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return bool(self.predictors) and all(predictor.ready for predictor in self.predictors.values())

    def away(self, place: int) -> float:
        """How far from a place its features were computed, at most; infinite where there are none."""
        return max((abs(place - there) for there in self.places.values()), default=float("inf"))

    def copied(self) -> Frame:
        """A copy that may go its own way; features and probes, which never change, are the same ones."""
        predictors = {name: _copied(predictor) for name, predictor in self.predictors.items()}
        return Frame(self.trigger and _copied(self.trigger), predictors, dict(self.places))


def _copied(owner: Owner) -> Owner:
    other, kind = copy(owner), owner.__class__
    for name in declared(kind).state:
        setattr(other, name, copy(getattr(owner, name)))
    return other


@dataclass
class Frames:
    """Of one part of the recipe and one branch. now: what each segment keeps of its frames at `step`, by segment and latent frame; before: the
    same as the step before it left them, whatever the windows of this step do.
    """

    step: int = -1
    now: dict[int, dict[int, Frame]] = field(default_factory=dict)
    before: dict[int, dict[int, Frame]] = field(default_factory=dict)

    def taken(self, step: int, frames: Sequence[int], overlap: int) -> list[Frame]:
        """For each latent frame of a window, in order, a copy of what the step before kept of it nearest to its place there; an empty one where all
        of that is farther away than `overlap`.
        """
        if step != self.step:
            self.step, self.before, self.now = step, self.now, {}
        return [self._nearest(frame, place, overlap) for place, frame in enumerate(frames)]

    def _nearest(self, frame: int, place: int, overlap: int) -> Frame:
        kept = [self.before[segment][frame] for segment in sorted(self.before) if frame in self.before[segment]]
        nearest = min(kept, key=lambda one: one.away(place), default=Frame())
        return nearest.copied() if nearest.away(place) <= overlap else Frame()
