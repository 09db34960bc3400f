"""How much of a gap's error to make up for at the step that ends it, as the model itself has seen the error by then.

The forecasts f_s since step i put the error D = sum_s R_s (f_s - v_s) into the film, and d = sum_s r_s (f_s - v_s) into the latents that the model
is called with at step j, where r_s is their response (d = D with Euler's sampler; a multistep sampler has not made all of the forecasts by
then). The clean latents x - sigma v that a flow model points to hardly change with d, so that the model's output is off by d / sigma_j: it leads
back to where the latents should be, and mends R_j d / sigma_j of D without any correction. The predictor, whose m_s lean on v_j by
(s - i) / (j - i), finds D - P d / sigma_j instead of D, with P = sum_s R_s (s - i) / (j - i). So it is to make up for the share
(D + R_j d / sigma_j) / (D - P d / sigma_j) of what it finds; R and P are below 0, as sigma falls. Forecasts go astray the farther the longer
ago the last computed step is: d / D is taken as that of errors which grow evenly.

On the demo model this is worth 0.5 to 1 dB at 9 and 12 of 50 steps, most of it by the gaps at the end, where sigma is small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..sampler.linear_map import LinearMap

_MOST_ASTRAY = 8.0  # times what is made up for: how far the latents may go astray for it meanwhile


def amended_share(sampler: LinearMap, sigmas: Sequence[float], here: int, there: int) -> float:
    """Of the correction for the steps between the computed steps `here` and `there`, the share to apply, from 0 to 1.

    sigmas: of the take's steps. A multistep sampler may use an output first one way and then the other, so that little of it reaches the take's
    end, or even the opposite (UniPC of order 3 near the end, order 2 with few steps and a large flow shift): to make up for a gap there would throw
    the latents off by many times its error for as long as the sampler remembers the output, and less of it, or nothing, is made up for.
    """
    skipped, responses = np.arange(here + 1, there), np.array(sampler.responses)
    growing = (skipped - here) / (there - here)
    leaning, seen, own = float(responses[skipped] @ growing), float(sampler.latents[there, 1 + skipped] @ growing), float(responses[there])
    if leaning * own <= 0:
        return 0.0
    astray = float(np.abs(sampler.latents[:, 1 + there]).max()) / abs(own)
    mended = seen / leaning / sigmas[there]
    share = (1 - abs(own) * mended) / (1 + abs(leaning) * mended)
    return float(np.clip(share * min(1.0, _MOST_ASTRAY / astray), 0.0, 1.0))
