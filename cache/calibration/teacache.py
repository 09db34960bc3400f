"""From the change of a probe to that of what is reused (TeaCache, arXiv 2411.19108, eq. 6)."""

from __future__ import annotations

import numpy as np

from .path import Floats

DEGREE = 4


def rescaling(probes: Floats, features: Floats) -> list[float]:
    """Coefficients, highest power first, of the polynomial that takes the probe's relative change to the feature's: least squares.

    probes, features: [changes], relative L1 changes from one step to the next, of all takes and branches. Of lower degree than 4 where
    there are too few changes to tell. Raises ValueError where the probe never changes.
    """
    degree = min(DEGREE, len(np.unique(probes)) - 1)
    if degree < 1:
        raise ValueError("The probe's change is the same at every step, so that nothing follows from it; calibrate with more steps or another probe.")
    return [float(coefficient) for coefficient in np.polyfit(probes, features, degree)]
