"""Extrapolate along the polynomial through the last computed features (TaylorSeer, arXiv 2503.06923, eq. 4).

The published recursion estimates derivatives by differences that are true only at equal gaps and, from order 2 on, not even then. The
expansion is taken here of the polynomial itself, in Lagrange's form on the real abscissae: exact for polynomials at any gaps, and equal
to the published one at order 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from .predictor import WindowPredictor, damped_weights


@dataclass(frozen=True)
class TaylorConfig:
    """order: of the polynomial; 0 is plain reuse. damping: share of the change that is believed, 1 for all of it."""

    order: int = 1
    damping: float = 1.0

    def __post_init__(self) -> None:
        if self.order < 0:
            raise ValueError(f"order is {self.order}; it must be at least 0.")
        if not 0 <= self.damping <= 1:
            raise ValueError(f"damping is {self.damping:g}; it must lie between 0 (plain reuse) and 1.")


class Taylor(WindowPredictor):
    def __init__(self, config: TaylorConfig) -> None:
        super().__init__(config.order + 1)
        self.config = config

    def weights(self, at: float) -> list[float]:
        """Of a lower order while there are too few features."""
        return damped_weights(self.places, at, self.config.damping)
