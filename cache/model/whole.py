"""Where sites that keep latents work when a step makes several model calls that overlap otherwise at each step: around all of them together."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Whole(nn.Module):
    """Called as a transformer is, with the latents of all calls together, and returns what is made of them: the calls' outputs, fused."""

    def forward(self, hidden_states: Tensor, predict: Callable[[Tensor], Tensor], *, return_dict: bool = False) -> tuple[Tensor]:
        assert not return_dict, "its callers take tuples"
        return (predict(hidden_states),)
