"""Recompute when a forecast, checked against one real block, was too far off (SpeCa, arXiv 2509.11628).

The check lags a step: the error of step s decides step s + 1, without going back. The published element-wise relative error is ruled by
entries near zero; here it is ||draft - real||_1 / ||real||_1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...later import torch
from ..decision import Decision
from ..state.holds import Holds
from ..sums import l1_sums, ratio
from .trigger import Moment, Trigger

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class VerifyConfig:
    """The error allowed at step s of T is max(threshold * decay^(s / T), floor), dimensionless. unchecked_steps: the errors of so many
    reused steps after a computed one are ignored.
    """

    threshold: float = 1.0
    decay: float = 0.1
    floor: float = 0.1
    unchecked_steps: int = 0

    def __post_init__(self) -> None:
        if min(self.threshold, self.floor) < 0 or not 0 < self.decay <= 1 or self.unchecked_steps < 0:
            raise ValueError(
                f"threshold={self.threshold:g}, floor={self.floor:g} and unchecked_steps={self.unchecked_steps} must not be negative, and "
                f"decay={self.decay:g} must lie between 0 and 1."
            )


class Verify(Trigger):
    """Learns from the site's checks alone: what the last block really made, and what was forecast of it."""

    measures = True
    needs_checks = True
    measures_features = True
    holds = Holds(numbers=("_run",), sums=("_pending",))

    def __init__(self, config: VerifyConfig) -> None:
        super().__init__()
        self.config = config
        self._pending: Tensor | None = None
        self._run = 0

    def signal(self, probe: Tensor) -> Tensor:
        pending, self._pending = self._pending, None
        return pending if pending is not None else torch.zeros(2, dtype=torch.float64, device=probe.device)

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        config = self.config
        allowed = max(config.threshold * config.decay ** (moment.step / moment.num_inference_steps), config.floor)
        self.value = ratio(sums) if sums[1] > 0 else None
        self.threshold = allowed if self._run > config.unchecked_steps else None
        too_far = self.value is not None and self.threshold is not None and self.value > self.threshold
        return Decision.COMPUTE if too_far else Decision.REUSE

    def learn(self, unit: int, now: Tensor, before: Tensor | None) -> None:
        self._pending = l1_sums(before, now) if before is not None else None

    def settle(self, decision: Decision) -> None:
        self._run = 0 if decision is Decision.COMPUTE else self._run + 1
