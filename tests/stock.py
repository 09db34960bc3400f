"""Tiny stock pipelines and transformers for tests, and what a cache on them did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from longtake.cache import Recipe, load_recipe
from torch import Tensor

Pipeline = Any
SITES = ("fbcache", "dbcache", "bwcache", "fora", "easycache")  # stack, stack before the last block, blocks, modules, output
_WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 128, "freq_dim": 32, "ffn_dim": 48}


def tiny_pipeline(folder: Path, kind: str = "WanPipeline", transformer: str = "WanTransformer3DModel", **sizes: Any) -> Pipeline:
    """A pipeline of diffusers' class `kind` with the tiny checkpoint's other parts."""
    stock = diffusers.WanPipeline.from_pretrained(folder)
    torch.manual_seed(0)
    model = getattr(diffusers, transformer)(**{**_WAN, "num_layers": 4, **sizes}).eval()
    for block in getattr(model, "vace_blocks", ()):
        for weight in block.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    parts = {name: part for name, part in stock.components.items() if name != "transformer_2"}
    pipe = getattr(diffusers, kind)(**{**parts, "transformer": model})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Pipeline, steps: int = 8, seed: int = 1, **more: Any) -> Tensor:
    options: dict[str, Any] = {"height": 32, "width": 32, "guidance_scale": 4.0, "max_sequence_length": 32, "output_type": "latent", **more}
    if "prompt_embeds" not in options:
        options["prompt"] = "a red circle moves left"
    if not isinstance(pipe, diffusers.WanVideoToVideoPipeline):
        options["num_frames"] = 5
    latents: Tensor = pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), **options).frames
    return latents


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def rows_of(cached: Any) -> dict[str, list[tuple[int, str]]]:
    """By branch: each call's step and what was decided."""
    entries = cached.trace.entries
    return {branch: [(entry.step, entry.decision) for entry in entries if entry.branch == branch] for branch in {e.branch for e in entries}}


def every(interval: int, name: str = "fora") -> Recipe:
    """A recipe's site and predictor under a schedule; no step is compelled but the first and the last."""
    values = load_recipe(name, {"site": {"last_blocks": 1}} if name == "dbcache" else None).to_dict()
    alone = {"trigger": {"name": "interval", "interval": interval}, "guards": {}, "branches": "each", "calibrated": False}
    return load_recipe({**values, **alone})


def tiny_transformer(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A tiny random model and the inputs of a call."""
    torch.manual_seed(0)
    text = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(1, 12, 16)}
    video = {"hidden_states": torch.randn(1, 4, 3, 8, 8), **text}
    wan = {**_WAN, "text_dim": 16, "num_layers": 4}
    if name == "WanAnimateTransformer3DModel":
        encoder: dict[str, Any] = {"motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16, "motion_style_dim": 8}
        encoder |= {"motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2}
        model = diffusers.WanAnimateTransformer3DModel(
            **{**wan, "in_channels": 12}, latent_channels=4, image_dim=4, rope_max_seq_len=32, inject_face_latents_blocks=2, **encoder
        )
        faces = {"pose_hidden_states": torch.randn(1, 4, 2, 8, 8), "face_pixel_values": torch.randn(1, 3, 5, 16, 16)}
        images = {"encoder_hidden_states_image": torch.randn(1, 16, 4)}
        return model.eval(), {**text, "hidden_states": torch.randn(1, 12, 3, 8, 8), **faces, **images}
    if name == "WanVACETransformer3DModel":
        model = diffusers.WanVACETransformer3DModel(**wan, vace_layers=[0, 2], vace_in_channels=8)
        for weight in model.vace_blocks.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        return model.eval(), {**video, "control_hidden_states": torch.randn(1, 8, 3, 8, 8)}
    if name == "HunyuanVideoTransformer3DModel":
        heads = {"num_attention_heads": 2, "attention_head_dim": 12, "rope_axes_dim": (4, 4, 4)}
        layers = {"num_layers": 3, "num_single_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 2.0}
        model = diffusers.HunyuanVideoTransformer3DModel(in_channels=4, out_channels=4, text_embed_dim=16, pooled_projection_dim=8, **heads, **layers)
        pooled = {"pooled_projections": torch.randn(1, 8), "guidance": torch.tensor([4000.0])}
        return model.eval(), {**video, "encoder_attention_mask": torch.ones(1, 12), **pooled}
    return diffusers.WanTransformer3DModel(**wan).eval(), video


MODELS = ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel", "HunyuanVideoTransformer3DModel")


def flow_sampler(kind: str, shift: float = 3.0, **settings: Any) -> Any:
    """A scheduler of diffusers' class `kind` for models that predict a flow's velocity."""
    if kind.startswith("FlowMatch"):
        return getattr(diffusers, kind)(shift=shift, **settings)
    return getattr(diffusers, kind)(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift, **settings)
