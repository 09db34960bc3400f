"""The HunyuanVideo family against stock diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoPipeline
from longtake.cache import enable_cache, load_recipe
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.render import Renderer

from same import assert_same
from takes import stock_latents, stock_take

pytestmark = pytest.mark.numerical


def test_one_rank_equals_the_stock_pipeline(tiny_hunyuan: Path) -> None:
    card, take = read_card(str(tiny_hunyuan)), stock_take()
    ours = Renderer(card).render(take, None).latents
    theirs = stock_latents(HunyuanVideoPipeline.from_pretrained(tiny_hunyuan), take, card.max_sequence_length)
    assert_same(ours, theirs)


def test_streamed_decoding_equals_diffusers_own(tiny_hunyuan: Path) -> None:
    family = Renderer(read_card(str(tiny_hunyuan))).family
    for num_latents in (1, 4, 5, 9, 11):
        latents = torch.randn(1, 4, num_latents, 4, 4, generator=torch.Generator().manual_seed(0))
        streamed = torch.cat(list(family.decode(latents)))
        with torch.no_grad():
            whole = family.vae.decode(latents / family.vae.config.scaling_factor).sample[0].permute(1, 2, 3, 0).clamp(-1, 1).add(1).div(2)
        assert streamed.shape == (4 * num_latents - 3, 32, 32, 3)
        assert_same(streamed, whole, f"for {num_latents} latent frames")


def test_the_cache_keeps_both_block_lists_where_they_were(tiny_hunyuan: Path) -> None:
    transformer = Renderer(read_card(str(tiny_hunyuan))).family.transformer
    names, lists = list(transformer.state_dict()), (transformer.transformer_blocks, transformer.single_transformer_blocks)
    cached = enable_cache(transformer, load_recipe("interval"), num_inference_steps=4)
    assert list(transformer.state_dict()) == names
    assert transformer.get_submodule("single_transformer_blocks.1") is lists[1][1]
    cached.disable()
    assert (transformer.transformer_blocks, transformer.single_transformer_blocks) == lists
