"""Some of a call's tokens, wherever they lie, shared out evenly over the ranks for a while; and the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..groups.axis import Axis
from .layout import Layout


class Compaction:
    """Chosen tokens of a sharded sequence, split evenly again, so that motion in one corner does not idle the other ranks.

    chosen: [local tokens], bool: which of the tokens on this rank take part. Built by all ranks together (one collective: the
    counts); every `compact` and `restore` is one more. Order is kept: rank r's chosen tokens come after those of rank r - 1.
    """

    def __init__(self, axis: Axis, chosen: Tensor) -> None:
        self._axis = axis
        self._places = chosen.nonzero()[:, 0]
        count = torch.tensor([len(self._places)], device=chosen.device)
        counts = axis.all_gather(count, (1,) * axis.size, dim=0)
        self._scattered = Layout(tuple(counts.tolist()))
        self.layout = Layout.even(self._scattered.num_tokens, axis.size)

    def compact(self, tokens: Tensor, dim: int = 1) -> Tensor:
        """This rank's even share of all chosen tokens; tokens: its shard of the sequence."""
        chosen = tokens.movedim(dim, 0)[self._places]
        return self._move(chosen, self._scattered, self.layout).movedim(0, dim)

    def restore(self, compacted: Tensor, into: Tensor, dim: int = 1) -> Tensor:
        """A copy of `into` (this rank's shard) with its chosen tokens replaced by what became of them."""
        home = self._move(compacted.movedim(dim, 0), self.layout, self._scattered)
        restored = into.movedim(dim, 0).clone()
        restored[self._places] = home
        return restored.movedim(0, dim)

    def _move(self, rows: Tensor, source: Layout, target: Layout) -> Tensor:
        rank = self._axis.rank
        parts = list(rows.split(source.overlaps(rank, target)))
        shapes = [torch.Size((count, *rows.shape[1:])) for count in target.overlaps(rank, source)]
        return self._axis.all_to_all(parts, shapes)
