"""Turning what each shard measures into numbers that all of them decide from: partial sums, added up in one collective.

Knows neither what is summed nor how many shards there are. A shard that decided from its own numbers could skip blocks that another one
computes, and both would wait for ever in the next exchange of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

import torch
from torch import Tensor

from ..state.segments import Segments

Reduce = Callable[[Tensor], Tensor]


class ByFrame(Protocol):
    """How tokens that shards hold of a window become shares of its frames, which stay where they are when windows move, and back."""

    def split(self, tokens: Tensor, num_frames: int) -> list[Tensor]:
        """[batch, this shard's tokens of the window, dim] -> of each frame, this shard's share, in memory of its own."""

    def join(self, shares: Sequence[Tensor]) -> Tensor:
        """The inverse."""


class Unsharded:
    """Frames where one shard holds all tokens."""

    def split(self, tokens: Tensor, num_frames: int) -> list[Tensor]:
        return [share.clone() for share in tokens.chunk(num_frames, dim=1)]

    def join(self, shares: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(shares), dim=1)


@dataclass(frozen=True)
class Shards:
    """How the shards of a model call reach common sums: each function adds up fp64 partial sums over some shards, in one collective.

    tokens: over the shards of one branch's tokens. branches: over those of both guidance branches, where each branch runs on shards of its
    own at the same time; None where the same shards run both. is_first: whether this is the first shard of a branch's tokens, whose sums of
    what all shards hold alike (latents) are used by all: on unlike machines the same input need not give the same sums. by_frame: how tokens are
    dealt out frame by frame, for windows that shift. segments: where shards hold a take's latents apart as well, whole segments of them: the first
    of those that hold the same ones is one of several that `is_first`.
    """

    tokens: Reduce = lambda sums: sums
    branches: Reduce | None = None
    is_first: bool = True
    by_frame: ByFrame = field(default_factory=Unsharded)
    segments: Segments | None = None


class Scope(Enum):
    """What one shard's sums are of."""

    REPLICATED = "replicated"  # what all shards of a branch hold alike: the first shard's sums are the branch's
    TOKENS = "tokens"  # this shard's tokens: added up over the shards


class Pairing(Enum):
    """What becomes of the two guidance branches' sums where both run at the same time and decide together."""

    TOTAL = "total"  # added up, as one call on a batch of both would
    EACH = "each"  # both handed to both branches, the conditional one's first
    OWN = "own"  # to each branch its own
    COND = "cond"  # the conditional one's handed to both


@dataclass(frozen=True)
class Piece:
    """Sums that one owner (a trigger, a predictor) measured on this shard. name: by which it finds them again. sums: [n], fp64."""

    name: str
    sums: Tensor
    scope: Scope
    pairing: Pairing = Pairing.OWN


def agree(pieces: Sequence[Piece], shards: Shards, row: int | None = None) -> dict[str, list[float]]:
    """The pieces' sums by name, over all shards: [n] each, [2 n] with pairing EACH. One collective; none if there are no pieces.

    Called on every shard with pieces of the same names, lengths, scopes and pairings. row: this shard's branch, 0 for the conditional and 1
    for the unconditional one, where both run at the same time and decide together; None elsewhere, where pairings mean nothing.
    """
    if not pieces:
        return {}
    stretches = [_stretch(piece, shards.is_first, row) for piece in pieces]
    reduced = _reduce(row, shards)(torch.cat(stretches)).tolist()
    agreed: dict[str, list[float]] = {}
    for piece, stretch in zip(pieces, stretches, strict=True):
        sums, reduced = reduced[: len(stretch)], reduced[len(stretch) :]
        if row is not None and piece.pairing is Pairing.OWN:
            sums = sums[row * len(piece.sums) : (row + 1) * len(piece.sums)]
        agreed[piece.name] = sums
    return agreed


def _reduce(row: int | None, shards: Shards) -> Reduce:
    if row is None:
        return shards.tokens
    assert shards.branches is not None, "two branches that decide together, and no way to reach the other one"
    return shards.branches


def _stretch(piece: Piece, is_first: bool, row: int | None) -> Tensor:
    """What this shard adds to the common sums. A piece that is kept apart by branch has two rows, and zeros in the other branch's."""
    nothing = torch.zeros_like(piece.sums)
    sums = piece.sums if piece.scope is Scope.TOKENS or is_first else nothing
    if row is None or piece.pairing is Pairing.TOTAL:
        return sums
    if piece.pairing is Pairing.COND:
        return sums if row == 0 else nothing
    return torch.cat((sums, nothing) if row == 0 else (nothing, sums))
