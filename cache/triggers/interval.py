"""Recompute every so many steps (FORA, arXiv 2407.01425): a schedule, the same on every rank without a collective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from ..decision import Decision
from .trigger import Moment, Trigger


@dataclass(frozen=True)
class IntervalConfig:
    """interval: steps from one computed step to the next."""

    interval: int = MISSING

    def __post_init__(self) -> None:
        if isinstance(self.interval, int) and self.interval < 1:
            raise ValueError(f"interval is {self.interval}; it must be at least 1.")


class Interval(Trigger):
    def __init__(self, config: IntervalConfig) -> None:
        super().__init__()
        self.config = config

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        return Decision.COMPUTE if moment.step % self.config.interval == 0 else Decision.REUSE
