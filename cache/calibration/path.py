"""Which steps of a take to compute, given how many, so that skipping the rest costs least: dynamic programming, for any cost of a gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Past = tuple[int, ...]
Cost = TypeVar("Cost", float, tuple[float, ...])


def check_budget(num_steps: int, num_computed: int, max_gap: int, *, free_end: bool) -> None:
    """Raise ValueError, with the mend, if so few computed steps cannot be spread over a take. free_end: as in `cheapest_path`."""
    fewest = -(-num_steps // max_gap) if free_end else 1 + -(-(num_steps - 1) // max_gap)
    if not fewest <= num_computed <= num_steps:
        raise ValueError(f"{num_computed} of {num_steps} steps cannot be the computed ones; compute between {fewest} and {num_steps}.")


def cheapest_path(
    num_steps: int,
    num_computed: int,
    *,
    max_gap: int,
    memory: int,
    nothing: Cost,
    extend: Callable[[Cost, Past, int], Cost],
    free_end: bool = False,
) -> tuple[Past, Cost]:
    """The computed steps, ascending, the first of the take among them, and what they cost.

    max_gap: the most steps from one computed step to the next. memory: how many of the last computed steps the cost of a gap depends on.
    extend: gives the cost of a path that goes on to another computed step, from its cost so far, its last `memory` computed steps (fewer at
    its start) and that step; of two paths that agree in these steps the cheaper one must stay the cheaper. nothing: the cost of a path
    without gaps. free_end: the last step need not be computed; then the end of the take closes the last gap. Raises ValueError as
    `check_budget` does.
    """
    check_budget(num_steps, num_computed, max_gap, free_end=free_end)
    end = num_steps if free_end else num_steps - 1
    best: dict[Past, Cost] = {(0,): nothing}
    ways: list[dict[Past, Past]] = []
    past: Past
    for _ in range(num_computed - (not free_end)):
        reached: dict[Past, Cost] = {}
        came_from: dict[Past, Past] = {}
        for past, cost in best.items():
            for there in range(past[-1] + 1, min(past[-1] + max_gap, end) + 1):
                state, total = (*past, there)[-memory:], extend(cost, past, there)
                if state not in reached or total < reached[state]:
                    reached[state], came_from[state] = total, past
        best = reached
        ways.append(came_from)
    state = min((past for past in best if past[-1] == end), key=lambda past: best[past])
    cost, reversed_path = best[state], [state[-1]]
    for came_from in reversed(ways):
        state = came_from[state]
        reversed_path.append(state[-1])
    return tuple(reversed(reversed_path[1:] if free_end else reversed_path)), cost
