"""From the change of a probe to that of what is reused (TeaCache, arXiv 2411.19108, eq. 6)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ....cache import Recipe
from ....cache.calibration.path import Floats
from ...loop.render import Renderer
from ...take import Take
from ..measure import change, record_take
from ..method import Measured, Method

DEGREE = 4


def rescaling(probes: Floats, features: Floats) -> list[float]:
    """Coefficients, highest power first, of the polynomial that turns the probe's relative change into the feature's: least squares.

    probes, features: [changes], relative L1 changes from one step to the next, of all takes and branches. Of lower degree than 4 where
    there are too few changes to tell. Raises ValueError where the probe never changes.
    """
    degree = min(DEGREE, len(np.unique(probes)) - 1)
    if degree < 1:
        raise ValueError("The probe's change is the same at every step, so that nothing follows from it; calibrate with more steps or another probe.")
    return [float(coefficient) for coefficient in np.polyfit(probes, features, degree)]


def measure(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    pairs = [pair for take in takes for sights in record_take(renderer, take, recipe).values() for pair in pairwise(sights)]
    probes, features = ([change(before, now, what) for before, now in pairs] for what in ("probe", "feature"))
    coefficients = rescaling(np.array(probes), np.array(features))
    return lambda _: [{"trigger": {"rescale": coefficients}}]


METHOD = Method(measure, any_steps=True)
