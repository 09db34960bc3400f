"""The tokens of the model call that is running, as this rank holds them. Families declare where to shard and gather; this does it."""

from __future__ import annotations

from torch import Tensor

from .layout import EvenLayout
from .mesh import Mesh


class TokenShards:
    """Shards and gathers the tokens of one model call after another; each call starts with `enter`.

    `layout` belongs to the running call, because windows of different sizes may follow each other.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._layout: EvenLayout | None = None

    @property
    def layout(self) -> EvenLayout:
        assert self._layout is not None, "a shard point was reached before enter()"
        return self._layout

    def enter(self, num_tokens: int) -> None:
        """Start a model call over `num_tokens` tokens in all."""
        if num_tokens < self.mesh.size:
            raise ValueError(f"{num_tokens} tokens cannot be shared by {self.mesh.size} ranks; render a larger take or use fewer ranks.")
        self._layout = EvenLayout(num_tokens, self.mesh.size)

    def shard(self, tokens: Tensor, dim: int) -> Tensor:
        return self.layout.shard(tokens, self.mesh.rank, dim)

    def gather(self, tokens: Tensor, dim: int) -> Tensor:
        if self.mesh.size == 1:
            return tokens
        return self.mesh.all_gather(tokens, self.layout.counts, dim)
