"""Go on from the last computed feature as far as a probe has gone on (DiCache's trajectory alignment, arXiv 2508.17356).

a and b are the last two computed steps, q the probe (the first blocks' residual), R the kept residual:
R_b + gamma (R_a - R_b) with gamma = clip(||q - q_b||_1 / ||q_a - q_b||_1, 1, 1.5); R_a alone while there are fewer than two.
The clip is the published code's, and so is the plain L1 norm; the paper divides by the probe's own norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...later import torch
from ..state.holds import Holds
from ..sums import l1
from .predictor import WindowPredictor

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AlignConfig:
    """low, high: what gamma is clipped to; 1 goes no farther than the last computed feature."""

    low: float = 1.0
    high: float = 1.5

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; they must be 0 <= low <= high.")


class Align(WindowPredictor):
    measures = True
    holds = Holds(numbers=("_gamma",), probes=("_probe", "_probes"))

    def __init__(self, config: AlignConfig) -> None:
        super().__init__(2)
        self.config = config
        self._probe: Tensor | None = None
        self._probes: list[Tensor] = []  # at the computed steps, oldest first
        self._gamma = 1.0

    @property
    def num_probes(self) -> int:
        return 2

    def measure(self, at: float, probe: Tensor) -> Tensor:
        """||q - q_b||_1 and ||q_a - q_b||_1."""
        self._probe = probe
        if len(self._probes) < 2:
            return torch.zeros(2, dtype=torch.float64, device=probe.device)
        older, newer = self._probes
        return torch.stack((l1(probe - older), l1(newer - older)))

    def receive(self, sums: Sequence[float]) -> None:
        gone, computed = sums
        self._gamma = min(max(gone / computed, self.config.low), self.config.high) if computed > 0 else 1.0

    def push(self, at: float, feature: Tensor) -> None:
        assert self._probe is not None, "push() before measure()"
        self._probes = [*self._probes[-1:], self._probe]
        self._probe = None
        super().push(at, feature)

    def settle(self, at: float, feature: Tensor) -> None:
        self._probe = None

    def weights(self, at: float) -> list[float]:
        return [1 - self._gamma, self._gamma] if len(self._window) == 2 else [1.0]
