"""Recompute at steps that calibration chose, and halve the gap after a forecast that was worse than calibration saw there (ours).

Takes differ in how hard they are to forecast, and one that is harder than expected now stays so for a while.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING

from ...later import torch
from ..decision import Decision
from ..state.holds import Holds
from .mask import MaskConfig
from .trigger import Moment, Trigger

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PlanConfig(MaskConfig):
    """expected_errors: for each step of the take, the relative error (root mean square) of the forecast that calibration saw there; 0
    where there was none. max_surprise: how many times as large an error may be; 0: the plan alone decides, and nothing is measured.
    """

    expected_errors: list[float] = field(default_factory=list)
    max_surprise: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.max_surprise, *self.expected_errors, 0.0) < 0:
            raise ValueError(f"max_surprise is {self.max_surprise:g}, expected_errors {self.expected_errors}; none of them must be negative.")
        if self.max_surprise and isinstance(self.computed, list) and self.computed[-1] >= len(self.expected_errors):
            raise ValueError(f"max_surprise compares with expected_errors, which end before step {self.computed[-1]}; calibrate, or set it to 0.")

    def check_steps(self, num_inference_steps: int) -> None:
        super().check_steps(num_inference_steps)
        if self.expected_errors and len(self.expected_errors) != num_inference_steps:
            raise ValueError(f"expected_errors are of {len(self.expected_errors)} steps, and the take has {num_inference_steps}.")


class Plan(Trigger):
    """Errors are of what is computed here, one branch of guidance; they are summed up with those of other shards where there are any.

    It carries the steps that it put in: frames that go on from those of a take that is harder to forecast are taken to be as hard.
    """

    measures_features = True
    holds = Holds(settings=("measures", "learns", "carries"), numbers=("_inserted", "_step"), sums=("_pending",))

    def __init__(self, config: PlanConfig) -> None:
        super().__init__()
        self.config = config
        self.measures = self.learns = config.max_surprise > 0
        self.carries = ("_inserted",) if self.measures else ()
        self._inserted: list[int] = []
        self._pending: Tensor | None = None
        self._step = 0

    def check_steps(self, num_inference_steps: int) -> None:
        self.config.check_steps(num_inference_steps)

    def signal(self, probe: Tensor) -> Tensor | None:
        if not self.measures:
            return None
        pending, self._pending = self._pending, None
        return torch.zeros(2, dtype=torch.float64, device=probe.device) if pending is None else pending

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        """sums: the squared error at the last step and the squared feature, if it was computed."""
        computed, before = self.config.computed, self._step
        self._step = moment.step
        self.value, self.threshold = None, self.config.max_surprise or None
        if sums and sums[1] > 0 and self.config.expected_errors[before] > 0:
            self.value = sqrt(sums[0] / sums[1]) / self.config.expected_errors[before]
            if self.value > self.config.max_surprise:
                between = (before + min((step for step in computed if step > before), default=before)) // 2
                self._inserted = sorted({*self._inserted, between})
        return Decision.COMPUTE if moment.step in computed or moment.step in self._inserted else Decision.REUSE

    def learn(self, unit: int, now: Tensor, before: Tensor | None) -> None:
        if before is not None:
            sums = torch.stack([part.float().pow(2).sum(dtype=torch.float64) for part in (now - before, now)])
            self._pending = sums if self._pending is None else self._pending + sums
