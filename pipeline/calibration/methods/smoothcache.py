"""A schedule for one kind of module, from how fast its output changes (SmoothCache, arXiv 2411.10510)."""

from __future__ import annotations

from collections import deque

import numpy as np

from ....cache import Recipe
from ....cache.calibration.path import Floats
from ....cache.calibration.recorder import Key, Sight
from ....cache.sums import l1_sums, ratio
from ...loop.render import Renderer
from ...take import Take
from ..measure import record_steps
from ..method import Measured, Method

LOOK_BACK = 3


def smooth_steps(errors: Floats, threshold: float) -> tuple[int, ...]:
    """The steps to compute, the first and the last of the take among them: after each as many are skipped as the threshold allows.

    errors: [look-back, steps], ||o_(s-k) - o_s||_1 / ||o_s||_1 at [k - 1, s], averaged over blocks: what it does to reuse at step s what
    step s - k computed. threshold: alpha, the most of it to allow.
    """
    look_back, num_steps = errors.shape
    computed, step = [], 0
    while step < num_steps:
        computed.append(step)
        farthest = min(look_back, max(0, num_steps - 2 - step))
        skipped = next((k for k in range(farthest, 0, -1) if errors[k - 1, step + k] <= threshold), 0)
        step += skipped + 1
    return tuple(computed)


def measure(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    sums = np.zeros((2, len(recipe.parts), LOOK_BACK, takes[0].num_inference_steps))
    for take in takes:
        past: deque[dict[Key, Sight]] = deque(maxlen=LOOK_BACK)
        for step, sights in enumerate(record_steps(renderer, take, recipe)):
            for key, sight in sights.items():
                for back, before in enumerate(reversed(past)):
                    sums[:, key[0], back, step] += (ratio(l1_sums(before[key].feature, sight.feature)), 1)
            past.append(sights)
    errors = sums[0] / np.maximum(sums[1], 1)
    return lambda setting: [{"trigger": {"computed": list(smooth_steps(kind, setting.threshold))}} for kind in errors]


METHOD = Method(measure, threshold=0.15)
