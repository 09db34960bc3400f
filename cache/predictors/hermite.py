"""Forecast in scaled Hermite polynomials (HiCache, arXiv 2508.16984): F + sum_i D_i / i! sigma^i H_i(sigma k), k steps ahead.

Evaluated at +k, with differences in the direction of the steps. D_i is i! times the divided difference on the real abscissae, which at
equal gaps is the published recursion. Order 1 is Taylor's with the slope times 2 sigma^2.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..state.holds import Holds
from .predictor import WindowPredictor, difference_weights


@dataclass(frozen=True)
class HermiteConfig:
    """order: highest difference. sigma: contraction; 0.7071 gives Taylor's slope."""

    order: int = 2
    sigma: float = 0.5

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ValueError(f"order is {self.order}; it must be at least 1.")
        if self.sigma <= 0:
            raise ValueError(f"sigma is {self.sigma:g}; it must be above 0.")


class Hermite(WindowPredictor):
    holds = Holds(settings=("_sigma",))

    def __init__(self, config: HermiteConfig) -> None:
        super().__init__(config.order + 1)
        self._sigma = config.sigma

    def weights(self, at: float) -> list[float]:
        places = self.places
        ahead = self._sigma * (at - places[-1])
        weights = [0.0] * (len(places) - 1) + [1.0]
        before, value = 1.0, 2.0 * ahead  # H_0, H_1
        for order in range(1, len(places)):
            scale = self._sigma**order * value
            weights = [w + scale * d for w, d in zip(weights, difference_weights(places, order), strict=True)]
            before, value = value, 2.0 * ahead * value - 2.0 * order * before
        return weights
