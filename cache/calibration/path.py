"""The cheapest way through a take that computes so many of its steps: dynamic programming, whatever a gap costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Past = tuple[int, ...]
Cost = TypeVar("Cost", float, tuple[float, ...])


def check_budget(num_steps: int, num_computed: int, max_gap: int) -> None:
    """Raise ValueError, with the mend, if so few computed steps cannot be spread over a take."""
    fewest = 1 + -(-(num_steps - 1) // max_gap)
    if not fewest <= num_computed <= num_steps:
        raise ValueError(f"{num_computed} of {num_steps} steps is no plan; compute between {fewest} and {num_steps}.")


def cheapest_path(
    num_steps: int, num_computed: int, *, max_gap: int, memory: int, nothing: Cost, extend: Callable[[Cost, Past, int], Cost]
) -> tuple[Past, Cost]:
    """The computed steps, ascending, the first and the last of the take among them, and what they cost.

    max_gap: the longest way from one computed step to the next. memory: how many of the last computed steps a gap's cost depends on.
    extend: the cost of a path from its cost so far, its last `memory` computed steps (at its start: fewer) and the next one; of two
    paths with the same past it must leave the cheaper one the cheaper. nothing: what no path costs. Raises ValueError for a budget that
    check_budget refuses.
    """
    check_budget(num_steps, num_computed, max_gap)
    best: dict[Past, Cost] = {(0,): nothing}
    ways: list[dict[Past, Past]] = []
    past: Past
    for _ in range(num_computed - 1):
        reached: dict[Past, Cost] = {}
        came_from: dict[Past, Past] = {}
        for past, cost in best.items():
            for there in range(past[-1] + 1, min(past[-1] + max_gap, num_steps - 1) + 1):
                state, total = (*past, there)[-memory:], extend(cost, past, there)
                if state not in reached or total < reached[state]:
                    reached[state], came_from[state] = total, past
        best = reached
        ways.append(came_from)
    state = min((end for end in best if end[-1] == num_steps - 1), key=lambda end: best[end])
    cost, computed = best[state], [state[-1]]
    for came_from in reversed(ways):
        state = came_from[state]
        computed.append(state[-1])
    return tuple(reversed(computed)), cost
