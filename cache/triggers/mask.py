"""Recompute at chosen steps (LeMiCa, arXiv 2511.00090; cache-dit's computation masks): a schedule, no collective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from ..decision import Decision
from ..recipe.config import ascends
from .trigger import Moment, Trigger


@dataclass(frozen=True)
class MaskConfig:
    """computed: the steps to compute, counted from 0, for a take of the number of steps that the mask was made for."""

    computed: list[int] = MISSING

    def __post_init__(self) -> None:
        if isinstance(self.computed, list) and (not self.computed or self.computed[0] < 0 or not ascends(self.computed)):
            raise ValueError(f"computed is {self.computed}; list at least one step, counted from 0, in ascending order.")

    def check_steps(self, num_inference_steps: int) -> None:
        """Raise ValueError if the take has not all of the steps."""
        if self.computed[-1] >= num_inference_steps:
            raise ValueError(f"it computes step {self.computed[-1]}, counted from 0, and the take has {num_inference_steps} steps.")


class Mask(Trigger):
    def __init__(self, config: MaskConfig) -> None:
        super().__init__()
        self.config = config

    def check_steps(self, num_inference_steps: int) -> None:
        self.config.check_steps(num_inference_steps)

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        return Decision.COMPUTE if moment.step in self.config.computed else Decision.REUSE
