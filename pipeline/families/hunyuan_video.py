"""HunyuanVideo text-to-video (arXiv 2412.03603): diffusers' HunyuanVideoTransformer3DModel and AutoencoderKLHunyuanVideo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoMidBlock3D
from torch import Tensor, nn

from ...parallel.attention.kernels import Kernel
from ...parallel.tokens.shards import TokenShards
from ..checkpoint.card import ModelCard
from .family import Family, Prompt, attend_together, read_part


class HunyuanVideo(Family):
    whole_frames: ClassVar[tuple[type[nn.Module], ...]] = (HunyuanVideoMidBlock3D,)

    def __init__(self, card: ModelCard, stock: Any, device: torch.device) -> None:
        self.card, self.device = card, device
        self._stock = stock
        self.transformer, self.vae = stock.transformer, stock.vae

    @classmethod
    def _load(cls, card: ModelCard, dtype: torch.dtype, device: torch.device, held: torch.device) -> HunyuanVideo:
        # A second of imports, which other families need not wait for.
        from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
        from transformers import CLIPTextModel, LlamaModel

        stock = HunyuanVideoPipeline.from_pretrained(
            card.path,
            transformer=read_part(HunyuanVideoTransformer3DModel, card.path / "transformer", torch_dtype=dtype),
            vae=read_part(AutoencoderKLHunyuanVideo, card.path / "vae", torch_dtype=torch.float32),
            text_encoder=read_part(LlamaModel, card.path / "text_encoder", dtype=dtype),
            text_encoder_2=read_part(CLIPTextModel, card.path / "text_encoder_2", dtype=dtype),
        )
        for part in (stock.vae, stock.text_encoder, stock.text_encoder_2):
            part.to(device)
        stock.transformer.to(held)
        return cls(card, stock, device)

    def _encode_prompt(self, prompt: str) -> Prompt:
        """Llama's states after the stock template, with their mask, and CLIP's pooled state."""
        embeds, pooled, mask = self._stock.encode_prompt(prompt, device=self.device, max_sequence_length=self.card.max_sequence_length)
        inputs = {"encoder_hidden_states": embeds, "pooled_projections": pooled, "encoder_attention_mask": mask}
        return {name: tensor.to(self.transformer.dtype) for name, tensor in inputs.items()}

    @staticmethod
    def _set_timesteps(scheduler: Any, num_inference_steps: int, device: torch.device | None) -> None:
        sigmas = np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=sigmas, device=device)

    def velocity(self, latents: Tensor, timestep: Tensor, prompt: Prompt, guidance_scale: float) -> Tensor:
        dtype = self.transformer.dtype
        batch = latents.shape[0]
        guidance = torch.full((batch,), guidance_scale, dtype=dtype, device=self.device) * 1000.0
        steps = timestep.expand(batch).to(latents.dtype)
        velocity: Tensor = self.transformer(latents.to(dtype), steps, guidance=guidance, return_dict=False, **prompt)[0]
        return velocity

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        video = frames.permute(3, 0, 1, 2)[None].to(self.device, torch.float32) * 2 - 1
        return self.vae.encode(video).latent_dist.mode() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode in diffusers' overlapping temporal tiles, blended where they overlap, one held at a time: the same frames as diffusers' own
        decoding in such tiles (of another length they give others, as group norms look at all frames of a tile). Rows may be spread over a
        gang without changing them.
        """
        vae = self.vae
        stride, tile_frames = vae.tile_sample_stride_num_frames, vae.tile_sample_min_num_frames
        step, length = stride // vae.temporal_compression_ratio, tile_frames // vae.temporal_compression_ratio
        num_latents = latents.shape[2]
        if num_latents <= length:
            step = num_latents
        remaining = (num_latents - 1) * vae.temporal_compression_ratio + 1
        before: Tensor | None = None
        for start in range(0, num_latents, step):
            tile = self._decode_tile(latents[:, :, start : start + length + 1] / vae.config.scaling_factor)
            if before is None:
                shown = tile[:, :, : stride + 1] if step < num_latents else tile
            else:
                shown = vae.blend_t(before, tile[:, :, 1:], tile_frames - stride)[:, :, :stride]
            before = tile if before is None else tile[:, :, 1:]
            shown = shown[:, :, :remaining]
            remaining -= shown.shape[2]
            yield shown[0].clamp(-1, 1).add(1).div(2).permute(1, 2, 3, 0)

    def _decode_tile(self, latents: Tensor) -> Tensor:
        latents = latents.to(self.device, torch.float32)
        local = self._rows.shard(latents) if self._rows else latents
        decoded: Tensor = self.vae.decoder(self.vae.post_quant_conv(local))
        return self._rows.gather(decoded) if self._rows else decoded

    @staticmethod
    def shard(transformer: Any, shards: TokenShards, kernel: Kernel) -> ExitStack:
        """Video tokens are sharded after the patch embedding and gathered after the output projection; every rank holds the text."""
        patch_frames = transformer.config.patch_size_t

        def shard_rotary(module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            shards.begin_call(output[0].shape[0], args[0].shape[2] // patch_frames)
            return tuple(shards.shard(table, dim=0) for table in output)

        def shard_tokens(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return shards.shard(output, dim=1)

        def gather_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return shards.gather(output, dim=1)

        joint = [(name, module) for name, module in transformer.named_modules() if name.endswith(".attn") and "refiner" not in name]
        placed = attend_together(transformer, joint, shards, kernel)
        placed.callback(transformer.rope.register_forward_hook(shard_rotary).remove)
        placed.callback(transformer.x_embedder.register_forward_hook(shard_tokens).remove)
        placed.callback(transformer.proj_out.register_forward_hook(gather_output).remove)
        return placed
