"""A schedule for one kind of module, from how fast its output changes (SmoothCache, arXiv 2411.10510)."""

from __future__ import annotations

from .path import Floats

LOOK_BACK = 3


def smooth_steps(errors: Floats, threshold: float) -> tuple[int, ...]:
    """The steps to compute, the first and the last of the take among them: behind each as many are skipped as the threshold allows.

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
