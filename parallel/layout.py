"""Which tokens each rank holds. Pure arithmetic: no process groups, no models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import Tensor


@dataclass(frozen=True)
class EvenLayout:
    """`num_tokens` in contiguous runs over `num_ranks`; the first ranks hold one more where it does not come out even."""

    num_tokens: int
    num_ranks: int

    @cached_property
    def counts(self) -> tuple[int, ...]:
        share, rest = divmod(self.num_tokens, self.num_ranks)
        return tuple(share + (rank < rest) for rank in range(self.num_ranks))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        return (0, *accumulate(self.counts))[:-1]

    def shard(self, tokens: Tensor, rank: int, dim: int) -> Tensor:
        """The part of `tokens` (whole along `dim`) that `rank` holds; a view."""
        if tokens.shape[dim] != self.num_tokens:
            raise ValueError(f"Expected {self.num_tokens} tokens along dim {dim}, got a tensor of shape {tuple(tokens.shape)}.")
        return tokens.narrow(dim, self.offsets[rank], self.counts[rank])
