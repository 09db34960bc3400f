"""What a cache carries from step to step, in one place: a slot for each segment and branch."""

from __future__ import annotations

from dataclasses import dataclass

from .predictors import Predictor
from .recipe import Recipe
from .triggers import Trigger


@dataclass
class Slot:
    """reused_run: steps reused in a row so far."""

    trigger: Trigger
    predictor: Predictor
    reused_run: int = 0


class CacheState:
    """Slots made on first use and dropped by `reset`; a take starts with none."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._slots: dict[tuple[int, str], Slot] = {}

    def slot(self, segment: int, branch: str) -> Slot:
        key = (segment, branch)
        if key not in self._slots:
            self._slots[key] = Slot(self.recipe.trigger.build(), self.recipe.predictor.build())
        return self._slots[key]

    def reset(self) -> None:
        self._slots.clear()

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors held; storage shared by two holders counts once."""
        tensors = [t for slot in self._slots.values() for t in (*slot.trigger.tensors(), *slot.predictor.tensors())]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
