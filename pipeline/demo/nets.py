"""The demo model's networks: a small Wan in diffusers' own classes, untrained. Knows shapes and sizes, not how they are trained."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

MAX_SEQUENCE_LENGTH = 32
MAX_LATENT_FRAMES = 9
LATENT_CHANNELS = 16
TEXT_DIM = 128
FLOW_SHIFT = 3.0
GUIDANCE_SCALE = 4.0


def build_vae() -> AutoencoderKLWan:
    """8x in space, 4x in time, causal; patches and residual shortcuts as in Wan 2.2, which learn several times faster."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        is_residual=True,
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def build_transformer() -> WanTransformer3DModel:
    """12 heads, as in Wan 1.3B: they divide over 2, 3, 4, 6 and 12 ranks."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=12,
        attention_head_dim=24,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=768,
        num_layers=6,
    )


def build_tokenizer(vocabulary: list[str]) -> T5Tokenizer:
    """One token a word of the vocabulary; whatever else is asked for becomes letters or <unk>."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, -20.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    words = [(f"▁{word}", -2.0) for word in vocabulary if len(word) > 0]
    known = {piece for piece, _ in special + words}
    return T5Tokenizer(vocab=special + words + [pair for pair in letters if pair[0] not in known], extra_ids=0)


def build_text_encoder(vocab_size: int, dim: int = TEXT_DIM) -> UMT5EncoderModel:
    """Its attention looks at neighbouring words from the start: UMT5 begins with hardly any sense of order, and one so small never learns it."""
    config = UMT5Config(vocab_size=vocab_size, d_model=dim, d_kv=dim // 4, d_ff=2 * dim, num_layers=2, num_heads=4, dropout_rate=0.0)
    encoder = UMT5EncoderModel(config)
    exact = config.relative_attention_num_buckets // 4  # buckets: so many distances one by one, then as many on a logarithmic scale
    distance = torch.tensor([*range(exact), *(exact * (config.relative_attention_max_distance / exact) ** (i / exact) for i in range(exact))])
    nowhere = torch.full_like(distance, -8.0)
    before = torch.stack([-distance, nowhere, -0.5 * distance, 0.0 * distance], dim=1)
    after = torch.stack([nowhere, -distance, -0.5 * distance, nowhere], dim=1)
    for block in encoder.encoder.block:
        with torch.no_grad():
            block.layer[0].SelfAttention.relative_attention_bias.weight.copy_(torch.cat((before, after)))
    return encoder


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)
