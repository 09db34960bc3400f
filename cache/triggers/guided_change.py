"""Recompute both branches when the guided output must have changed enough (RA-CFGCache; formula re-derived from its text).

With r_c and r_u the relative change of each branch's probe from step to step, guidance scale s and mean cosine rho of the branches'
drifts, the guided change is r = sqrt((1 - s)^2 r_u^2 + s^2 r_c^2 + 2 s (1 - s) rho r_u r_c). R grows by max(0, g r) with the gain
g = lambda (1 - k / T)^alpha + beta, early errors weighing more; both branches are computed once R reaches the threshold.
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
class GuidedChangeConfig:
    """threshold: R from which a step is computed, dimensionless. guidance_scale: the take's. correlation (rho), gain (lambda), exponent
    (alpha) and offset (beta): `longtake calibrate` measures them.
    """

    threshold: float = MISSING
    guidance_scale: float = MISSING
    correlation: float = MISSING
    gain: float = MISSING
    exponent: float = MISSING
    offset: float = MISSING

    def __post_init__(self) -> None:
        if isinstance(self.correlation, float) and not -1 <= self.correlation <= 1:
            raise ValueError(f"correlation is {self.correlation:g}; it is a cosine, between -1 and 1.")
        if isinstance(self.exponent, float) and self.exponent < 0:
            raise ValueError(f"exponent is {self.exponent:g}; early errors weigh more, so it must not be negative.")
        if isinstance(self.threshold, float) and self.threshold < 0:
            raise ValueError(f"threshold is {self.threshold:g}; it must be 0 (compute every step) or above.")


class GuidedChange(Trigger):
    measures = True
    num_probes = 1
    by_branch = True
    needs_branches = "joint"
    holds = Holds(numbers=("_risk",), probes=("_probe", "_reference"))

    def __init__(self, config: GuidedChangeConfig) -> None:
        super().__init__()
        self.config = config
        self.threshold = config.threshold
        self._probe: Tensor | None = None
        self._reference: Tensor | None = None
        self._risk = 0.0

    def signal(self, probe: Tensor) -> Tensor:
        """Two sums a sample: the probe is a batch of both branches, or one of them."""
        self._probe = probe
        before = self._reference.split(1) if self._reference is not None else [None] * len(probe)
        return torch.cat([l1_sums(*pair) for pair in zip(probe.split(1), before, strict=True)])

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        config, s = self.config, self.config.guidance_scale
        cond, uncond = ratio(sums[:2]), ratio(sums[2:])
        if max(cond, uncond) == float("inf"):
            self.value = float("inf")
            return Decision.COMPUTE
        squared = (1 - s) ** 2 * uncond**2 + s**2 * cond**2 + 2 * s * (1 - s) * config.correlation * uncond * cond
        left = 1 - moment.step / moment.num_inference_steps
        self._risk += max(0.0, config.gain * left**config.exponent + config.offset) * max(squared, 0.0) ** 0.5
        self.value = self._risk
        return Decision.REUSE if self._risk < config.threshold else Decision.COMPUTE

    def settle(self, decision: Decision) -> None:
        if decision is Decision.COMPUTE:
            self._risk = 0.0
        self._reference, self._probe = self._probe, None
