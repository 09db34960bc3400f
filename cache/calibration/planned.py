"""Which steps to compute so that linear forecasts of the rest cost least: dynamic programming over full takes.

LeMiCa's (arXiv 2511.00090) and MeanCache's (arXiv 2601.19961) idea with the predictor inside, re-derived. For computed steps p < i < j,
neighbours in the plan, the skipped steps put the error
D(p, i, j) = sum_{s=i+1}^{j-1} (v_i + a (v_i - v_p) (s - i) / (i - p) - v_s) (sigma_{s+1} - sigma_s)
into the latents. D is linear in the velocities, so that its mean square needs no more of them than their Gram matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_GAP = 9
DAMPINGS = (0.0, 0.25, 0.5, 0.75, 1.0)

Floats = NDArray[np.float64]
_State = tuple[int, int]


@dataclass(frozen=True)
class Plan:
    """computed: steps, ascending, the first and the last among them. damping: for each step of the take, the share of the slope to
    believe in the gap that starts there. cost: mean squared error that the skipped steps put into the latents, all gaps added up.
    """

    computed: tuple[int, ...]
    damping: tuple[float, ...]
    cost: float


def check_budget(num_steps: int, num_computed: int, max_gap: int = MAX_GAP) -> None:
    """Raise ValueError, with the mend, if so few computed steps cannot be spread over a take."""
    fewest = 1 + -(-(num_steps - 1) // max_gap)
    if not fewest <= num_computed <= num_steps:
        raise ValueError(f"{num_computed} of {num_steps} steps is no plan; compute between {fewest} and {num_steps}.")


def plan_steps(gram: Floats, sigmas: Floats, num_computed: int, *, max_gap: int = MAX_GAP) -> Plan:
    """The cheapest plan that computes `num_computed` of the steps.

    gram: [steps, steps], mean products of the velocities of two steps, per latent value. sigmas: [steps + 1]. max_gap: the longest
    way from one computed step to the next. Raises ValueError if so few steps cannot be spread over the take.
    """
    num_steps = len(gram)
    check_budget(num_steps, num_computed, max_gap)
    best: dict[_State, float] = {(-1, 0): 0.0}
    ways: list[dict[_State, _State]] = []
    costs = _EdgeCosts(gram, np.diff(sigmas))
    for _ in range(num_computed - 1):
        reached: dict[_State, float] = {}
        came_from: dict[_State, _State] = {}
        for (before, here), cost in best.items():
            for there in range(here + 1, min(here + max_gap, num_steps - 1) + 1):
                total = cost + costs.least(before, here, there)[0]
                if total < reached.get((here, there), np.inf):
                    reached[(here, there)], came_from[(here, there)] = total, (before, here)
        best = reached
        ways.append(came_from)
    ends = {state: cost for state, cost in best.items() if state[1] == num_steps - 1}
    state = min(ends, key=lambda end: ends[end])
    return _trace_back(state, ends[state], ways, costs, num_steps)


def _trace_back(state: _State, cost: float, ways: list[dict[_State, _State]], costs: _EdgeCosts, num_steps: int) -> Plan:
    computed, damping = [state[1]], [0.0] * num_steps
    for came_from in reversed(ways):
        before = came_from[state]
        damping[before[1]] = costs.least(before[0], before[1], state[1])[1]
        computed.append(before[1])
        state = before
    return Plan(tuple(reversed(computed)), tuple(damping), cost)


class _EdgeCosts:
    """Mean squared D of each edge, and the damping that makes it least."""

    def __init__(self, gram: Floats, strides: Floats) -> None:
        self._gram, self._strides = gram, strides
        self._known: dict[tuple[int, int, int], tuple[float, float]] = {}

    def least(self, before: int, here: int, there: int) -> tuple[float, float]:
        """before: -1 where nothing was computed before `here`, so that there is no slope."""
        edge = (before, here, there)
        if edge not in self._known:
            self._known[edge] = min(self._cost(edge, damping) for damping in (DAMPINGS if before >= 0 else (0.0,)))
        return self._known[edge]

    def _cost(self, edge: tuple[int, int, int], damping: float) -> tuple[float, float]:
        """D as weights of the velocities of all steps, squared by the Gram matrix."""
        before, here, there = edge
        skipped = np.arange(here + 1, there)
        weights = np.zeros(len(self._gram))
        weights[skipped] -= self._strides[skipped]
        weights[here] += self._strides[skipped].sum()
        if damping:
            slope = damping * ((skipped - here) * self._strides[skipped]).sum() / (here - before)
            weights[here] += slope
            weights[before] -= slope
        return float(weights @ self._gram @ weights), damping
