"""Sequence-parallel attention: Ulysses over heads, a ring over keys and values, or both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..groups.errors import CollectiveError
from ..tokens.shards import TokenShards
from .context import ContextStore
from .kernels import Attended, Kernel


class SequenceAttention:
    """Attention over local query, key and value, [batch, local tokens + text, heads, head_dim]; the result has the query's shape.

    Takes the place of diffusers' `dispatch_attention_fn` in one attention module, `layer`. Text at the end of the tokens is held
    whole by every rank and counts once. Token counts may be uneven; the Ulysses degree must divide the heads.

    Ulysses (arXiv 2309.14509): all-to-alls turn shards of tokens into shards of heads and back; a rank sends
    4 x tokens x dim x element size / n x (n - 1) / n bytes over n ranks, and text x dim x element size / n x (n - 1) more for
    `text` text tokens. Ring (arXiv 2310.01889): keys and values go round, each block is sent on while it is computed with; a
    rank sends 2 x tokens x dim x element size x (n - 1) / n bytes, with both of them 1 / ulysses_degree of that. With uneven
    counts, each term has the rank's own count of tokens in place of tokens / n.

    context: keys and values of tokens that are done, which the tokens may attend to as well; they are exchanged no more, but go round the ring.
    """

    def __init__(self, shards: TokenShards, kernel: Kernel, layer: str = "attention", context: ContextStore | None = None) -> None:
        self.shards, self.kernel, self.layer, self.context = shards, kernel, layer, context

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *,
        scale: float | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: Any,
    ) -> Tensor:
        """attn_mask: of keys alone, bool, [batch, local tokens + text] or with two dims of 1 in the middle. Other options of
        `dispatch_attention_fn` (backend, parallel_config) are left out: the kernel has its own. Raises ValueError for masks a query, dropout
        and causal attention, and CollectiveError, with the layer's name, when the gang fails.
        """
        if dropout_p or is_causal:
            raise ValueError(f"{self.layer}: sequence-parallel attention has no dropout and no causal form.")
        try:
            return self._attend(query, key, value, self._whole_mask(attn_mask), scale)
        except CollectiveError as error:
            raise error.at(self.layer) from error

    def _whole_mask(self, attn_mask: Tensor | None) -> Tensor | None:
        if attn_mask is None:
            return None
        if attn_mask.dtype is not torch.bool or attn_mask.numel() != attn_mask.shape[0] * attn_mask.shape[-1]:
            raise ValueError(f"{self.layer}: attention masks must be boolean and of keys alone, got {attn_mask.dtype} {list(attn_mask.shape)}.")
        return self.shards.gather_key_mask(attn_mask)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        local = self.shards.num_local
        video, text = [tensor[:, :local] for tensor in (query, key, value)], [tensor[:, local:] for tensor in (query, key, value)]
        video, text = self._to_heads(video, text)
        sizes = tuple(sum(self._ring_counts(place)) for place in range(self.shards.mesh.ring.size))
        if self.context is not None:
            own = sizes
            video[1], video[2], sizes = self.context.pass_by(self.layer, video[1], video[2], own)
            mask = None if mask is None else _with_context(mask, own, sizes)
        if self.shards.mesh.ring.size == 1:
            query, key, value = (_join(*pair) for pair in zip(video, text, strict=True))
            attended = self._attend_here(query, key, value, mask, scale)
        else:
            attended = self._attend_ring(video, text, sizes, mask, scale)
        return self._to_tokens(attended, text[0].shape[1])

    def _attend_here(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        """Attention of this rank's share of the heads, among all tokens."""
        return self.kernel(query, key, value, mask, scale)

    def _to_heads(self, video: list[Tensor], text: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Query, key and value of this rank's share of the heads, for all tokens at its place on the ring; and the text's."""
        axis, place = self.shards.mesh.ulysses, self.shards.mesh.ring.rank
        if axis.size == 1:
            return video, text
        exchanged = []
        for tensor in video:
            parts = list(tensor.chunk(axis.size, dim=2))
            batch, _, heads, head_dim = parts[0].shape
            shapes = [torch.Size((batch, count, heads, head_dim)) for count in self._ring_counts(place)]
            exchanged.append(axis.all_to_all(parts, shapes, dim=1))
        return exchanged, [tensor.chunk(axis.size, dim=2)[axis.rank] for tensor in text]

    def _to_tokens(self, attended: Tensor, num_text: int) -> Tensor:
        """[batch, the ring place's tokens + text, heads / ulysses_degree, head_dim] -> [batch, local tokens + text, heads, head_dim]."""
        axis = self.shards.mesh.ulysses
        if axis.size == 1:
            return attended
        counts = self._ring_counts(self.shards.mesh.ring.rank)
        *runs, text = attended.split([*counts, num_text], dim=1)
        parts = [torch.cat((run, text), dim=1) if num_text else run for run in runs]
        return axis.all_to_all(parts, [parts[axis.rank].shape] * axis.size, dim=2)

    def _ring_counts(self, place: int) -> tuple[int, ...]:
        """Token counts of the ranks that sit at one place of the ring, side by side on the Ulysses axis."""
        width = self.shards.mesh.ulysses.size
        return self.shards.layout.counts[place * width : (place + 1) * width]

    def _attend_ring(self, video: list[Tensor], text: list[Tensor], sizes: tuple[int, ...], mask: Tensor | None, scale: float | None) -> Tensor:
        """Keys and values go round, `sizes` of them from each place; the text's own, which every rank holds, are attended to with the first block."""
        ring = self.shards.mesh.ring
        query, block = _join(video[0], text[0]), torch.stack(video[1:])
        attended: Attended | None = None
        for turn in range(ring.size):
            place = (ring.rank - turn) % ring.size
            start = sum(sizes[:place])
            key, value, seen = block[0], block[1], None if mask is None else mask[:, start : start + sizes[place]]
            if turn == 0:
                key, value = _join(key, text[1]), _join(value, text[2])
                seen = None if mask is None or seen is None else torch.cat((seen, mask[:, sum(sizes) :]), dim=1)
            coming = block.new_empty((*block.shape[:2], sizes[place - 1], *block.shape[3:]))
            with ring.pass_on(block, coming) if turn < ring.size - 1 else nullcontext():
                part = self.kernel.with_lse(query, key, value, seen, scale)
            attended, block = part if attended is None else attended.merge(part), coming
        assert attended is not None
        return attended.out.to(query.dtype)


def _with_context(mask: Tensor, own: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The mask of all keys where context, none of which is masked, comes before the own keys of each place on the ring. sizes: of both together."""
    *runs, text = mask.split([*own, mask.shape[1] - sum(own)], dim=1)
    before = [mask.new_ones((mask.shape[0], size - count)) for size, count in zip(sizes, own, strict=True)]
    return torch.cat([piece for pair in zip(before, runs, strict=True) for piece in pair] + [text], dim=1)


def _join(video: Tensor, text: Tensor) -> Tensor:
    return torch.cat((video, text), dim=1) if text.shape[1] else video
