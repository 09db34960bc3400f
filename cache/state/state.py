"""What a cache keeps from step to step: a slot for each part of the recipe, segment and branch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..decision import Verdict
from ..predictors import Predictor
from ..recipe.recipe import Recipe
from ..triggers import Trigger
from ..triggers.foremost import Foremost
from .frames import Frame, Frames
from .holds import declared
from .segments import Segments
from .storage import Kept, Storage
from .values import leaves, restore

Key = tuple[int, int, str]


@dataclass
class Slot:
    """What is kept for one part of the recipe, segment and branch. frames: the latent frames of the take that its features are of; None where
    the caller did not say. predictors: by unit and name of the feature.
    reused_run: steps reused in a row so far. owed: how many steps were computed out of turn because their forecasts were in doubt; as many
    that the trigger wants computed are reused for them.
    """

    trigger: Trigger
    frames: range | None = None
    predictors: dict[str, Predictor] = field(default_factory=dict)
    reused_run: int = 0
    owed: int = 0

    @property
    def ready(self) -> bool:
        return bool(self.predictors) and all(predictor.ready for predictor in self.predictors.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors. One that several of its owners hold (a probe, as a rule) counts once."""
        return _num_bytes([*self.trigger.parts, *self.predictors.values()])


class CacheState:
    """Slots are made on first use and dropped by `reset`; a take starts with none. verdicts: the last one of each part and segment, for the
    unconditional branch where the conditional one decides for both. frames: by part and branch, what is kept of latent frames where windows
    shift; the slots then hold what is a window's own. carried: by part and branch, what triggers of the round before hand on to those of this one.
    span: how long the recipe's abscissa is, from noise to film. segments: those of a take whose latents shards hold apart.
    """

    def __init__(self, recipe: Recipe, storage: Storage, span: float, segments: Segments | None = None) -> None:
        self.recipe, self.storage, self._span, self._segments = recipe, storage, span, segments
        self.slots: dict[Key, Slot] = {}
        self.verdicts: dict[tuple[int, int], Verdict] = {}
        self.frames: dict[tuple[int, str], Frames] = {}
        self.carried: dict[tuple[int, str], dict[str, Any]] = {}

    def slot(self, part: int, segment: int, branch: str, num_units: int, frames: range | None) -> Slot:
        """num_units, frames: of a new one. What is there must be of the same frames (`check_frames`)."""
        key = (part, segment, branch)
        if key not in self.slots:
            self.slots[key] = Slot(self._deciding(part, num_units), frames)
            restore(self.slots[key].trigger, deepcopy(self.carried.get((part, branch), {})))
        return self.slots[key]

    def frames_of(self, part: int, branch: str) -> Frames:
        """What is kept of latent frames for a part of the recipe and a branch."""
        return self.frames.setdefault((part, branch), Frames())

    def trigger(self, part: int, num_units: int) -> Trigger:
        """A fresh one, of the recipe's part of that number."""
        trigger = self.recipe.parts[part].trigger.build()
        trigger.num_units = num_units
        return trigger

    def _deciding(self, part: int, num_units: int) -> Trigger:
        """A fresh trigger, or one a segment where the one that asks for most decides."""
        segments, trigger = self._segments, self.trigger(part, num_units)
        if segments is None or segments.num_segments == 1 or self.recipe.aggregate != "max" or not trigger.measures:
            return trigger
        return Foremost([trigger, *(self.trigger(part, num_units) for _ in range(segments.num_segments - 1))], segments)

    def check_frames(self, segment: int, frames: range | None) -> None:
        """Raise ValueError, with the mend, if what is kept of a segment is of other latent frames: a feature stands in for its own alone."""
        if frames is not None and (frames.step != 1 or not frames):
            raise ValueError(f"frames is {frames}; give the latent frames of segment {segment} in a row, as range(first, last + 1).")
        for (_, of, _), slot in self.slots.items():
            if of == segment and slot.frames != frames:
                raise ValueError(
                    f"Segment {segment} is of {_described(frames)} here, and what the cache keeps of it is of {_described(slot.frames)}: they "
                    f"cannot stand in for each other. Give each span of frames a segment of its own, or call cached.reset() if this is a new take."
                )

    def predictor(self, part: int) -> Predictor:
        """A fresh one, of the recipe's part of that number."""
        predictor = self.recipe.parts[part].predictor.build()
        predictor.storage, predictor.span, predictor.segments = self.storage, self._span, self._segments
        return predictor

    def next_round(self) -> None:
        """Drop all that is kept, but for what the recipe keeps at a border: numbers that triggers carry. Features, forecasts and probes go in any
        case: they are of other latents than those that come, and of the end of a way that begins anew.
        """
        keeps, slots = self.recipe.border == "keep", self.slots.items()
        carried = {(part, branch): {name: getattr(slot.trigger, name) for name in slot.trigger.carries} for (part, _, branch), slot in slots if keeps}
        self.reset()
        self.carried = carried

    def reset(self) -> None:
        """Drop all that is kept."""
        self.slots.clear()
        self.verdicts.clear()
        self.frames.clear()
        self.carried.clear()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors held; what slots share (latents) counts in each."""
        of_frames = (_num_bytes(_owners_of(frames)) for frames in self.frames.values())
        return sum(slot.num_bytes for slot in self.slots.values()) + sum(of_frames)


def _described(frames: range | None) -> str:
    return "frames that were not named" if frames is None else f"the latent frames {frames.start} to {frames[-1]}"


def _owners_of(frames: Frames) -> Iterator[Trigger | Predictor]:
    kept: Iterable[Frame] = (frame for windows in (frames.now, frames.before) for window in windows.values() for frame in window.values())
    for frame in kept:
        yield from frame.predictors.values()
        if frame.trigger is not None:
            yield frame.trigger


def _num_bytes(owners: Iterable[Trigger | Predictor]) -> int:
    """Of their tensors, each counted once."""
    tensors = (tensor for owner in owners for tensor in _tensors_of(owner))
    return sum({(tensor.data_ptr(), tensor.shape): tensor.nbytes for tensor in tensors}.values())


def _tensors_of(owner: Trigger | Predictor) -> Iterator[Tensor]:
    """All tensors in what an owner declares to hold, each as often as it is there."""
    for name in declared(type(owner)).state:
        for leaf in leaves(getattr(owner, name)):
            if isinstance(leaf, (Tensor, Kept)):
                yield from leaf.tensors if isinstance(leaf, Kept) else (leaf,)
