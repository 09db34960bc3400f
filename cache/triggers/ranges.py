"""Reuse inside a range of timesteps, all but every so many calls (PAB, arXiv 2408.12588): a schedule, no collective."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from ..decision import Decision
from .trigger import Moment, Trigger


@dataclass(frozen=True)
class RangesConfig:
    """interval: calls from one computed step to the next inside the range. low, high: timesteps, 0 to 1000, both excluded."""

    interval: int = MISSING
    low: float = 100.0
    high: float = 850.0

    def __post_init__(self) -> None:
        if isinstance(self.interval, int) and self.interval < 1:
            raise ValueError(f"interval is {self.interval}; it must be at least 1.")
        if not 0 <= self.low < self.high <= 1000:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; they must be timesteps, 0 <= low < high <= 1000.")


class Ranges(Trigger):
    """Counts calls from the take's first one on, inside the range or not, as the paper's code does."""

    def __init__(self, config: RangesConfig) -> None:
        self.config = config

    def decide(self, moment: Moment, change: float | None) -> Decision:
        inside = self.config.low < moment.timestep < self.config.high
        return Decision.REUSE if inside and moment.step % self.config.interval else Decision.COMPUTE
