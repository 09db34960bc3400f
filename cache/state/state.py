"""What a cache carries from step to step, in one place: a slot for each part of the recipe, segment and branch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ..decision import Verdict
from ..predictors import Predictor
from ..recipe.recipe import Recipe
from ..triggers import Trigger
from .holds import declared
from .storage import Kept, Storage
from .values import leaves

Key = tuple[int, int, str]


@dataclass
class Slot:
    """predictors: by unit and name of the feature. reused_run: steps reused in a row so far. owed: computed steps that doubt has brought
    forward.
    """

    trigger: Trigger
    predictors: dict[str, Predictor] = field(default_factory=dict)
    reused_run: int = 0
    owed: int = 0

    @property
    def ready(self) -> bool:
        return bool(self.predictors) and all(predictor.ready for predictor in self.predictors.values())

    @property
    def num_bytes(self) -> int:
        """What several of its owners hold (a probe, as a rule) counts once."""
        owners: list[Trigger | Predictor] = [self.trigger, *self.predictors.values()]
        tensors = (tensor for owner in owners for tensor in _tensors_of(owner))
        return sum({(tensor.data_ptr(), tensor.shape): tensor.nbytes for tensor in tensors}.values())


class CacheState:
    """Slots made on first use and dropped by `reset`; a take starts with none. verdicts: the last one a part and segment, for branches
    that follow.
    """

    def __init__(self, recipe: Recipe, storage: Storage, span: float) -> None:
        self.recipe, self.storage, self._span = recipe, storage, span
        self.slots: dict[Key, Slot] = {}
        self.verdicts: dict[tuple[int, int], Verdict] = {}

    def slot(self, part: int, segment: int, branch: str, num_units: int) -> Slot:
        key = (part, segment, branch)
        if key not in self.slots:
            trigger = self.recipe.parts[part].trigger.build()
            trigger.num_units = num_units
            self.slots[key] = Slot(trigger)
        return self.slots[key]

    def predictor(self, part: int) -> Predictor:
        """A fresh one, of the recipe's part of that number."""
        predictor = self.recipe.parts[part].predictor.build()
        predictor.storage, predictor.span = self.storage, self._span
        return predictor

    def reset(self) -> None:
        """Drop all that is kept."""
        self.slots.clear()
        self.verdicts.clear()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors held; what slots share (latents) counts in each."""
        return sum(slot.num_bytes for slot in self.slots.values())


def _tensors_of(owner: Trigger | Predictor) -> Iterator[Tensor]:
    """All tensors in what an owner declares to hold, each as often as it is there."""
    for name in declared(type(owner)).state:
        for leaf in leaves(getattr(owner, name)):
            if isinstance(leaf, (Tensor, Kept)):
                yield from leaf.tensors if isinstance(leaf, Kept) else (leaf,)
