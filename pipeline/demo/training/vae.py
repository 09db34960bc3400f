"""Training the demo's VAE on crops of drawn clips, and measuring it on held-out ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.random import Generator
from torch import Tensor
from torch.nn import functional as F

from ..scene import SIZE, draw, sample_scene
from .trainer import Loss, Schedule, Trainer

_LATENT_NOISE = 0.05  # a fixed posterior spread: latents that are a little off, as a DiT's are, still decode well
# Crop in pixels, frames, clips a step. The long ones matter: a causal VAE trained on short clips alone drifts beyond their length.
_BATCHES = ((64, 9, 2), (64, 33, 1), (48, 65, 1), (SIZE, 17, 1))
_ABS_WEIGHT, _MSE_WEIGHT, _MEAN_WEIGHT, _SPREAD_WEIGHT = 0.2, 10.0, 5e-4, 1e-3


def clip_to_tensor(frames: np.ndarray) -> Tensor:
    """[frames, height, width, 3] uint8 -> [3, frames, height, width] in -1..1."""
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)


def _crop(rng: Generator, crop: int, num_frames: int) -> Tensor:
    frames = draw(sample_scene(rng, two_things=0.5), num_frames, start=int(rng.integers(0, 128)))
    x, y = rng.integers(0, SIZE - crop + 1, 2)
    return clip_to_tensor(frames[:, y : y + crop, x : x + crop])


def _draw_batch(rng: Generator, step: int) -> Tensor:
    crop, num_frames, batch = _BATCHES[step % len(_BATCHES)]
    return torch.stack([_crop(rng, crop, num_frames) for _ in range(batch)])


@dataclass(frozen=True)
class Footage:
    """Clips that a VAE is trained and measured on, each [3, frames, height, width] in -1..1.

    batch: (random, step) -> a stack of them to learn from; clip and held_out: (random) -> a whole one of trained and of held-out combinations.
    """

    batch: Callable[[Generator, int], Tensor]
    clip: Callable[[Generator], Tensor]
    held_out: Callable[[Generator], Tensor]


DEMO_FOOTAGE = Footage(
    batch=_draw_batch,
    clip=lambda rng: clip_to_tensor(draw(sample_scene(rng), 17)),
    held_out=lambda rng: clip_to_tensor(draw(sample_scene(rng, held_out=True), 33)),
)


def train_vae(vae: AutoencoderKLWan, footage: Footage, folder: Path, schedule: Schedule, device: torch.device) -> AutoencoderKLWan:
    """Train encoder and decoder; the result's latents have zero mean and unit scale by its config."""
    vae.to(device)
    averaged = Trainer("vae", vae, schedule, folder).run(_loss(vae, footage, device))
    _measure_latents(averaged, footage)
    return averaged


def train_decoder(folder: Path, schedule: Schedule, device: torch.device) -> AutoencoderKLWan:
    """Go on with the decoder of `folder`/vae alone: the latents, which the DiT has learnt, stay what they are."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").to(device)
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    return Trainer("decoder", vae, schedule, folder).run(_loss(vae, DEMO_FOOTAGE, device))


def _loss(vae: AutoencoderKLWan, footage: Footage, device: torch.device) -> Loss:
    def loss(rng: Generator, step: int) -> tuple[Tensor, dict[str, float]]:
        clips = footage.batch(rng, step).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(clips).latent_dist
            noise = torch.from_numpy(rng.standard_normal(posterior.mean.shape, np.float32)).to(device)
            decoded = vae.decode(posterior.mean + _LATENT_NOISE * noise).sample
        error = decoded.float() - clips
        mse = error.pow(2).mean()
        spread = (posterior.logvar.float() - 2 * math.log(_LATENT_NOISE)).pow(2).mean()
        value = _ABS_WEIGHT * error.abs().mean() + _MSE_WEIGHT * mse + _MEAN_WEIGHT * posterior.mean.float().pow(2).mean() + _SPREAD_WEIGHT * spread
        return value, {"psnr": float(10 * torch.log10(4 / mse.detach()))}

    return loss


@torch.no_grad()
def _measure_latents(vae: AutoencoderKLWan, footage: Footage, num_clips: int = 64) -> None:
    """Measure `latents_mean` and `latents_std` a channel on trained combinations and register them in the config."""
    rng = np.random.default_rng(1)
    clips = torch.stack([footage.clip(rng) for _ in range(num_clips)])
    device = next(vae.parameters()).device
    latents = torch.cat([vae.encode(part.to(device)).latent_dist.mode().float().cpu() for part in clips.split(8)])
    channels = latents.transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=[round(v, 4) for v in channels.mean(1).tolist()], latents_std=[round(v, 4) for v in channels.std(1).tolist()])


@torch.no_grad()
def held_out_psnr(vae: AutoencoderKLWan, footage: Footage = DEMO_FOOTAGE, num_clips: int = 32) -> float:
    """Mean PSNR in dB of reconstructed held-out clips."""
    rng = np.random.default_rng(2)
    device = next(vae.parameters()).device
    values = []
    for _ in range(num_clips):
        clip = footage.held_out(rng)[None].to(device)
        decoded = vae.decode(vae.encode(clip).latent_dist.mode()).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4 / F.mse_loss(decoded, clip)).item())
    return float(np.mean(values))
