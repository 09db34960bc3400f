"""The tokens of the model call that is running, as this rank holds them. Families declare where to shard and gather; this does it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..groups.mesh import Mesh
from .layout import Layout


class TokenShards:
    """Shards and gathers the tokens of one model call after another over the mesh's sequence axis; each call starts with `begin_call`.

    layout: of the running call, as windows of different sizes may follow each other. by_frames: shard whole frames only (layout
    `frames`) instead of evenly (layout `even`); the film is the same.
    """

    def __init__(self, mesh: Mesh, *, by_frames: bool = False) -> None:
        self.mesh = mesh
        self.by_frames = by_frames
        self._layout: Layout | None = None
        self._key_mask: tuple[Tensor, Tensor] | None = None

    @property
    def layout(self) -> Layout:
        assert self._layout is not None, "a shard point was reached before begin_call()"
        return self._layout

    @property
    def num_local(self) -> int:
        return self.layout.counts[self.mesh.sequence.rank]

    def begin_call(self, num_tokens: int, num_frames: int = 1) -> None:
        """Share out the tokens of a model call: `num_tokens` on all ranks together, in `num_frames` latent frames. Raises ValueError where
        there are fewer tokens than ranks.
        """
        ranks = self.mesh.sequence.size
        if num_tokens < ranks:
            raise ValueError(f"{num_tokens} tokens cannot be shared by {ranks} ranks; render a larger take or use fewer ranks.")
        by_frames = self.by_frames and num_frames > 1
        self._layout = Layout.frames(num_frames, num_tokens // num_frames, ranks) if by_frames else Layout.even(num_tokens, ranks)
        self._key_mask = None

    def shard(self, tokens: Tensor, dim: int) -> Tensor:
        return self.layout.shard(tokens, self.mesh.sequence.rank, dim)

    def gather(self, tokens: Tensor, dim: int) -> Tensor:
        return self.mesh.sequence.all_gather(tokens, self.layout.counts, dim)

    def gather_key_mask(self, mask: Tensor) -> Tensor:
        """[batch, (1, 1,) local tokens + text] -> [batch, all tokens + text]. One collective a model call: its blocks share one mask."""
        if self._key_mask is None or self._key_mask[0] is not mask:
            flat = mask.flatten(1)
            local, text = flat[:, : self.num_local], flat[:, self.num_local :]
            self._key_mask = (mask, torch.cat((self.gather(local.to(torch.uint8), dim=1).bool(), text), dim=1))
        return self._key_mask[1]
