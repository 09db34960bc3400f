"""Schedules that fit a model: of the sigmas of uncached takes those at which a sampler with fewer steps comes closest to their films.

A sampler's latents are linear in the noise and the model's outputs. Of steps that are chosen from a take's own, where the outputs are known,
what the sampler makes of them alone is known as well, and so are its differences from the take's latents, at each of these steps and at the
end: their Gram matrix gives the mean squares. Steps are moved while that makes the differences smaller; what the model does with latents that
differ is left to renderings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import numpy as np

from ..sampler.linear_map import linear_map
from ..schedule.put import set_sigmas
from .path import Floats, Past
from .plan import moved_steps
from .takes import Measured

_POWERS = (0.0, 0.5, 1.0)
_ON_THE_WAY = 0.25  # how much a difference counts at a step, where the sampler still makes up for part of it, of one at the end
_SWEEPS = 12


def schedules(measured: Measured, starts: Iterable[Past]) -> dict[Past, str]:
    """Choices of steps, and why each is one: the best of the starts, and what moving its steps leads to, for several weights of early differences."""
    found: dict[Past, str] = {}
    known = list(starts)
    for power in _POWERS:
        cost = _cost(measured, power)
        best = moved_while_better(min(known, key=cost), cost, len(measured.responses))
        found.setdefault(best, f"what the sampler makes of fewer steps, times the growth of early errors to the power {power:g}")
    return found


def moved_while_better(start: Past, cost: Callable[[Past], float], num_steps: int) -> Past:
    """Where single moves of steps lead to, each of which makes the cost smaller."""
    best, least = start, cost(start)
    for _ in range(_SWEEPS):
        before = best
        for by in (1, -1, 2, -2, 4, -4):
            for steps in moved_steps(best, num_steps, (by,)):
                if (found := cost(steps)) < least:
                    best, least = steps, found
                    break
        if best == before:
            break
    return best


def _cost(measured: Measured, power: float) -> Callable[[Past], float]:
    """The mean square of a sampler's differences from the takes, by the steps that it is given."""
    known: dict[Past, float] = {}
    whole = measured.sampler.latents
    grown = _ON_THE_WAY * measured.growth**power

    def cost(steps: Past) -> float:
        if steps not in known:
            chosen = [0, *(1 + step for step in steps)]
            different = -whole[[*steps, len(whole) - 1]]
            different[:, chosen] += sampler_at(measured.scheduler, measured.sigmas[list(steps)])
            squares = np.einsum("ki,ij,kj->k", different, measured.gram, different)
            known[steps] = float(squares[-1] + grown[list(steps)] @ squares[:-1])
        return known[steps]

    return cost


def sampler_at(scheduler: Any, sigmas: Floats) -> Floats:
    """[sigmas + 1, sigmas + 1]: what the latents before each step, and at the end, are made of; scheduler: at the start of a take."""
    fewer = deepcopy(scheduler)
    fewer.set_timesteps(len(sigmas))
    set_sigmas(fewer, sigmas.tolist())
    return linear_map(fewer).latents
