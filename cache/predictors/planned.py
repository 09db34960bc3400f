"""Follow the line through the last two computed velocities, damped gap by gap, and correct what that got wrong once the next one is known.

Ours. A sampler's latents are linear in the model's outputs: with all other outputs left as they are, the take's end changes by R_s times what
output s changes by (cache/sampler/linear_map.py; for Euler's sampler R_s = sigma_{s+1} - sigma_s). Once step j is computed, the steps that
were skipped since step i are known better than by their forecasts f_s: they lie close to
m_s = v_i + (v_j - v_i) (s - i) / (j - i) + b v[h, i, j] (s - i) (s - j),
with h computed before i and v[h, i, j] the second divided difference: at b = 1 the parabola through all three, at b = 0 the line through
the last two. So the model's v_j is passed on as
v_j + c sum_{s=i+1}^{j-1} (m_s - f_s) R_s / R_j,
and at c = 1, as soon as the sampler works with none of these outputs any more, the latents are where the m_s would have led to. A multistep sampler
goes on working with forecasts after their steps; what they did to the latents just after step j is not what they do to the film. The model has
seen what the forecasts did to the latents, and mends part of it by itself, so that a smaller c is better (cache/calibration/amending.py).

c is of a take like those of the calibration. Where the model answers more strongly to latents that are off (textured scenes do), correcting by what
it says there makes the next latents worse, and the film diverges. How strongly shows in the forecast of v_j itself: its error is as many times
as large as calibration, which looks at undisturbed takes, has seen there. So of the correction only the share expected error / error is made,
and all of it where the error is no larger than expected. In a take of segments each has its own share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...later import torch
from ..state.holds import Holds
from ..state.segments import cut_frames
from ..state.storage import Kept
from .predictor import WindowPredictor, damped_weights, difference_weights, weighted_sum

if TYPE_CHECKING:
    from torch import Tensor

    from ..sampler.linear_map import LinearMap


@dataclass(frozen=True)
class PlannedConfig:
    """damping_by_step: for each step of the take, the share of the slope that forecasts follow in the gap that starts there; empty: all of it.

    responses: R of each step of the take, of the sampler that it was calibrated with; empty: nothing is corrected.
    bending_by_step, amending_by_step: b and c of the gap that starts at each step of the take; empty: 0 and 1. expected_errors: for each step of
    the take, the relative error (root mean square) of its forecast that calibration saw; empty, or 0: its correction is made in full.
    """

    damping_by_step: list[float] = field(default_factory=list)
    responses: list[float] = field(default_factory=list)
    bending_by_step: list[float] = field(default_factory=list)
    amending_by_step: list[float] = field(default_factory=list)
    expected_errors: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        for damping in self.damping_by_step:
            if not 0 <= damping <= 1:
                raise ValueError(f"damping_by_step names {damping:g}; shares of a slope lie between 0 (plain reuse) and 1.")
        for share in self.amending_by_step:
            if not 0 <= share <= 1:
                raise ValueError(f"amending_by_step names {share:g}; shares of a correction lie between 0 (none) and 1.")
        for name in ("responses", "bending_by_step", "amending_by_step", "expected_errors"):
            count, steps = len(getattr(self, name)), len(self.damping_by_step)
            if count not in (0, steps):
                raise ValueError(f"{name} has {count} entries and damping_by_step {steps}; give both one a step.")
        if any(response == 0 for response in self.responses):
            raise ValueError("responses has a 0, of a step whose output the sampler does not use; calibrate with another sampler.")


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

    @property
    def needs_sampler(self) -> bool:
        return bool(self.config.responses)

    def check_sampler(self, sampler: LinearMap) -> None:
        if not sampler.responds_as(self.config.responses):
            raise ValueError(
                f"Predictor planned makes up for its forecasts as another sampler needs it than the {sampler.scheduler} at hand, with its "
                f"{len(sampler.responses)} steps; give it the scheduler, flow shift, spacing, order and number of steps of the calibration, or run "
                f"`longtake calibrate` with those that it has."
            )

    def weights(self, at: float) -> list[float]:
        places, by_step = self.places, self.config.damping_by_step
        return damped_weights(places, at, by_step[int(places[-1])] if by_step else 1.0)

    def settle(self, at: float, feature: Tensor) -> None:
        self._skipped.append(at)

    def amend(self, at: float, feature: Tensor) -> Tensor:
        responses = self.config.responses
        if not (responses and self._skipped):
            return feature
        weights, shares = [0.0] * len(self.places) + [1.0], self.config.amending_by_step
        share = shares[int(self.places[-1])] if shares else 1.0
        for skipped in self._skipped:
            scale = share * responses[int(skipped)] / responses[int(at)]
            used = [*self.weights(skipped), 0.0]
            weights = [weight + scale * (better - own) for weight, better, own in zip(weights, self._between(skipped, at), used, strict=True)]
        now = Kept(feature, None, feature.dtype, feature.device)
        corrected = weighted_sum([*(kept for _, kept in self._window), now], weights)
        expected = self.config.expected_errors
        return torch.lerp(feature, corrected, self._share(at, feature).to(feature)) if expected and expected[int(at)] else corrected

    def _share(self, at: float, feature: Tensor) -> Tensor:
        """How much of the correction at a computed step is made: one share for all, or one a frame, [frames, 1, 1], that of its segment."""
        forecast = self.predict(at)
        shares = [self._share_of(at, *part) for part in zip(cut_frames(feature, self.segments), cut_frames(forecast, self.segments), strict=True)]
        if self.segments is None:
            return shares[0]
        return torch.stack(shares).repeat_interleave(torch.tensor(self.segments.frames_of_segments(), device=feature.device)).view(-1, 1, 1)

    def _share_of(self, at: float, feature: Tensor, forecast: Tensor) -> Tensor:
        error = (feature - forecast).float().square().mean().sqrt()
        size = feature.float().square().mean().sqrt()
        return (self.config.expected_errors[int(at)] * size / error).clamp(max=1.0)

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
