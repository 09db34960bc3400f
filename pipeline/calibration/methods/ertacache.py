"""Which steps can reuse what the model adds to the latents (ERTACache, arXiv 2508.21091; the offline set, re-derived).

Along a full take, with r = v - x and c the last computed step, step s is reused if ||r_c - r_s||_1 / ||r_s||_1 < lambda.
"""

from __future__ import annotations

import numpy as np
import torch

from ....cache import Recipe
from ....cache.calibration.path import Floats
from ...loop.render import Renderer
from ...take import Take
from ..measure import record_take
from ..method import Measured, Method


def harmful_steps(changes: Floats, threshold: float) -> tuple[int, ...]:
    """The steps to compute, the first and the last of the take among them.

    changes: [steps, steps], relative change of r from step to step: ||r_c - r_s||_1 / ||r_s||_1 at [c, s]. threshold: lambda.
    """
    computed = [0]
    for step in range(1, len(changes)):
        if changes[computed[-1], step] >= threshold or step == len(changes) - 1:
            computed.append(step)
    return tuple(computed)


def measure(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    changes = []
    for take in takes:
        for sights in record_take(renderer, take, recipe).values():
            added = torch.stack([sight.feature.flatten() for sight in sights])
            changes.append((torch.cdist(added, added, p=1) / added.abs().sum(dim=1)).double().numpy())
    mean = np.mean(changes, axis=0)
    return lambda setting: [{"trigger": {"computed": list(harmful_steps(mean, setting.threshold))}}]


METHOD = Method(measure, threshold=0.08)
