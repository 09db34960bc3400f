"""Extrapolate by the eigenvalues of the features' own dynamics (dynamic mode decomposition; HiCache++ and cache-dit; re-derived).

With X = [f_0 .. f_(m-2)] and X' = [f_1 .. f_(m-1)] at equal gaps, A X = X' is fitted on the span of X. All of it follows from the Gram matrix
of the snapshots: X^T X = V S^2 V^T gives the modes, A~ = S^-1 V^T X^T X' V S^-1 the dynamics, and A~^k applied to f_(m-1)'s coordinates,
a forecast k gaps ahead, is a weighted sum of the X'. What lies outside of the span is kept as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...later import np, torch
from ..state.holds import Holds
from ..sums import dot
from .predictor import WindowPredictor, lagrange_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class DmdConfig:
    """window: features looked at. rank_cut: modes whose singular value is below this share of the largest are left out. fewest: how
    many equally spaced features the dynamics are fitted to at least; with fewer, the line through the last two is followed.
    """

    window: int = 6
    rank_cut: float = 1e-4
    fewest: int = 4

    def __post_init__(self) -> None:
        if not 3 <= self.fewest <= self.window:
            raise ValueError(f"fewest is {self.fewest} and window {self.window}; they must be 3 <= fewest <= window.")
        if not 0 < self.rank_cut < 1:
            raise ValueError(f"rank_cut is {self.rank_cut:g}; it must lie between 0 and 1.")


class Dmd(WindowPredictor):
    """Products of the newest feature with all of the window are summed over the shards with the next decision: all have the same Gram matrix."""

    measures = True
    measures_features = True
    holds = Holds(numbers=("_gram",), sums=("_pending",))

    def __init__(self, config: DmdConfig) -> None:
        super().__init__(config.window)
        self.config = config
        self._gram: list[list[float]] = []
        self._pending: Tensor | None = None

    def measure(self, at: float, probe: Tensor) -> Tensor:
        row = torch.zeros(self.config.window, dtype=torch.float64, device=probe.device)
        if self._pending is not None:
            row[: len(self._pending)] = self._pending
        return row

    def receive(self, sums: Sequence[float]) -> None:
        if self._pending is None:
            return
        row = list(sums[: len(self._pending)])
        self._pending = None
        older = self._gram[-len(row) + 1 :] if len(row) > 1 else []
        self._gram = [[*before[-len(row) + 1 :], value] for before, value in zip(older, row[:-1], strict=True)] + [row]

    def push(self, at: float, feature: Tensor) -> None:
        super().push(at, feature)
        features = [kept.get()[:, self.measured] for _, kept in self._window]
        self._pending = torch.stack([dot(feature, features[-1]) for feature in features])

    def weights(self, at: float) -> list[float]:
        places = self.places
        gaps = np.diff(places)
        equal = 1
        while equal < len(places) and np.isclose(gaps[-equal], gaps[-1]):
            equal += 1
        if equal < self.config.fewest:
            return [0.0] * (len(places) - 2) + lagrange_weights(places[-2:], at)
        ahead = (at - places[-1]) / gaps[-1]
        used = dmd_weights(np.array(self._gram)[-equal:, -equal:], ahead, self.config.rank_cut)
        return [0.0] * (len(places) - equal) + used


def dmd_weights(gram: NDArray[np.float64], ahead: float, rank_cut: float) -> list[float]:
    """Weights of the snapshots, [m, m] products of which are `gram`, in the forecast `ahead` gaps after the last one."""
    squares, vectors = np.linalg.eigh(gram[:-1, :-1])
    kept = squares > (rank_cut**2) * squares.max()
    scaled = vectors[:, kept] / np.sqrt(squares[kept])  # columns of X V S^-1 are orthonormal modes
    dynamics = scaled.T @ gram[:-1, 1:] @ scaled
    last = scaled.T @ gram[:-1, -1]  # coordinates of the newest snapshot in the modes
    weights = np.zeros(len(gram))
    weights[:-1] += scaled @ (_power(dynamics, ahead) @ last - last)
    weights[-1] += 1.0
    return [float(weight) for weight in weights]


def _power(matrix: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    """The matrix to a power: by its eigenvalues, unless the exponent is whole."""
    if exponent == int(exponent):
        return np.linalg.matrix_power(matrix, int(exponent))
    values, vectors = np.linalg.eig(matrix)
    return (vectors @ np.diag(values.astype(complex) ** exponent) @ np.linalg.inv(vectors)).real
