"""Two forecasts from the same features; the farther they are apart, the less is believed of them (RACER, arXiv 2608.01740; re-derived).

Chebyshev's forecast h and Taylor's g disagree by r = ||h - g||_1 / ||h||_1. What is used is a + kappa (h - a), a the last computed feature,
with kappa = 1 / (1 + caution r k), k steps ahead: the farther ahead and the larger r, the closer to plain reuse. r is what guards call the
forecast's risk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...later import torch
from ..state.holds import Holds
from ..sums import l1_sums, ratio
from .chebyshev import ChebyshevConfig, chebyshev_weights
from .predictor import WindowPredictor, lagrange_weights, sampled_channels, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RacerConfig:
    """degree, window, ridge: Chebyshev's. order: Taylor's. caution: how much the forecasts' disagreement counts; 0: not at all."""

    degree: int = 2
    window: int = 5
    ridge: float = 1e-3
    order: int = 1
    caution: float = 1.0

    def __post_init__(self) -> None:
        ChebyshevConfig(self.degree, self.window, self.ridge)
        if not 0 <= self.order < self.window or self.caution < 0:
            raise ValueError(f"order is {self.order} and caution {self.caution:g}; they must be 0 <= order < window, and caution not negative.")


class Racer(WindowPredictor):
    measures = True
    knows_risk = True
    measures_features = True
    holds = Holds(settings=("_chebyshev",))

    def __init__(self, config: RacerConfig) -> None:
        super().__init__(config.window)
        self.config = config
        self._chebyshev = ChebyshevConfig(config.degree, config.window, config.ridge)

    def measure(self, at: float, probe: Tensor) -> Tensor:
        """How far the two forecasts are apart, on a sample of their channels; nothing while there is one feature alone."""
        if len(self._window) < 2:
            return torch.zeros(2, dtype=torch.float64, device=probe.device)
        features = [kept for _, kept in self._window]
        channels = sampled_channels(features[-1].stored)
        forecasts = (weighted_sum(features, weights, channels)[:, self.measured] for weights in (self._taylor(at), self._chebyshev_at(at)))
        return l1_sums(*forecasts)

    def receive(self, sums: Sequence[float]) -> None:
        self.risk = ratio(sums) if sums[1] > 0 else 0.0

    def _chebyshev_at(self, at: float) -> tuple[float, ...]:
        return chebyshev_weights(tuple(self.places), at, self._chebyshev)

    def _taylor(self, at: float) -> list[float]:
        last = self.places[-self.config.order - 1 :]
        return [0.0] * (len(self._window) - len(last)) + lagrange_weights(last, at)

    def weights(self, at: float) -> list[float]:
        kappa = 1 / (1 + self.config.caution * (self.risk or 0.0) * (at - self.places[-1]))
        weights = [kappa * weight for weight in self._chebyshev_at(at)]
        weights[-1] += 1 - kappa
        return weights
