"""Which steps to compute so that linear forecasts of the skipped ones harm the film least: dynamic programming over measured takes.

The idea of LeMiCa (arXiv 2511.00090) and MeanCache (arXiv 2601.19961) with our predictor inside, re-derived. Let p < i < j be computed steps
with no other computed between them. The steps that are skipped between i and j put the error
D(p, i, j) = sum_{s=i+1}^{j-1} (v_i + a (v_i - v_p) (s - i) / (i - p) - v_s) R_s
into the film: v are the velocities of an uncached take, a is the share of the slope that the forecast believes in, and R_s is how much the
take's end changes with the velocity of step s (of Euler's sampler, sigma_{s+1} - sigma_s). The end of the take
closes the last gap as a computed step would, so that the last step need not be computed.

Once step j is computed the predictor corrects part of D, which the choice of steps ignores: with what remains of D instead, films were as good
with a third of the steps computed and worse with a fifth. How much of the bend through three computed steps that correction believes in is
fitted for each gap, so that the least of D remains. D is linear in the velocities: their Gram matrix is enough to work out its mean square.
What an error does to the film depends on when it is made: later steps let early errors grow and reduce late ones, by factors that are measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ....cache import Recipe
from ....cache.calibration.amending import amended_share
from ....cache.predictors.predictor import damped_weights, difference_weights, lagrange_weights
from ....cache.sampler.linear_map import LinearMap
from ...loop.render import Renderer
from ...take import Take
from ..measure import measure_growth, measure_sampler, measure_velocities
from ..method import Changes, Measured, Method, Setting
from ..path import Floats, Past, cheapest_path

MAX_GAP = 12
_MAX_BENDING = 2.0
DAMPINGS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class PlannedSteps:
    """computed: these steps, ascending, the take's first among them. damping: for each step of the take, the share of the slope to believe in
    during the gap that starts there. bending: the share of the bend to believe in when that gap is corrected. cost: the film's mean squared
    error without corrections, summed over all gaps.
    """

    computed: tuple[int, ...]
    damping: tuple[float, ...]
    bending: tuple[float, ...]
    cost: float


def plan_steps(gram: Floats, responses: Floats, growth: Floats, num_computed: int, *, max_gap: int = MAX_GAP) -> PlannedSteps:
    """The cheapest choice of `num_computed` steps.

    gram: [steps, steps], mean products of the velocities of two steps, per latent value. responses: [steps], how much the take's end changes
    with each step's velocity, the others left as they are. growth: [steps], mean square of the film's real change by that. max_gap: the longest
    way from one computed step to the next, or to the take's end. Raises ValueError if so few steps cannot be spread over the take.
    """
    costs = _EdgeCosts(gram, responses)

    def extend(cost: float, past: Past, there: int) -> float:
        return cost + growth[there - 1] * costs.least(past, there)[0]

    num_steps = len(gram)
    computed, cost = cheapest_path(num_steps, num_computed, max_gap=max_gap, memory=2, nothing=0.0, extend=extend, free_end=True)
    damping, bending = [0.0] * num_steps, [0.0] * num_steps
    for number, there in enumerate((*computed[1:], num_steps), start=1):
        past = computed[max(0, number - 2) : number]
        damping[past[-1]] = costs.least(past, there)[1]
        if there < num_steps:  # the take's end is no step that could make up for the last gap
            bending[past[-1]] = _bending(past, there, gram, responses)
    return PlannedSteps(computed, tuple(damping), tuple(bending), cost)


class _EdgeCosts:
    """Mean squared D of each edge, and the damping that makes it least."""

    def __init__(self, gram: Floats, responses: Floats) -> None:
        self._gram, self._responses = gram, responses
        self._known: dict[tuple[Past, int], tuple[float, float]] = {}

    def least(self, past: Past, there: int) -> tuple[float, float]:
        """past: one or two computed steps; of one there is no slope."""
        edge = (past, there)
        if edge not in self._known:
            self._known[edge] = min(self._cost(past, there, damping) for damping in (DAMPINGS if len(past) > 1 else (0.0,)))
        return self._known[edge]

    def _cost(self, past: Past, there: int, damping: float) -> tuple[float, float]:
        skipped = range(past[-1] + 1, there)
        weights = sum((self._responses[step] * _forecast_error(past, step, damping, len(self._gram)) for step in skipped), np.zeros(len(self._gram)))
        return float(weights @ self._gram @ weights), damping


def _bending(past: Past, there: int, gram: Floats, responses: Floats) -> float:
    """What share of the bend leaves least of the skipped steps' error; of one computed step before the gap there is no bend."""
    if len(past) < 2:
        return 0.0
    here, straight, bent = past[-1], np.zeros(len(gram)), np.zeros(len(gram))
    for step in range(here + 1, there):
        straight[[here, there]] += responses[step] * np.array(lagrange_weights((here, there), step))
        straight[step] -= responses[step]
        bent[[*past, there]] += responses[step] * (step - here) * (step - there) * np.array(difference_weights((*past, there), 2))
    size = bent @ gram @ bent
    return float(np.clip(-(bent @ gram @ straight) / size, 0.0, _MAX_BENDING)) if size > 0 else 0.0


def _forecast_error(past: Past, at: int, damping: float, num_steps: int) -> Floats:
    """What the forecast for step `at` is off by, as weights of all steps' velocities."""
    weights = np.zeros(num_steps)
    weights[list(past)] = damped_weights(past, at, damping)
    weights[at] -= 1.0
    return weights


def forecast_errors(grams: Floats, plan: PlannedSteps) -> list[float]:
    """For each step, the relative error (root mean square) of the forecast that a computed one finds; 0 for others and the first.

    grams: [branches, steps, steps], mean products of each branch's velocities; the branches' errors are averaged.
    """
    errors = [0.0] * grams.shape[1]
    for number, there in enumerate(plan.computed[1:], start=1):
        past = plan.computed[max(0, number - 2) : number]
        weights = _forecast_error(past, there, plan.damping[past[-1]], len(errors))
        errors[there] = float(np.mean([np.sqrt(weights @ gram @ weights / gram[there, there]) for gram in grams]))
    return errors


def amending(sampler: LinearMap, sigmas: Floats, computed: Past) -> list[float]:
    """For each step of the take, the share of the correction for the gap that starts there; 1 where none does."""
    shares = [1.0] * len(sampler.responses)
    for here, there in pairwise(computed):
        if there > here + 1:
            shares[here] = amended_share(sampler, sigmas.tolist(), here, there)
    return shares


def measure(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    velocities = measure_velocities(renderer, takes, recipe)
    growth = measure_growth(renderer, takes)
    sampler = measure_sampler(renderer, takes[0])

    def numbers(setting: Setting) -> Changes:
        plan = plan_steps(velocities.guided, np.array(sampler.responses), growth, setting.computed)
        errors = forecast_errors(velocities.branches, plan)
        return [
            {
                "trigger": {"computed": list(plan.computed), "expected_errors": errors},
                "predictor": {
                    "damping_by_step": list(plan.damping),
                    "responses": sampler.responses,
                    "bending_by_step": list(plan.bending),
                    "amending_by_step": amending(sampler, velocities.sigmas, plan.computed),
                },
            }
        ]

    return numbers


METHOD = Method(measure, max_gap=MAX_GAP, free_end=True, linear=True, guided=True)
