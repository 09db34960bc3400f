"""Recompute when the output must have changed enough, judged from the latents (EasyCache, arXiv 2507.02860).

At computed steps k = ||v - v_last||_1 / ||x - x_last||_1, change of the output by change of the latents since the last computed step. In
between E += k ||x_t - x_(t-1)||_1 / ||v_last||_1 from step to step; a step is computed once E reaches the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from ...later import torch
from ..decision import Decision
from ..state.holds import Holds
from ..sums import l1_sums, ratio
from .trigger import Moment, Trigger

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RateConfig:
    """threshold: expected relative L1 change of the output, dimensionless, from which a step is computed."""

    threshold: float = MISSING

    def __post_init__(self) -> None:
        if isinstance(self.threshold, float) and self.threshold < 0:
            raise ValueError(f"threshold is {self.threshold:g}; it must be 0 (compute every step) or above.")


class Rate(Trigger):
    """The probe must be the latents, or what stands for them; `learn` gets the output."""

    measures = True
    needs_latents = True
    num_probes = 3  # the output counts as one: site and probe are of the latents' size
    learns = True
    holds = Holds(numbers=("_rate", "_size", "_expected"), probes=("_probe", "_computed"), sums=("_learnt",))

    def __init__(self, config: RateConfig) -> None:
        super().__init__()
        self.config = config
        self.threshold = config.threshold
        self._probe: Tensor | None = None
        self._computed: tuple[Tensor, Tensor] | None = None  # probe and output of the last computed step
        self._learnt: Tensor | None = None
        self._rate, self._size, self._expected = float("inf"), 0.0, 0.0

    def signal(self, probe: Tensor) -> Tensor:
        """What was learnt at the last computed step, then the change of the probe since the last step."""
        step = l1_sums(probe, self._probe)[:1]
        learnt = self._learnt if self._learnt is not None else torch.zeros(3, dtype=torch.float64, device=probe.device)
        self._probe, self._learnt = probe, None
        return torch.cat((learnt, step))

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        *learnt, step = sums
        if learnt[2] > 0:
            self._rate, self._size = ratio(learnt[:2]), learnt[2]
        self._expected += self._rate * step / self._size if self._size and step else 0.0
        self.value = self._expected if self._rate < float("inf") else float("inf")
        return Decision.REUSE if self.value < self.config.threshold else Decision.COMPUTE

    def learn(self, unit: int, now: Tensor, before: Tensor | None) -> None:
        assert self._probe is not None, "learn() before signal()"
        last_probe, last = self._computed or (None, None)
        size = now.abs().sum(dtype=torch.float64)
        self._learnt = torch.stack((l1_sums(now, last)[0], l1_sums(self._probe, last_probe)[0], size))
        self._computed = (self._probe, now)

    def settle(self, decision: Decision) -> None:
        if decision is Decision.COMPUTE:
            self._expected = 0.0
