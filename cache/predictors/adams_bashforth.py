"""Extrapolate from the last features, predicted ones among them (AB-Cache, arXiv 2504.10540; formula re-derived).

At equal gaps sum_j (-1)^(j+1) C(k, j) F_(t-j): order 2 is 2 F_1 - F_2. Here in Lagrange's form on the real abscissae.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .predictor import WindowPredictor, lagrange_weights

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AdamsBashforthConfig:
    """order: features looked at, computed or predicted; a polynomial of degree order - 1 is followed exactly."""

    order: int = 2

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ValueError(f"order is {self.order}; it must be at least 1.")


class AdamsBashforth(WindowPredictor):
    def __init__(self, config: AdamsBashforthConfig) -> None:
        super().__init__(config.order)

    def weights(self, at: float) -> list[float]:
        return lagrange_weights(self.places, at)

    def settle(self, at: float, feature: Tensor) -> None:
        self.push(at, feature)
