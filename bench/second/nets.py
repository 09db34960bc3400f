"""The second model's networks: a Wan of other latents than the demo's, untrained. Knows shapes and sizes, not how they are trained."""

from __future__ import annotations

from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from ...pipeline.demo.nets import build_text_encoder, build_tokenizer
from ...pipeline.demo.training.dit import DenoiserWithText
from .scene import NUM_FRAMES, vocabulary

MAX_SEQUENCE_LENGTH = 16
SPATIAL_STRIDE, TEMPORAL_STRIDE = 4, 2
LATENT_CHANNELS = 12
LATENT_FRAMES = (NUM_FRAMES - 1) // TEMPORAL_STRIDE + 1
FLOW_SHIFT = 5.0
GUIDANCE_SCALE = 4.0
_TEXT_DIM = 96


def build_vae() -> AutoencoderKLWan:
    """4x in space, 2x in time, causal: twice the demo's resolution in each direction, so that its latents keep the fine detail."""
    return AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[2, 2],
        num_res_blocks=1,
        is_residual=True,
        temperal_downsample=[True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_spatial=SPATIAL_STRIDE,
        scale_factor_temporal=TEMPORAL_STRIDE,
    )


def build_denoiser() -> DenoiserWithText:
    """8 heads: they divide over 2, 4 and 8 ranks."""
    tokenizer = build_tokenizer(vocabulary())
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=8,
        attention_head_dim=24,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=_TEXT_DIM,
        freq_dim=128,
        ffn_dim=384,
        num_layers=6,
    )
    return DenoiserWithText(tokenizer, transformer, build_text_encoder(len(tokenizer), _TEXT_DIM), MAX_SEQUENCE_LENGTH)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=FLOW_SHIFT)
