"""Ulysses sequence parallelism (arXiv 2309.14509): tokens are sharded outside attention, heads inside it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from .shards import TokenShards


class UlyssesAttention:
    """Attention over local query, key and value [batch, local tokens, heads, head_dim] of one self-attention.

    Takes the place of diffusers' `dispatch_attention_fn`, which stays the local kernel. Two all-to-alls a call: query, key and value
    travel together on the way in, the output on the way back; a rank sends 4 x tokens x dim x element size / n x (n - 1) / n bytes.
    Token counts may be uneven; heads must divide by the mesh's `ulysses_degree`.
    """

    def __init__(self, shards: TokenShards) -> None:
        self.shards = shards

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
        if attn_mask is not None:
            raise ValueError("Ulysses attention takes no attention mask; this model needs one.")
        options["parallel_config"] = None
        whole = self._tokens_to_heads(torch.stack((query, key, value)))
        attended = dispatch_attention_fn(whole[0], whole[1], whole[2], **options)
        return self._heads_to_tokens(attended)

    def _tokens_to_heads(self, tensors: Tensor) -> Tensor:
        """[3, batch, local tokens, heads, head_dim] -> [3, batch, all tokens, heads / n, head_dim]."""
        mesh, counts = self.shards.mesh, self.shards.layout.counts
        parts = tensors.chunk(mesh.ulysses_degree, dim=3)
        three, batch, _, heads, head_dim = parts[0].shape
        shapes = [torch.Size((three, batch, count, heads, head_dim)) for count in counts]
        return torch.cat(mesh.all_to_all(list(parts), shapes), dim=2)

    def _heads_to_tokens(self, attended: Tensor) -> Tensor:
        """[batch, all tokens, heads / n, head_dim] -> [batch, local tokens, heads, head_dim]."""
        mesh, counts = self.shards.mesh, self.shards.layout.counts
        batch, _, heads, head_dim = attended.shape
        shape = torch.Size((batch, counts[mesh.rank], heads, head_dim))
        return torch.cat(mesh.all_to_all(list(attended.split(counts, dim=1)), [shape] * mesh.size), dim=2)
