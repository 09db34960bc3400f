"""Layouts, and sequence-parallel attention against plain attention."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from hypothesis import given
from hypothesis import strategies as st
from longtake.parallel import EvenLayout, Mesh, TokenShards
from longtake.parallel.ulysses import UlyssesAttention

from pool import GlooPool


@given(num_tokens=st.integers(0, 500), num_ranks=st.integers(1, 9))
def test_even_layout_covers_every_token_once(num_tokens: int, num_ranks: int) -> None:
    layout = EvenLayout(num_tokens, num_ranks)
    tokens = torch.arange(num_tokens)
    parts = [layout.shard(tokens, rank, dim=0) for rank in range(num_ranks)]
    assert torch.equal(torch.cat(parts), tokens)
    assert max(layout.counts) - min(layout.counts) <= 1


def test_shard_refuses_a_tensor_of_another_length() -> None:
    with pytest.raises(ValueError, match="Expected 10 tokens along dim 1"):
        EvenLayout(10, 2).shard(torch.zeros(1, 9), 0, dim=1)


def test_too_few_tokens_for_the_ranks() -> None:
    shards = TokenShards(Mesh())
    with pytest.raises(ValueError, match="0 tokens cannot be shared"):
        shards.enter(0)


def _round_trip(mesh: Mesh, num_tokens: int) -> bool:
    shards = TokenShards(mesh)
    shards.enter(num_tokens)
    tokens = torch.arange(num_tokens * 6.0).view(1, num_tokens, 2, 3)
    return torch.equal(shards.gather(shards.shard(tokens, dim=1), dim=1), tokens)


def _ulysses(mesh: Mesh, num_tokens: int, heads: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, num_tokens, heads, 8, generator=generator) for _ in range(3))
    if mesh.size == 1:
        return dispatch_attention_fn(query, key, value)
    shards = TokenShards(mesh)
    shards.enter(num_tokens)
    local = [shards.shard(tensor, dim=1) for tensor in (query, key, value)]
    return shards.gather(UlyssesAttention(shards)(*local), dim=1)


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("num_tokens", [3, 10, 101])
def test_gather_undoes_shard(gloo_pool: GlooPool, num_ranks: int, num_tokens: int) -> None:
    assert all(gloo_pool.run(_round_trip, num_ranks, num_tokens))


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("num_tokens", [12, 101])
def test_ulysses_equals_plain_attention(gloo_pool: GlooPool, num_ranks: int, num_tokens: int) -> None:
    expected = gloo_pool.run(_ulysses, 1, num_tokens, 6)[0]
    for attended in gloo_pool.run(_ulysses, num_ranks, num_tokens, 6):
        difference = (attended - expected).abs().max().item()
        assert difference <= 1e-5, f"largest difference {difference:.2e}"
