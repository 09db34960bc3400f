"""How the size of the stack's residual goes from step to step (MagCache, arXiv 2506.09045)."""

from __future__ import annotations

import numpy as np

from .path import Floats


def magnitude_ratios(norms: Floats) -> list[float]:
    """gamma of each step: the mean over tokens, and over the takes and their branches, of ||r_s|| / ||r_(s-1)||; 1 at the first.

    norms: [series, steps, tokens], ||r_s|| of each token; a series is one branch of one take.
    """
    ratios = (norms[:, 1:] / np.maximum(norms[:, :-1], np.finfo(np.float64).tiny)).mean(axis=(0, 2))
    return [1.0, *(round(float(ratio), 6) for ratio in ratios)]
