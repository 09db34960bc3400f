"""HunyuanVideo text-to-video (arXiv 2412.03603): diffusers' HunyuanVideoTransformer3DModel and AutoencoderKLHunyuanVideo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoMidBlock3D
from torch import Tensor, nn

from ...parallel.attention.bands import Bands
from ...parallel.attention.context import ContextStore
from ...parallel.attention.kernels import Kernel
from ...parallel.tokens.shards import TokenShards
from ..checkpoint.card import ModelCard
from .family import Decoding, Family, Prompt, attend_together, read_part


class HunyuanVideoDecoding(Decoding):
    """In diffusers' overlapping temporal tiles, blended where they overlap, one held at a time: the same frames as diffusers' own decoding in such
    tiles (of another length they give others, as group norms look at all frames of a tile).
    """

    def __init__(self, family: HunyuanVideo) -> None:
        self._family, vae = family, family.vae
        compression = vae.temporal_compression_ratio
        self._stride, self._tile_frames = vae.tile_sample_stride_num_frames, vae.tile_sample_min_num_frames
        self._step, self._length = self._stride // compression, self._tile_frames // compression
        self._waiting: Tensor | None = None  # latents from the next tile's first on
        self._before: Tensor | None = None  # the last tile's frames
        self._remaining = 1 - compression  # of the frames of all latents so far, those that are not shown yet

    @torch.no_grad()
    def frames(self, latents: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        self._waiting = latents if self._waiting is None else torch.cat((self._waiting, latents), dim=2)
        self._remaining += latents.shape[2] * self._family.vae.temporal_compression_ratio
        if is_last and self._before is None and self._waiting.shape[2] <= self._length:  # no tile but this one
            yield self._shown(self._family.decode_tile(self._waiting))
            return
        while self._waiting.shape[2] > (0 if is_last else self._length):
            tile = self._family.decode_tile(self._waiting[:, :, : self._length + 1])
            self._waiting = self._waiting[:, :, self._step :]
            if self._before is None:
                self._before, shown = tile, tile[:, :, : self._stride + 1]
            else:
                shown = self._family.vae.blend_t(self._before, tile[:, :, 1:], self._tile_frames - self._stride)[:, :, : self._stride]
                self._before = tile[:, :, 1:]
            yield self._shown(shown)

    def _shown(self, frames: Tensor) -> Tensor:
        frames = frames[:, :, : self._remaining]
        self._remaining -= frames.shape[2]
        return frames[0].clamp(-1, 1).add(1).div(2).permute(1, 2, 3, 0)


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

    def velocity(self, latents: Tensor, timestep: Tensor, prompt: Prompt, guidance_scale: float, num_clean: int = 0) -> Tensor:
        assert num_clean == 0, "its card has no clean_context"
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

    def decoding(self) -> HunyuanVideoDecoding:
        return HunyuanVideoDecoding(self)

    def decode_tile(self, latents: Tensor) -> Tensor:
        """The frames of some latent frames, [1, 3, frames, height, width], whose rows may be spread over a gang without changing them."""
        latents = latents.to(self.device, torch.float32) / self.vae.config.scaling_factor
        local = self._rows.shard(latents) if self._rows else latents
        decoded: Tensor = self.vae.decoder(self.vae.post_quant_conv(local))
        return self._rows.gather(decoded) if self._rows else decoded

    @staticmethod
    def shard(transformer: Any, shards: TokenShards, kernel: Kernel, context: ContextStore | None = None, bands: Bands | None = None) -> ExitStack:
        """Video tokens are sharded after the patch embedding and gathered after the output projection; every rank holds the text."""
        assert context is None, "no model of this family has an isolated context"
        assert bands is None, "its text goes through the blocks with the video, and would see all segments"
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
