"""Which steps to compute so that the worst skipped gap costs least (LeMiCa, arXiv 2511.00090)."""

from __future__ import annotations

import numpy as np

from ....cache import Recipe
from ....cache.calibration.path import Floats, Past, cheapest_path
from ...loop.render import Renderer
from ...take import Take
from ..measure import measure_skips
from ..method import Measured, Method

MAX_GAP = 5


def plan_minimax(errors: Floats, num_computed: int, *, max_gap: int) -> Past:
    """The path of `num_computed` steps whose errors, sorted from the largest down, are the least in lexicographic order.

    errors: [steps, steps], what it does to the film to compute step i and then no other before step j. Raises ValueError if so few
    steps cannot be spread over the take.
    """

    def extend(cost: tuple[float, ...], past: Past, there: int) -> tuple[float, ...]:
        return tuple(sorted((*cost, float(errors[past[-1], there])), reverse=True))

    nothing: tuple[float, ...] = ()
    return cheapest_path(len(errors), num_computed, max_gap=max_gap, memory=1, nothing=nothing, extend=extend)[0]


def measure(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    errors = np.mean([measure_skips(renderer, take, recipe, MAX_GAP) for take in takes], axis=0)
    return lambda setting: [{"trigger": {"computed": list(plan_minimax(errors, setting.computed, max_gap=MAX_GAP))}}]


METHOD = Method(measure, max_gap=MAX_GAP, guided=True)
