"""How both branches' changes add up, and what that does to the film (RA-CFGCache; formulas re-derived from its text)."""

from __future__ import annotations

import numpy as np

from .path import Floats

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
