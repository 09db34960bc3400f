"""Wan text-to-video (Wan 2.1, arXiv 2503.20314, and the demo model): diffusers' WanTransformer3DModel and AutoencoderKLWan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, unpatchify
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from transformers import AutoTokenizer, UMT5EncoderModel

from ...cache.model.wrap import wrap
from ...parallel.attention.bands import Bands, TextAttention
from ...parallel.attention.context import ContextStore
from ...parallel.attention.kernels import Kernel
from ...parallel.tokens.shards import TokenShards
from ..checkpoint.card import ModelCard
from .family import Decoding, Family, Prompt, attend_together, read_part, replace_attention


class WanDecoding(Decoding):
    """One latent frame at a time through the VAE's causal cache: the same frames as decoding the whole (diffusers' own loop), also when the rows
    of each frame are spread over a gang.
    """

    def __init__(self, family: Wan) -> None:
        self._family = family
        family.vae.clear_cache()
        self._kept = family.vae._feat_map  # of this take; clear_cache makes another list
        self._is_first = True

    @torch.no_grad()
    def frames(self, latents: Tensor, *, is_last: bool) -> Iterator[Tensor]:
        vae, rows = self._family.vae, self._family._rows
        mean, std = self._family._latent_scale()
        for frame in latents.split(1, dim=2):
            latent = frame.to(self._family.device, torch.float32) * std + mean
            local = rows.shard(latent) if rows else latent
            chunk = vae.decoder(vae.post_quant_conv(local), feat_cache=self._kept, feat_idx=[0], first_chunk=self._is_first)
            self._is_first = False
            if vae.config.patch_size is not None:
                chunk = unpatchify(chunk, patch_size=vae.config.patch_size)
            whole = rows.gather(chunk) if rows else chunk
            yield whole[0].clamp(-1, 1).add(1).div(2).permute(1, 2, 3, 0)
        if is_last:
            vae.clear_cache()


class TakePositions:
    """Rotary positions of latent frames in a take of any length: diffusers' tables end at 1,024, and are made anew, longer, where it has more."""

    def __init__(self, rope: WanRotaryPosEmbed, bands: Bands) -> None:
        self._rope = self._long = rope
        self._bands = bands

    def _in_time(self, positions: range) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the dims that turn with time, [positions, dims]."""
        rope = self._rope
        if positions.stop > self._long.max_seq_len:
            self._long = WanRotaryPosEmbed(rope.attention_head_dim, rope.patch_size, 2 * positions.stop).to(rope.freqs_cos)
        here = slice(positions.start, positions.stop)
        return self._long.freqs_cos[here, : rope.t_dim], self._long.freqs_sin[here, : rope.t_dim]

    def tables(self, original: Callable[[Tensor], tuple[Tensor, ...]], latents: Tensor) -> tuple[Tensor, ...]:
        """What the model's own forward gives, [1, tokens, 1, head_dim] twice, for latents that are this rank's frames of the take."""
        frame = original(latents[:, :, :1])
        times, in_time = len(self._bands.frames), self._in_time(self._bands.frames)
        tables = []
        for table, turned in zip(frame, in_time, strict=True):
            still = table[0, :, 0, self._rope.t_dim :].expand(times, -1, -1)
            tables.append(torch.cat((turned[:, None].expand(-1, still.shape[1], -1), still), dim=-1).flatten(0, 1)[None, :, None])
        return tuple(tables)

    def move(self, keys: Tensor, frames: int) -> Tensor:
        """Turn keys, [batch, tokens, heads, head_dim], on by so many frames."""
        [cos], [sin] = self._in_time(range(frames, frames + 1))
        turning, still = keys.split((len(cos), keys.shape[-1] - len(cos)), dim=-1)
        first, second = turning.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((first * cos[0::2] - second * sin[1::2], first * sin[1::2] + second * cos[0::2]), dim=-1)
        return torch.cat((turned.flatten(-2).type_as(keys), still), dim=-1)


class Wan(Family):
    whole_frames: ClassVar[tuple[type[nn.Module], ...]] = (WanAttentionBlock,)

    def __init__(self, card: ModelCard, transformer: WanTransformer3DModel, vae: AutoencoderKLWan, text_encoder: UMT5EncoderModel) -> None:
        self.card = card
        self.transformer = transformer
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = AutoTokenizer.from_pretrained(card.path / "tokenizer")
        self.device = vae.device

    @classmethod
    def _load(cls, card: ModelCard, dtype: torch.dtype, device: torch.device, held: torch.device) -> Wan:
        transformer = read_part(WanTransformer3DModel, card.path / "transformer", torch_dtype=dtype)
        vae = read_part(AutoencoderKLWan, card.path / "vae", torch_dtype=torch.float32)
        text_encoder = read_part(UMT5EncoderModel, card.path / "text_encoder", dtype=dtype)
        return cls(card, transformer.to(held).eval(), vae.to(device).eval(), text_encoder.to(device).eval())

    def _encode_prompt(self, prompt: str) -> Prompt:
        """Padded with zeros to the card's `max_sequence_length`, without a mask."""
        length = self.card.max_sequence_length
        tokens = self.tokenizer(prompt_clean(prompt), padding="max_length", max_length=length, truncation=True, return_tensors="pt").to(self.device)
        embeds = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return {"encoder_hidden_states": (embeds * tokens.attention_mask[..., None]).to(self.transformer.dtype)}

    def velocity(self, latents: Tensor, timestep: Tensor, prompt: Prompt, guidance_scale: float, num_clean: int = 0) -> Tensor:
        steps = timestep.expand(latents.shape[0])
        if num_clean:
            steps = self._steps_by_token(steps, latents, num_clean)
        velocity: Tensor = self.transformer(latents.to(self.transformer.dtype), steps, return_dict=False, **prompt)[0]
        return velocity

    def _steps_by_token(self, steps: Tensor, latents: Tensor, num_clean: int) -> Tensor:
        """[batch, tokens]: the timestep of each token, 0 where its latent frame has no noise."""
        frames, rows, columns = (size // patch for size, patch in zip(latents.shape[2:], self.card.patch_size, strict=True))
        by_frame = steps[:, None].repeat(1, frames)
        by_frame[:, : num_clean // self.card.patch_size[0]] = 0
        return by_frame.repeat_interleave(rows * columns, dim=1)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        video = frames.permute(3, 0, 1, 2)[None].to(self.device, torch.float32) * 2 - 1
        mean, std = self._latent_scale()
        return (self.vae.encode(video).latent_dist.mode() - mean) / std

    def _latent_scale(self) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = (torch.tensor(values, device=self.device).view(-1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
        return mean, std

    def decoding(self) -> WanDecoding:
        return WanDecoding(self)

    @staticmethod
    def shard(transformer: Any, shards: TokenShards, kernel: Kernel, context: ContextStore | None = None, bands: Bands | None = None) -> ExitStack:
        """Tokens are sharded after the patch embedding, with their rotary positions and timesteps a token, and gathered after the
        output projection, where a token has 64 channels instead of the model's width. Frames that follow on kept context have the positions
        after it; those of a banded take have their positions in it, whose frames are called apart on the ranks of the window axis.
        """
        patch_frames = transformer.config.patch_size[0]

        def shard_rotary(module: nn.Module, args: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            shards.begin_call(output[0].shape[1], args[0].shape[2] // patch_frames)
            return tuple(shards.shard(table, dim=1) for table in output)

        def rotate_after_context(original: Callable[[Tensor], tuple[Tensor, ...]], latents: Tensor) -> tuple[Tensor, ...]:
            before = context.num_frames if context is not None else 0
            if not before:
                return original(latents)
            batch, channels, frames, *size = latents.shape
            whole = original(latents.new_empty(1).expand(batch, channels, before + frames, *size))
            return tuple(table[:, table.shape[1] // (before + frames) * before :] for table in whole)

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

        self_attention = [(name, module) for name, module in transformer.named_modules() if name.endswith(".attn1")]
        placed = attend_together(transformer, self_attention, shards, kernel, context, bands)
        if context is not None:
            placed.callback(wrap(transformer.rope, "forward", rotate_after_context))
        if bands is not None:
            to_text = (module for name, module in transformer.named_modules() if name.endswith(".attn2"))
            placed.enter_context(replace_attention((module, TextAttention(bands, kernel)) for module in to_text))
            positions = TakePositions(transformer.rope, bands)
            placed.callback(wrap(transformer.rope, "forward", positions.tables))
            bands.move = positions.move
        placed.callback(transformer.rope.register_forward_hook(shard_rotary).remove)
        placed.callback(transformer.patch_embedding.register_forward_hook(shard_tokens).remove)
        placed.callback(transformer.condition_embedder.register_forward_pre_hook(shard_timesteps, with_kwargs=True).remove)
        placed.callback(transformer.proj_out.register_forward_hook(gather_output).remove)
        return placed
