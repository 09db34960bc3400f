"""How both branches' changes add up, and what that does to the film (RA-CFGCache; formulas re-derived from its text)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from ....cache import Recipe
from ....cache.calibration.path import Floats
from ....cache.calibration.recorder import Sight
from ...loop.render import Renderer
from ...take import Take
from ..measure import change, measure_skips, record_take
from ..method import Measured, Method

EXPONENTS = np.arange(0.25, 16.25, 0.25)


def guided_changes(cond: Floats, uncond: Floats, guidance_scale: float, correlation: float) -> Floats:
    """r of each step, [steps]: sqrt((1 - s)^2 r_u^2 + s^2 r_c^2 + 2 s (1 - s) rho r_u r_c)."""
    s = guidance_scale
    squared = (1 - s) ** 2 * uncond**2 + s**2 * cond**2 + 2 * s * (1 - s) * correlation * uncond * cond
    return np.sqrt(np.maximum(squared, 0.0))


def fit_gain(gains: Floats) -> tuple[float, float, float]:
    """lambda, alpha and beta of g_k = lambda (1 - k / T)^alpha + beta: least squares, alpha out of EXPONENTS.

    gains: [steps], NaN where none was measured.
    """
    left = 1 - np.arange(len(gains)) / len(gains)
    measured = ~np.isnan(gains)
    best: tuple[float, tuple[float, float, float]] | None = None
    for exponent in EXPONENTS:
        terms = np.stack((left[measured] ** exponent, np.ones(measured.sum())), axis=1)
        (gain, offset), *_ = np.linalg.lstsq(terms, gains[measured], rcond=None)
        error = float(np.square(terms @ (gain, offset) - gains[measured]).sum())
        if best is None or error < best[0]:
            best = (error, (float(gain), float(exponent), float(offset)))
    assert best is not None
    return best[1]


def measure(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    """A step's gain is what skipping it alone does to the film, by the guided change that the trigger would have seen there."""
    series = [record_take(renderer, take, recipe) for take in takes]
    branches = [tuple(next(sights for key, sights in one.items() if key[1] == branch) for branch in ("cond", "uncond")) for one in series]
    correlation = float(np.mean([_mean_cosine(cond, uncond) for cond, uncond in branches]))
    scale = takes[0].guidance_scale
    gains = []
    for take, pair in zip(takes, branches, strict=True):
        cond, uncond = (np.array([change(before, now, "probe") for before, now in pairwise(sights)]) for sights in pair)
        skips = measure_skips(renderer, take, recipe, max_gap=2)
        gains.append(np.diagonal(skips, offset=2) / guided_changes(cond, uncond, scale, correlation)[:-1])
    measured = np.full(takes[0].num_inference_steps, np.nan)
    measured[1:-1] = np.mean(gains, axis=0)
    gain, exponent, offset = fit_gain(measured)
    fitted = {"guidance_scale": scale, "correlation": correlation, "gain": gain, "exponent": exponent, "offset": offset}
    return lambda _: [{"trigger": fitted}]


def _mean_cosine(cond: list[Sight], uncond: list[Sight]) -> float:
    """The mean cosine between the changes of both branches' features from step to step."""
    a, b = (torch.stack([(now.feature - before.feature).flatten() for before, now in pairwise(sights)]) for sights in (cond, uncond))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1).mean())


METHOD = Method(measure, any_steps=True)
