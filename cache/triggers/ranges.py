"""Reuse inside a range of timesteps, all but every so many calls (PAB, arXiv 2408.12588): a schedule, no collective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from ..decision import Decision
from ..state.holds import Holds
from .trigger import Moment, Trigger


@dataclass(frozen=True)
class RangesConfig:
    """interval: calls from one computed step to the next inside the range; 0: none is computed there (T-GATE, arXiv 2404.02747).

    low, high: timesteps, 0 to 1000, both excluded. turn: timestep from which on down only the first half of the site's units is reused,
    above it only the second (Delta-DiT, arXiv 2406.01125: outlines come from the first blocks, details from the last); 0: all, always.
    """

    interval: int = MISSING
    low: float = 100.0
    high: float = 850.0
    turn: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.interval, int) and self.interval < 0:
            raise ValueError(f"interval is {self.interval}; it must be at least 1, or 0 for no computing inside the range.")
        if not 0 <= self.low < self.high <= 1000:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; they must be timesteps, 0 <= low < high <= 1000.")


class Ranges(Trigger):
    """Counts calls from the take's first one on, inside the range or not, as the paper's code does."""

    holds = Holds(settings=("needs_units",), numbers=("_above_turn",))

    def __init__(self, config: RangesConfig) -> None:
        super().__init__()
        self.config = config
        self.needs_units = config.turn > 0
        self._above_turn = True

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        config = self.config
        self._above_turn = moment.timestep > config.turn
        if not config.low < moment.timestep < config.high or (config.interval and moment.step % config.interval == 0):
            return Decision.COMPUTE
        return Decision.PARTIAL if config.turn else Decision.REUSE

    def reused_units(self) -> frozenset[int]:
        half = self.num_units // 2
        return frozenset(range(half, self.num_units) if self._above_turn else range(half))
