"""What a calibration is: how a method measures a model, and what of it may be chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...cache import Recipe
from ...cache.calibration.path import check_budget
from ..loop.render import Renderer
from ..take import Take


@dataclass(frozen=True)
class Setting:
    """What users may choose of a method. computed: how many steps of a take to compute; threshold: how much error to allow."""

    computed: int = 0
    threshold: float = 0.0


Changes = list[dict[str, dict[str, Any]]]  # one entry a part of the recipe: new settings of its trigger, site and predictor, by their names
Measured = Callable[[Setting], Changes]  # what was learnt of a model, ready to be worked out for one setting after another


@dataclass(frozen=True)
class Method:
    """measure: renders takes without a cache and says what the recipe's numbers are on this model.

    max_gap: of methods that choose which steps to compute, given how many: the most steps from one of them to the next; None for others.
    free_end: the last step of a take need not be computed. threshold: of methods that choose steps by an error to allow: the usual one; None
    for others. any_steps: the numbers are good for takes of any number of steps, not only of as many as were measured. linear: the numbers are
    of the sampler as a linear map (cache/sampler). guided: they are of the guided output, and hold for its guidance_scale alone; others look at
    features of one branch, which depend on guidance by the latents that it leads to, and by no more than they do on the prompt.
    """

    measure: Callable[[Renderer, list[Take], Recipe], Measured]
    max_gap: int | None = None
    free_end: bool = False
    threshold: float | None = None
    any_steps: bool = False
    linear: bool = False
    guided: bool = False

    def setting(self, num_steps: int, computed: int | None, threshold: float | None) -> Setting:
        """What is None gets the usual value: two steps in five are computed. Raises ValueError, with the mend, for what the method does not
        ask for and for numbers that are out of range.
        """
        if computed is not None and self.max_gap is None:
            raise ValueError("--computed is for recipes that choose a number of steps to compute; leave it out.")
        if threshold is not None and self.threshold is None:
            raise ValueError("--threshold is for recipes whose steps are chosen by an error to allow; leave it out.")
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"--threshold is {threshold:g}; give a finite number above 0, as at 0 nothing would be reused.")
        if self.max_gap is not None:
            computed = num_steps * 2 // 5 if computed is None else computed
            check_budget(num_steps, computed, self.max_gap, free_end=self.free_end)
        return Setting(computed or 0, threshold or self.threshold or 0.0)
