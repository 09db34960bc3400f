"""How the size of the stack's residual goes from step to step (MagCache, arXiv 2506.09045)."""

from __future__ import annotations

import numpy as np

from ....cache import Recipe
from ....cache.calibration.path import Floats
from ...loop.render import Renderer
from ...take import Take
from ..measure import record_take
from ..method import Measured, Method


def magnitude_ratios(norms: Floats) -> list[float]:
    """gamma of each step: the mean over tokens, and over the takes and their branches, of ||r_s|| / ||r_(s-1)||; 1 at the first.

    norms: [series, steps, tokens], ||r_s|| of each token; a series is one branch of one take.
    """
    ratios = (norms[:, 1:] / np.maximum(norms[:, :-1], np.finfo(np.float64).tiny)).mean(axis=(0, 2))
    return [1.0, *(round(float(ratio), 6) for ratio in ratios)]


def measure(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    series = [sights for take in takes for sights in record_take(renderer, take, recipe).values()]
    norms = [[sight.feature[0].double().norm(dim=-1).numpy() for sight in sights] for sights in series]
    ratios = magnitude_ratios(np.array(norms))
    return lambda _: [{"trigger": {"ratios": ratios}}]


METHOD = Method(measure, any_steps=True)
