"""A feature ODE with a BDF2 predictor and a Heun corrector (FoCa, arXiv 2508.16211; formulas re-derived, with the real gaps).

F_a, F_a' are the last computed features, F_k, F_(k-1) the last of all, predicted ones among them:
predictor F_p = F_k + (s - s_k) (F_k - F_(k-1)) / (s_k - s_(k-1)), corrector F = F_a + (s - s_a) / 2 (g_a + g_p) with the slopes
g_a = (F_a - F_a') / (s_a - s_a') and g_p = (F_p - F_k) / (s - s_k).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..state.holds import Holds
from ..state.storage import Kept
from .predictor import Predictor, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BdfHeunConfig:
    """Nothing to set."""


class BdfHeun(Predictor):
    holds = Holds(features=("_computed", "_latest"))

    def __init__(self, config: BdfHeunConfig) -> None:
        super().__init__()
        self._computed: list[tuple[float, Kept]] = []
        self._latest: list[tuple[float, Kept]] = []

    @property
    def num_kept(self) -> int:
        return 4

    @property
    def ready(self) -> bool:
        return bool(self._computed)

    def push(self, at: float, feature: Tensor) -> None:
        self._computed = [*self._computed[-1:], (at, self.storage.put(feature))]
        self._latest = [*self._latest[-1:], self._computed[-1]]

    def predict(self, at: float, channels: int | None = None) -> Tensor:
        if len(self._computed) < 2:
            return self._computed[-1][1].get(channels)
        (a1, computed_1), (a0, computed_0) = self._computed
        (k1, latest_1), (k0, latest_0) = self._latest
        half = (at - a0) / 2
        # g_p is the slope between the two latest: the predictor extrapolates by it.
        slope_a, slope_p = half / (a0 - a1), half / (k0 - k1)
        return weighted_sum([computed_0, computed_1, latest_0, latest_1], [1 + slope_a, -slope_a, slope_p, -slope_p], channels)

    def settle(self, at: float, feature: Tensor) -> None:
        self._latest = [*self._latest[-1:], (at, self.storage.put(feature))]
