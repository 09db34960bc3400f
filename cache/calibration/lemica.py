"""Which steps to compute so that the worst skipped gap costs least (LeMiCa, arXiv 2511.00090)."""

from __future__ import annotations

from .path import Floats, Past, cheapest_path


def plan_minimax(errors: Floats, num_computed: int, *, max_gap: int) -> Past:
    """The path of `num_computed` steps whose errors, sorted from the largest down, are the least in lexicographic order.

    errors: [steps, steps], what it does to the film to compute step i and then no other before step j. Raises ValueError if so few
    steps cannot be spread over the take.
    """

    def extend(cost: tuple[float, ...], past: Past, there: int) -> tuple[float, ...]:
        return tuple(sorted((*cost, float(errors[past[-1], there])), reverse=True))

    nothing: tuple[float, ...] = ()
    return cheapest_path(len(errors), num_computed, max_gap=max_gap, memory=1, nothing=nothing, extend=extend)[0]
