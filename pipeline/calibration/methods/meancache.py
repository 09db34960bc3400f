"""Which steps to compute so that corrected mean velocities stand in best for the rest (MeanCache, arXiv 2601.19961; re-derived).

The steps i+1 .. j-1, skipped after the computed step i, go on with v_i + 2 (sigma_s - sigma_i) J, where with r some computed steps before
i, and z and v of uncached takes, J = [z_i - z_r - (sigma_i - sigma_r) v_r] / (sigma_i - sigma_r)^2. Latents move by velocities, so that
z_i - z_r, and with it the error D that the gap puts into the latents, is linear in these: their Gram matrix gives its size C = ||D||.
The B steps with the least sum of C^gamma are computed: a high gamma avoids single bad gaps.
"""

from __future__ import annotations

import numpy as np

from ....cache import Recipe
from ....cache.calibration.path import Floats, Past, cheapest_path
from ...loop.render import Renderer
from ...take import Take
from ..measure import measure_velocities
from ..method import Changes, Measured, Method, Setting

MAX_GAP = 9
GAMMA = 5


def plan_mean_velocities(gram: Floats, sigmas: Floats, num_computed: int, *, states_back: int, max_gap: int = MAX_GAP) -> Past:
    """The steps to compute, `num_computed` of them.

    gram: [steps, steps], mean products of the velocities of two steps, per latent value. sigmas: [steps + 1]. states_back: how many
    computed steps r lies before i. Raises ValueError if so few steps cannot be spread over the take.
    """
    known: dict[tuple[Past, int], float] = {}

    def extend(cost: float, past: Past, there: int) -> float:
        edge = (past, there)
        if edge not in known:
            weights = error_weights(past if len(past) > states_back else past[-1:], there, sigmas)
            known[edge] = max(0.0, float(weights @ gram @ weights)) ** (GAMMA / 2)
        return cost + known[edge]

    memory = states_back + 1
    return cheapest_path(len(gram), num_computed, max_gap=max_gap, memory=memory, nothing=0.0, extend=extend)[0]


def error_weights(past: Past, there: int, sigmas: Floats) -> Floats:
    """Weights [steps] of the velocities in the error of the gap from past[-1] to `there`, r being past[0]; without a past, no correction."""
    before, here = past[0], past[-1]
    strides = np.diff(sigmas)
    skipped = np.arange(here + 1, there)
    weights = np.zeros(len(strides))
    weights[skipped] -= strides[skipped]
    weights[here] += strides[skipped].sum()
    if before < here:
        way = sigmas[here] - sigmas[before]
        share = 2 * ((sigmas[skipped] - sigmas[here]) * strides[skipped]).sum() / way**2
        weights[before:here] += share * strides[before:here]
        weights[before] -= share * way
    return weights


def measure(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    states_back = recipe.parts[0].predictor.config.states_back
    velocities = measure_velocities(renderer, takes, recipe)

    def numbers(setting: Setting) -> Changes:
        computed = plan_mean_velocities(velocities.guided, velocities.sigmas, setting.computed, states_back=states_back)
        return [{"trigger": {"computed": list(computed)}}]

    return numbers


METHOD = Method(measure, max_gap=MAX_GAP, guided=True)
