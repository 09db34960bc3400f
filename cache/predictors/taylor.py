"""Extrapolate along the polynomial through the last computed features (TaylorSeer, arXiv 2503.06923, eq. 4).

The published recursion estimates derivatives by differences that are true only at equal gaps and, from order 2 on, not even then. The
expansion is taken here of the polynomial itself, in Lagrange's form on the real abscissae: exact for polynomials at any gaps, and equal
to the published one at order 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .predictor import WindowPredictor, lagrange_weights


@dataclass(frozen=True)
class TaylorConfig:
    """order: of the polynomial; 0 is plain reuse. damping: share of the change that is believed, 1 for all of it.

    damping_by_step: another share for the gap that starts at each step; needs the abscissa `step`. Empty: `damping` for all.
    """

    order: int = 1
    damping: float = 1.0
    damping_by_step: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.order < 0:
            raise ValueError(f"order is {self.order}; it must be at least 0.")
        for damping in (self.damping, *self.damping_by_step):
            if not 0 <= damping <= 1:
                raise ValueError(f"damping is {damping:g}; it must lie between 0 (plain reuse) and 1.")


class Taylor(WindowPredictor):
    def __init__(self, config: TaylorConfig) -> None:
        super().__init__(config.order + 1)
        self.config = config

    def weights(self, at: float) -> list[float]:
        """Of as high an order as there are features yet."""
        places, by_step = self.places, self.config.damping_by_step
        damping = by_step[int(places[-1])] if by_step else self.config.damping
        weights = [damping * weight for weight in lagrange_weights(places, at)]
        weights[-1] += 1.0 - damping
        return weights
