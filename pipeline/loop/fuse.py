"""Fusing what a model predicts for the windows of a take into one prediction for all of it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...parallel.groups.axis import Axis
from ..timeline import Timeline

_ALONE = Axis("window")


def fuse(timeline: Timeline, latents: Tensor, predict_window: Callable[[Tensor, int], Tensor], axis: Axis = _ALONE) -> Tensor:
    """The weighted mean of `predict_window(window latents, window index)` over all windows, which the ranks of `axis` share out.

    latents and result: [batch, channels, latent frames, height, width]; the result is fp32, the same on every rank.
    """
    if len(timeline.windows) == 1:
        return predict_window(latents, 0).float()
    total = torch.zeros_like(latents, dtype=torch.float32)
    weight = torch.zeros(timeline.num_latent_frames, device=latents.device)
    for index, window in enumerate(timeline.windows):
        counts = torch.tensor(window.weights, device=latents.device)
        weight[window.start : window.stop] += counts
        if index % axis.size == axis.rank:
            predicted = predict_window(latents[:, :, window.start : window.stop], index).float()
            total[:, :, window.start : window.stop] += predicted * counts[:, None, None]
    return axis.sum(total) / weight[:, None, None]
