"""Which tokens each rank holds. Pure arithmetic: no process groups, no models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Tokens in contiguous runs over ranks, in order: rank r holds `counts[r]` of them."""

    counts: tuple[int, ...]

    @classmethod
    def even(cls, num_tokens: int, num_ranks: int) -> Layout:
        """Runs that differ by one token at most; the first ranks hold the longer ones."""
        share, rest = divmod(num_tokens, num_ranks)
        return cls(tuple(share + (rank < rest) for rank in range(num_ranks)))

    @classmethod
    def frames(cls, num_frames: int, tokens_a_frame: int, num_ranks: int) -> Layout:
        """Whole frames only, so that a rank's neighbours hold the frames before and after its own; some ranks may hold none."""
        return cls(tuple(count * tokens_a_frame for count in cls.even(num_frames, num_ranks).counts))

    @cached_property
    def num_tokens(self) -> int:
        return sum(self.counts)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        return (0, *accumulate(self.counts))[:-1]

    def overlaps(self, rank: int, other: Layout) -> list[int]:
        """How many of this layout's tokens on `rank` lie on each rank of another layout of the same tokens."""
        start, stop = self.offsets[rank], self.offsets[rank] + self.counts[rank]
        return [max(0, min(stop, begin + count) - max(start, begin)) for begin, count in zip(other.offsets, other.counts, strict=True)]

    def shard(self, tokens: Tensor, rank: int, dim: int) -> Tensor:
        """The part of `tokens` (whole along `dim`) that `rank` holds; a view."""
        if tokens.shape[dim] != self.num_tokens:
            raise ValueError(f"Expected {self.num_tokens} tokens along dim {dim}, got a tensor of shape {tuple(tokens.shape)}.")
        return tokens.narrow(dim, self.offsets[rank], self.counts[rank])
