"""Which steps can reuse what the model adds to the latents (ERTACache, arXiv 2508.21091; the offline set, re-derived).

Along a full take, with r = v - x and c the last computed step, step s is reused if ||r_c - r_s||_1 / ||r_s||_1 < lambda.
"""

from __future__ import annotations

from .path import Floats


def harmful_steps(changes: Floats, threshold: float) -> tuple[int, ...]:
    """The steps to compute, the first and the last of the take among them.

    changes: [steps, steps], relative change of r from step to step: ||r_c - r_s||_1 / ||r_s||_1 at [c, s]. threshold: lambda.
    """
    computed = [0]
    for step in range(1, len(changes)):
        if changes[computed[-1], step] >= threshold or step == len(changes) - 1:
            computed.append(step)
    return tuple(computed)
