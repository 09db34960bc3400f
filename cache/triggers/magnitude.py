"""Recompute when calibrated ratios of residual norms have drifted too far (MagCache, arXiv 2506.09045): a schedule, no collective.

With gamma_s = mean over tokens of |r_s| / |r_(s-1)|, measured once for a model: at each step ratio *= gamma_s, error += |1 - ratio|; reuse
while the error stays below the threshold and no more than `max_reused_steps` were reused in a row. A computed step resets all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from ..decision import Decision
from ..state.holds import Holds
from .trigger import Moment, Trigger


@dataclass(frozen=True)
class MagnitudeConfig:
    """ratios: gamma of each step of the calibration, first to last; read at the nearest step for takes of another number of steps.

    threshold: error from which a step is computed. max_reused_steps: the most in a row. retention: share of first steps that are computed.
    """

    ratios: list[float] = MISSING
    threshold: float = 0.12
    max_reused_steps: int = 4
    retention: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.ratios, list) and not self.ratios:
            raise ValueError("ratios is empty; calibrate the model first, or give one ratio a step.")
        if self.threshold < 0 or self.max_reused_steps < 0 or not 0 <= self.retention <= 1:
            raise ValueError(
                f"threshold={self.threshold:g} and max_reused_steps={self.max_reused_steps} must not be negative, "
                f"and retention={self.retention:g} must lie between 0 and 1."
            )


class Magnitude(Trigger):
    holds = Holds(numbers=("_ratio", "_error", "_run"))

    def __init__(self, config: MagnitudeConfig) -> None:
        super().__init__()
        self.config = config
        self._ratio, self._error, self._run = 1.0, 0.0, 0

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        config = self.config
        if moment.step < int(moment.num_inference_steps * config.retention):
            return Decision.COMPUTE
        last, steps = len(config.ratios) - 1, max(1, moment.num_inference_steps - 1)
        self._ratio *= config.ratios[round(moment.step * last / steps)]
        self._error += abs(1 - self._ratio)
        self._run += 1
        within = self._error < config.threshold and self._run <= config.max_reused_steps
        return Decision.REUSE if within else Decision.COMPUTE

    def settle(self, decision: Decision) -> None:
        if decision is Decision.COMPUTE:
            self._ratio, self._error, self._run = 1.0, 0.0, 0
