"""Fusing what a model predicts in the calls of a step into one prediction for all frames of the round."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...parallel.groups.axis import Axis
from ..timelines.timeline import Call, Round

_ALONE = Axis("window")


def fuse(of: Round, latents: Tensor, predict: Callable[[Tensor, Call], Tensor], axis: Axis = _ALONE, step: int = 0) -> Tensor:
    """The weighted mean of `predict(the call's frames, call)` over the calls of a step of the round, which the ranks of `axis` share out.

    latents and result: [batch, channels, latent frames of the round, height, width]; the result is fp32, the same on every rank.
    """
    calls = of.calls_at(step)
    if len(calls) == 1:
        return predict(latents, calls[0]).float()
    total = torch.zeros_like(latents, dtype=torch.float32)
    weight = torch.zeros(len(of.frames), device=latents.device)
    for index, call in enumerate(calls):
        here = slice(call.frames.start - of.frames.start, call.frames.stop - of.frames.start)
        counts = torch.tensor(call.weights, device=latents.device)
        weight[here] += counts
        if index % axis.size == axis.rank:
            total[:, :, here] += predict(latents[:, :, here], call).float() * counts[:, None, None]
    return axis.sum(total) / weight[:, None, None]
