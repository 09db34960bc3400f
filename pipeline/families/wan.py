"""Wan text-to-video (Wan 2.1, arXiv 2503.20314, and the demo model): diffusers' WanTransformer3DModel and AutoencoderKLWan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

from ...parallel import TokenShards
from ...parallel.processors import with_attention
from ...parallel.ulysses import UlyssesAttention
from ..card import ModelCard
from .family import Family


class Wan(Family):
    def __init__(self, card: ModelCard, transformer: WanTransformer3DModel, vae: AutoencoderKLWan, text_encoder: UMT5EncoderModel) -> None:
        self.card = card
        self.transformer = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = AutoTokenizer.from_pretrained(card.path / "tokenizer")
        self.device = transformer.device
        self._prompts: dict[str, Tensor] = {}

    @classmethod
    def load(cls, card: ModelCard, dtype: torch.dtype, device: torch.device) -> Wan:
        transformer = WanTransformer3DModel.from_pretrained(card.path / "transformer", torch_dtype=dtype)
        vae = AutoencoderKLWan.from_pretrained(card.path / "vae", torch_dtype=torch.float32)
        text_encoder = UMT5EncoderModel.from_pretrained(card.path / "text_encoder", dtype=dtype)
        return cls(card, transformer.to(device).eval(), vae.to(device).eval(), text_encoder.to(device).eval())

    @torch.no_grad()
    def encode_prompt(self, prompt: str) -> Tensor:
        """Encoded once, kept for all takes; padded with zeros to the card's `max_sequence_length`, without a mask."""
        if prompt not in self._prompts:
            length = self.card.max_sequence_length
            tokens = self.tokenizer(prompt_clean(prompt), padding="max_length", max_length=length, truncation=True, return_tensors="pt").to(
                self.device
            )
            embeds = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
            self._prompts[prompt] = (embeds * tokens.attention_mask[..., None]).to(self.transformer.dtype)
        return self._prompts[prompt]

    def scheduler(self, num_inference_steps: int, flow_shift: float | None) -> Any:
        config = json.loads((self.card.path / "scheduler" / "scheduler_config.json").read_text())
        scheduler_class = getattr(diffusers, config["_class_name"])
        if flow_shift is not None:
            config["flow_shift" if "flow_shift" in config else "shift"] = flow_shift
        scheduler = scheduler_class.from_config(config)
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        scheduler.set_begin_index(0)
        return scheduler

    def velocity(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        batch = latents.shape[0]
        output = self.transformer(latents.to(self.transformer.dtype), timestep.expand(batch), prompt_embeds.expand(batch, -1, -1), return_dict=False)
        velocity: Tensor = output[0]
        return velocity

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        video = frames.permute(3, 0, 1, 2)[None].to(self.device, torch.float32) * 2 - 1
        mean, std = self._latent_scale()
        return (self.vae.encode(video).latent_dist.mode() - mean) / std

    def _latent_scale(self) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = (torch.tensor(values, device=self.device).view(-1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return mean, std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """One latent frame at a time through the VAE's causal cache: the same frames as decoding the whole (diffusers' own loop)."""
        vae = self.vae
        mean, std = self._latent_scale()
        vae.clear_cache()
        for index in range(latents.shape[2]):
            latent = latents[:, :, index : index + 1].to(self.device, torch.float32) * std + mean
            vae._conv_idx = [0]
            chunk = vae.decoder(vae.post_quant_conv(latent), feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=index == 0)
            if vae.config.patch_size is not None:
                chunk = unpatchify(chunk, patch_size=vae.config.patch_size)
            yield chunk[0].clamp(-1, 1).add(1).div(2).permute(1, 2, 3, 0)
        vae.clear_cache()

    def shard(self, shards: TokenShards) -> None:
        """Tokens are sharded behind the patch embedding, with their rotary positions and timesteps a token, and gathered after the
        output projection, where a token has 64 channels instead of the model's width.
        """
        heads, degree = self.card.num_heads, shards.mesh.ulysses_degree
        if heads % degree:
            raise ValueError(f"ulysses_degree={degree} does not divide the model's {heads} heads.")
        model = self.transformer

        def shard_rotary(module: nn.Module, args: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            shards.enter(output[0].shape[1])
            return tuple(shards.shard(table, dim=1) for table in output)

        def shard_tokens(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return shards.shard(output.flatten(2), dim=2)[:, :, :, None, None]

        def shard_timesteps(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
            length = kwargs.get("timestep_seq_len")
            if length is None:
                return None
            local = shards.shard(args[0].unflatten(0, (-1, length)), dim=1)
            return (local.flatten(), *args[1:]), {**kwargs, "timestep_seq_len": local.shape[1]}

        def gather_output(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return shards.gather(output, dim=1)

        model.rope.register_forward_hook(shard_rotary)
        model.patch_embedding.register_forward_hook(shard_tokens)
        model.condition_embedder.register_forward_pre_hook(shard_timesteps, with_kwargs=True)
        model.proj_out.register_forward_hook(gather_output)
        attention = UlyssesAttention(shards)
        for name, module in model.named_modules():
            if name.endswith(".attn1"):
                module.set_processor(with_attention(module.processor, attention))
