"""A decoder's frames spread over ranks by rows, exactly: convolutions exchange edges, norms exchange sums."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .groups.axis import Axis
from .tokens.layout import Layout


class RowShards:
    """Makes a convolutional decoder work on some rows of every frame, [batch, channels, (frames,) rows, width], until it is released.

    What the ranks compute together is what one computes alone, up to rounding: 3x3 convolutions get their missing edge rows from
    the neighbours, group norms compute their statistics over all rows, and modules that look at whole frames (`whole`: attention,
    say) are run on the gathered rows by everybody. Where a frame has fewer rows than there are ranks, all ranks decode all of it.
    """

    def __init__(self, axis: Axis, decoder: nn.Module, *, whole: tuple[type[nn.Module], ...] = ()) -> None:
        """Raises ValueError, with the decoder as it was, for convolutions that reach further than one row up and down."""
        self._axis = axis
        self._layout: Layout | None = None
        with ExitStack() as replaced:
            self._replace_forwards(decoder, whole, replaced)
            self._replaced = replaced.pop_all()

    def release(self) -> None:
        """Give all modules of the decoder their own forwards back."""
        self._replaced.close()

    def shard(self, latents: Tensor) -> Tensor:
        """This rank's rows of `latents`, whose rows are the last dim but one; decoding of these starts with it."""
        num_rows = latents.shape[-2]
        self._layout = Layout.even(num_rows, self._axis.size) if num_rows >= self._axis.size else None
        return latents if self._layout is None else self._layout.shard(latents, self._axis.rank, dim=latents.ndim - 2)

    def gather(self, frames: Tensor) -> Tensor:
        """The rows of all ranks, of what the decoder made of this rank's; it may be any whole multiple of the latents' size."""
        return frames if self._layout is None else self._axis.all_gather(frames, self._scaled(frames).counts, dim=frames.ndim - 2)

    def _scaled(self, frames: Tensor) -> Layout:
        assert self._layout is not None
        factor = frames.shape[-2] // self._layout.counts[self._axis.rank]
        return Layout(tuple(count * factor for count in self._layout.counts))

    def _replace_forwards(self, module: nn.Module, whole: tuple[type[nn.Module], ...], replaced: ExitStack) -> None:
        if isinstance(module, whole):
            _replace(module, "forward", partial(self._run_whole, module.forward), replaced)
            return
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.kernel_size[-2] > 1:
            if module.kernel_size[-2] != 3 or module.stride[-2] != 1:
                raise ValueError(f"Rows cannot be shared through a convolution of {module.kernel_size[-2]} rows and stride {module.stride[-2]}.")
            _replace(module, "_conv_forward", partial(self._convolve, module, module._conv_forward), replaced)
        if isinstance(module, nn.GroupNorm):
            _replace(module, "forward", partial(self._normalise, module, module.forward), replaced)
        for child in module.children():
            self._replace_forwards(child, whole, replaced)

    def _run_whole(self, forward: Callable[..., Any], rows: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = forward(self.gather(rows), *args, **kwargs)
        return output if self._layout is None else self._scaled(rows).shard(output, self._axis.rank, dim=output.ndim - 2)

    def _convolve(self, module: nn.Conv2d | nn.Conv3d, forward: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x: padded already, as causal video convolutions pad their own inputs, or to be padded with zeros here. Its outermost rows, which
        are padding, become the edges of the neighbours' rows.
        """
        if self._layout is None:
            return forward(x, weight, bias)
        padding = list(module.padding)
        if padding[-2]:
            x = F.pad(x, (0, 0, 1, 1))
            padding[-2] = 0
        above, below = self._axis.swap_edges(x[..., 1:2, :], x[..., -2:-1, :])
        if above is not None:
            x[..., :1, :] = above
        if below is not None:
            x[..., -1:, :] = below
        convolve: Callable[..., Tensor] = F.conv2d if isinstance(module, nn.Conv2d) else F.conv3d
        return convolve(x, weight, bias, module.stride, padding, module.dilation, module.groups)

    def _normalise(self, module: nn.GroupNorm, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self._layout is None:
            return forward(x)
        grouped = x.unflatten(1, (module.num_groups, -1)).flatten(2)
        first, second = grouped.sum(-1, dtype=torch.float64), grouped.float().square().sum(-1, dtype=torch.float64)
        sums = self._axis.sum(torch.stack((first, second, torch.full_like(first, grouped.shape[-1]))))
        mean, square = sums[0] / sums[2], sums[1] / sums[2]
        scale = torch.rsqrt(square - mean.square() + module.eps)
        normal = ((grouped - mean[..., None].to(x.dtype)) * scale[..., None].to(x.dtype)).view_as(x)
        shape = (1, -1, *(1,) * (x.ndim - 2))
        return normal if module.weight is None else normal * module.weight.view(shape) + module.bias.view(shape)


def _replace(module: nn.Module, name: str, ours: Callable[..., Tensor], replaced: ExitStack) -> None:
    """Put `ours` in the place of a method of this one module; `replaced` undoes it."""
    own = vars(module).get(name)  # what somebody else has put there
    if own is None:
        replaced.callback(delattr, module, name)
    else:
        replaced.callback(setattr, module, name, own)
    setattr(module, name, ours)
