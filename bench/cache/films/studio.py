"""Films of the stock diffusers pipeline, with the CPU time that they took; and how far two of them are apart.

Knows pipelines and frames; knows no cache. Whatever is put on the pipeline's transformer stays its owner's business. CPU time is this
process's own on one thread: it holds though something else runs on another core.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor, nn

from ....pipeline.checkpoint.card import ModelCard
from .models import GUIDANCE_SCALE, Clip

_MOVES = 0.05  # of the range of a channel; what a still pixel of a decoded film never reaches
_MAX_PSNR = 100.0  # stands for equal films


@dataclass(frozen=True)
class Film:
    """latents: [1, channels, latent frames, height, width]. step_seconds: CPU time of denoising alone. computed: model calls, 2 a step without
    a cache; of a call that computes some of its blocks' self-attentions and feed-forwards alone, the share of these.
    """

    latents: Tensor
    step_seconds: tuple[float, ...]
    computed: float

    @property
    def seconds(self) -> float:
        return sum(self.step_seconds)


def seconds_of(tries: Sequence[Film]) -> float:
    """Of one film rendered several times, each step as fast as it ever was: what slowed the processor down is left out, step by step."""
    return sum(map(min, zip(*(film.step_seconds for film in tries), strict=True)))


class Studio:
    """The stock pipeline, loaded once; it has the checkpoint's own scheduler until it is given another one."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self.pipe: Any = WanPipeline.from_pretrained(card.path)
        self.pipe.set_progress_bar_config(disable=True)
        self._computed = 0
        blocks = self.pipe.transformer.blocks
        self._modules = 2 * len(blocks)
        for block in blocks:
            block.attn1.to_q.register_forward_pre_hook(self._count)
            inside = next(module for module in block.ffn.modules() if isinstance(module, nn.Linear))
            inside.register_forward_pre_hook(self._count)
        self._prompts: dict[str, dict[str, Tensor]] = {}

    def _count(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._computed += len(args[0])

    def prompt(self, text: str) -> dict[str, Tensor]:
        """The prompt's and the empty negative prompt's embeddings, as the pipeline takes them."""
        if text not in self._prompts:
            prompt, negative = self.pipe.encode_prompt(text, "", max_sequence_length=self.card.max_sequence_length)
            self._prompts[text] = {"prompt_embeds": prompt, "negative_prompt_embeds": negative}
        return self._prompts[text]

    @torch.no_grad()
    def film(self, clip: Clip, num_inference_steps: int) -> Film:
        prompt = self.prompt(clip.prompt)
        self._computed = 0
        times = [time.process_time()]

        def note_time(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            times.append(time.process_time())
            return {}

        latents = self.pipe(
            **prompt,
            height=self.card.height,
            width=self.card.width,
            num_frames=self.card.trained_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(clip.seed),
            output_type="latent",
            callback_on_step_end=note_time,
        ).frames
        return Film(latents, tuple(after - before for before, after in pairwise(times)), self._computed / self._modules)

    @torch.no_grad()
    def frames(self, latents: Tensor) -> Tensor:
        """[frames, 3, height, width] in 0..1, before any video compression."""
        vae = self.pipe.vae
        mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
        video: Tensor = vae.decode(latents * std + mean, return_dict=False)[0]
        return video[0].transpose(0, 1).clamp(-1, 1).add(1).div(2)


def moving_region(frames: Tensor) -> Tensor:
    """Pixels that some channel of some frame takes farther than 0.05 from the clip's median: [height, width], bool."""
    return ((frames - frames.median(dim=0).values).abs() > _MOVES).flatten(0, 1).any(dim=0)


def psnr(a: Tensor, b: Tensor, region: Tensor | None = None) -> float:
    """dB between films [frames, 3, height, width] in 0..1, at the pixels of `region` or at all; 100 where they are equal."""
    squares = (a - b).double().square()
    error = float(squares.mean() if region is None else squares[..., region].mean())
    return min(_MAX_PSNR, -10 * math.log10(max(error, 1e-12)))
