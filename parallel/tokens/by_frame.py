"""Tokens that a rank holds of a window, dealt out anew so that each rank holds an even share of every frame: wherever a window begins, a frame's
tokens lie on the same ranks. Knows layouts and axes; knows nothing of what the tokens are for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..groups.axis import Axis
from .layout import Layout


class ByFrame:
    """tokens_a_frame: of a latent frame, patched. whole_frames: whether ranks hold whole frames of a window, and not even shares of it."""

    def __init__(self, axis: Axis, tokens_a_frame: int, *, whole_frames: bool) -> None:
        self._axis, self._tokens_a_frame, self._whole_frames = axis, tokens_a_frame, whole_frames

    def split(self, tokens: Tensor, num_frames: int) -> list[Tensor]:
        """[batch, this rank's tokens of the window, dim] -> of each frame, this rank's share, [batch, share, dim], in memory of its own. One
        collective.
        """
        homes = self._homes(num_frames)
        own = homes[self._axis.rank]
        parts = [tokens[:, own == rank] for rank in range(self._axis.size)]
        counts = [int((home == self._axis.rank).sum()) for home in homes]
        batch, _, dim = tokens.shape
        shares = self._axis.all_to_all(parts, [torch.Size((batch, count, dim)) for count in counts], dim=1)
        return (
            [share.clone(memory_format=torch.contiguous_format) for share in shares.chunk(num_frames, dim=1)]
            if shares.numel()
            else ([shares.clone() for _ in range(num_frames)])
        )

    def join(self, shares: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        homes = self._homes(len(shares))
        own = homes[self._axis.rank]
        counts = [int((home == self._axis.rank).sum()) for home in homes]
        parts = list(torch.cat(list(shares), dim=1).split(counts, dim=1))
        batch, dim = shares[0].shape[0], shares[0].shape[2]
        sizes = [int((own == rank).sum()) for rank in range(self._axis.size)]
        received = self._axis.all_to_all(parts, [torch.Size((batch, size, dim)) for size in sizes], dim=1)
        order = torch.cat([(own == rank).nonzero()[:, 0] for rank in range(self._axis.size)]).to(received.device)
        return torch.empty_like(received).index_copy_(1, order, received)

    def _homes(self, num_frames: int) -> list[Tensor]:
        """For each rank, and each token of a window that it holds while the model runs: the rank that holds it frame by frame."""
        ranks, each = self._axis.size, self._tokens_a_frame
        running = Layout.frames(num_frames, each, ranks) if self._whole_frames and num_frames > 1 else Layout.even(num_frames * each, ranks)
        of_frame = torch.arange(ranks).repeat_interleave(torch.tensor(Layout.even(each, ranks).counts))
        return list(of_frame.repeat(num_frames).split(running.counts))
