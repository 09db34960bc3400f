"""Steps that are computed whatever a trigger says, the same for all recipes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ..triggers import Moment
from .config import check_count


@dataclass(frozen=True)
class Guards:
    """Common to all recipes: steps that are computed whatever the trigger says.

    first_steps, last_steps: how many steps are computed at the start and at the end of a take; numbers below 1 are shares of its steps.
    max_reused_steps: the most steps that may be reused in a row (0: no limit). max_risk: the error that a predictor expects of its own
    forecast (RACER: how far its two forecasts are apart, relative) above which the step is computed. The next step that the trigger would
    have computed is reused in return, unless its expected error is above max_risk as well (0: no limit).
    """

    first_steps: float = 1
    last_steps: float = 1
    max_reused_steps: int = 0
    max_risk: float = 0.0

    def __post_init__(self) -> None:
        if self.first_steps <= 0:
            raise ValueError(f"first_steps is {self.first_steps:g}; it must be above 0, as the first step can only be computed.")
        check_count("first_steps", self.first_steps)
        check_count("last_steps", self.last_steps)
        if min(self.last_steps, self.max_reused_steps, self.max_risk) < 0:
            raise ValueError(
                f"last_steps={self.last_steps:g}, max_reused_steps={self.max_reused_steps} and max_risk={self.max_risk:g} must not be negative."
            )

    def num_computed(self, num_inference_steps: int) -> tuple[int, int]:
        """How many first and last steps of a take are computed."""
        first, last = (ceil(n * num_inference_steps) if n < 1 else int(n) for n in (self.first_steps, self.last_steps))
        return first, last

    def compel(self, moment: Moment, reused_run: int) -> bool:
        """Whether this step must be computed. reused_run: how many steps in a row were reused just before it."""
        first, last = self.num_computed(moment.num_inference_steps)
        too_long = 0 < self.max_reused_steps <= reused_run
        return too_long or moment.step < first or moment.step >= moment.num_inference_steps - last
