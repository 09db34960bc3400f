"""Follow the line through the last two computed velocities, damped gap by gap, and correct what that got wrong once the next one is known.

Ours. A reused velocity f_s moves the latents by f_s (sigma_{s+1} - sigma_s). Once step j is computed,
the steps that were skipped since step i are known better: they lie close to
m_s = v_i + (v_j - v_i) (s - i) / (j - i) + b v[h, i, j] (s - i) (s - j),
with h computed before i and v[h, i, j] the second divided difference: at b = 1 the parabola through all three, at b = 0 the line through
the last two. So the model's v_j is passed on as
v_j + sum_{s=i+1}^{j-1} (m_s - f_s) (sigma_{s+1} - sigma_s) / (sigma_{j+1} - sigma_j),
and the latents after step j are where the m_s would have led to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..state.holds import Holds
from ..state.storage import Kept
from .predictor import WindowPredictor, damped_weights, difference_weights, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

_SAME_SIGMA = 1e-3  # a thousandth of a take


@dataclass(frozen=True)
class PlannedConfig:
    """damping_by_step: for each step of the take, the share of the slope that forecasts follow in the gap that starts there; empty: all of it.

    sigmas: of the take, one more than it has steps, of a sampler that steps by velocity times sigma; empty: nothing is corrected.
    bending_by_step: b of the gap that starts at each step of the take; empty: 0.
    """

    damping_by_step: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    bending_by_step: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        for damping in self.damping_by_step:
            if not 0 <= damping <= 1:
                raise ValueError(f"damping_by_step names {damping:g}; shares of a slope lie between 0 (plain reuse) and 1.")
        if self.sigmas and len(self.damping_by_step) != len(self.sigmas) - 1:
            raise ValueError(f"sigmas has {len(self.sigmas)} entries and damping_by_step {len(self.damping_by_step)}; it must have one more.")
        if self.bending_by_step and len(self.bending_by_step) != len(self.damping_by_step):
            raise ValueError(f"bending_by_step has {len(self.bending_by_step)} entries and damping_by_step {len(self.damping_by_step)}.")


class Planned(WindowPredictor):
    """For the site `output` on the abscissa `step`. Skipped steps are corrected even if the plan did not skip them."""

    needs_velocity = True
    needs_abscissa = "step"
    holds = Holds(numbers=("_skipped",))

    def __init__(self, config: PlannedConfig) -> None:
        super().__init__(2)
        self.config = config
        self._skipped: list[float] = []

    def check_steps(self, num_inference_steps: int) -> None:
        if len(self.config.damping_by_step) not in (0, num_inference_steps):
            raise ValueError(f"damping_by_step is of {len(self.config.damping_by_step)} steps, and the take has {num_inference_steps}.")

    def check_sampler(self, sigmas: Sequence[float] | None) -> None:
        own = self.config.sigmas
        if own and (sigmas is None or len(sigmas) != len(own) or max(abs(a - b) for a, b in zip(sigmas, own, strict=True)) > _SAME_SIGMA):
            raise ValueError(
                "Predictor planned makes up for what its forecasts did at the sigmas of FlowMatchEulerDiscreteScheduler that it was calibrated "
                "with; give the pipeline that sampler, with the same flow shift, or run `longtake calibrate` on a model with the sampler it has."
            )

    def weights(self, at: float) -> list[float]:
        places, by_step = self.places, self.config.damping_by_step
        return damped_weights(places, at, by_step[int(places[-1])] if by_step else 1.0)

    def settle(self, at: float, feature: Tensor) -> None:
        self._skipped.append(at)

    def amend(self, at: float, feature: Tensor) -> Tensor:
        if not (self.config.sigmas and self._skipped):
            return feature
        weights = [0.0] * len(self.places) + [1.0]
        for skipped in self._skipped:
            scale = self._stride(skipped) / self._stride(at)
            used = [*self.weights(skipped), 0.0]
            weights = [weight + scale * (better - own) for weight, better, own in zip(weights, self._between(skipped, at), used, strict=True)]
        now = Kept(feature, None, feature.dtype, feature.device)
        return weighted_sum([*(kept for _, kept in self._window), now], weights)

    def _between(self, skipped: float, at: float) -> list[float]:
        """The weights of the window and of what is computed at `at` in m_s."""
        knots = [*self.places, at]
        last, by_step = self.places[-1], self.config.bending_by_step
        share = (skipped - last) / (at - last)
        weights = [0.0] * (len(knots) - 2) + [1 - share, share]
        if not by_step or len(knots) < 3:
            return weights
        bend = by_step[int(last)] * (skipped - last) * (skipped - at)
        return [weight + bend * curve for weight, curve in zip(weights, difference_weights(knots, 2), strict=True)]

    def push(self, at: float, feature: Tensor) -> None:
        super().push(at, feature)
        self._skipped = []

    def _stride(self, step: float) -> float:
        return self.config.sigmas[int(step) + 1] - self.config.sigmas[int(step)]
