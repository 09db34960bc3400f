"""Fit the last computed features in Chebyshev polynomials by ridge regression (Spectrum, arXiv 2603.01623; formula re-derived)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ...later import np
from .predictor import WindowPredictor

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ChebyshevConfig:
    """degree: of the fit, lower while there are too few features. window: features fitted. ridge: penalty of all but the constant."""

    degree: int = 2
    window: int = 5
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.degree < 0 or self.window <= self.degree:
            raise ValueError(f"degree is {self.degree} and window {self.window}; the window must be larger than the degree, and that at least 0.")
        if self.ridge < 0:
            raise ValueError(f"ridge is {self.ridge:g}; it must not be negative.")


class Chebyshev(WindowPredictor):
    def __init__(self, config: ChebyshevConfig) -> None:
        super().__init__(config.window)
        self.config = config

    def weights(self, at: float) -> tuple[float, ...]:
        return chebyshev_weights(tuple(self.places), at, self.config)


@lru_cache(maxsize=16)
def chebyshev_weights(places: tuple[float, ...], at: float, config: ChebyshevConfig) -> tuple[float, ...]:
    """Row of the basis at `at` times the ridge solution; places are scaled so that window and `at` span -1 to 1.

    Remembered, as all units and both branches ask for the same ones.
    """
    low, high = min(places[0], at), max(places[-1], at)
    degree = min(config.degree, len(places) - 1)

    def basis(where: Sequence[float]) -> NDArray[np.floating]:
        return np.polynomial.chebyshev.chebvander((2 * np.array(where) - low - high) / max(high - low, 1e-12), degree)

    design, row = basis(places), basis([at])[0]
    penalty = config.ridge * np.diag([0.0] + [1.0] * degree)
    return tuple((row @ np.linalg.solve(design.T @ design + penalty, design.T)).tolist())
