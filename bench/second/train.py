"""Train the second model, part by part: `python -m longtake.bench.second.train PART --minutes 30`.

The parts in order are vae, latents, dit and export. The loop, the losses and the optimisers are those of the demo model's training; each part
resumes from its own checkpoint in the folder given by `--work`, where its command and its loss go to training_log.jsonl, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from numpy.random import Generator
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...files import written_whole
from ...pipeline.demo.training.dit import Batch, fit_velocity, noise_levels
from ...pipeline.demo.training.trainer import Schedule, log_command
from ...pipeline.demo.training.vae import Footage, clip_to_tensor, held_out_psnr, train_vae
from .nets import FLOW_SHIFT, LATENT_CHANNELS, LATENT_FRAMES, SPATIAL_STRIDE, build_denoiser, build_vae
from .scene import NUM_FRAMES, SIZE, Scene, draw, sample_scene, sentence

_LEARNING_RATES = {"vae": (2e-3, 5e-5), "dit": (1.2e-3, 2e-5)}  # first and last
_VAE_BATCHES = ((32, 9, 3), (32, NUM_FRAMES, 2), (SIZE, NUM_FRAMES, 1))  # crop in pixels, frames, clips a step
_DIT_CLIPS = 12  # a step
_ENCODED_AT_ONCE = 20
_NO_PROMPT = 0.1  # share of clips that are learnt without their sentence, for guidance
_LATENTS = "latents.safetensors"


def _clip(scene: Scene) -> Tensor:
    return clip_to_tensor(draw(scene))


def _crops(rng: Generator, step: int) -> Tensor:
    crop, num_frames, batch = _VAE_BATCHES[step % len(_VAE_BATCHES)]
    clips = []
    for _ in range(batch):
        x, y = rng.integers(0, SIZE - crop + 1, 2)
        clips.append(_clip(sample_scene(rng))[:, :num_frames, y : y + crop, x : x + crop])
    return torch.stack(clips)


FOOTAGE = Footage(
    batch=_crops,
    clip=lambda rng: _clip(sample_scene(rng)),
    held_out=lambda rng: _clip(sample_scene(rng, held_out=True)),
)


def _scene(index: int) -> Scene:
    """What the training clip of that number shows."""
    return sample_scene(np.random.default_rng((7, index)))


@torch.no_grad()
def encode_clips(folder: Path, num_clips: int, device: torch.device) -> None:
    """Encode clips with the trained VAE: latents [clips, channels, frames, height, width], normalised, fp16."""
    vae = AutoencoderKLWan.from_pretrained(folder / "vae").to(device)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    side = SIZE // SPATIAL_STRIDE
    encoded = torch.empty(num_clips, LATENT_CHANNELS, LATENT_FRAMES, side, side, dtype=torch.float16)
    for first in range(0, num_clips, _ENCODED_AT_ONCE):
        clips = torch.stack([_clip(_scene(index)) for index in range(first, min(first + _ENCODED_AT_ONCE, num_clips))])
        latents = vae.encode(clips.to(device)).latent_dist.mode()
        encoded[first : first + len(clips)] = ((latents - mean) / std).half().cpu()
    with written_whole(folder / _LATENTS) as temporary:
        save_file({"latents": encoded}, temporary)


def train_dit(folder: Path, schedule: Schedule, device: torch.device) -> None:
    """Train the DiT and its text encoder on what `encode_clips` wrote: whole clips, one noise level a clip."""
    latents = load_file(folder / _LATENTS)["latents"]
    scenes = [_scene(index) for index in range(len(latents))]

    def draw_batch(rng: Generator, step: int) -> Batch:
        chosen = rng.integers(0, len(scenes), _DIT_CLIPS)
        prompts = ["" if rng.random() < _NO_PROMPT else sentence(scenes[index], rng) for index in chosen]
        sigma = noise_levels(rng, FLOW_SHIFT, _DIT_CLIPS, 1).expand(-1, LATENT_FRAMES)
        return Batch(latents[chosen].float(), prompts, sigma, torch.ones_like(sigma), isolated=0)

    fit_velocity(build_denoiser().to(device), draw_batch, schedule, folder, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("vae", "latents", "dit", "export"))
    parser.add_argument("--minutes", type=float, default=30, help="training time in all, resumed runs included")
    parser.add_argument("--since", type=float, default=0, help="minute at which the learning rate starts to fall from its peak")
    parser.add_argument("--work", type=Path, default=Path("second-training"), help="folder of checkpoints, latents and the log")
    parser.add_argument("--clips", type=int, default=6000, help="latents: how many clips to encode")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model", help="export: the checkpoint folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.part in _LEARNING_RATES:
        schedule = Schedule(options.minutes, *_LEARNING_RATES[options.part], options.since)
        log_command(options.work, f"{options.part} --minutes {schedule.minutes:g} --since {schedule.since:g}")
    if options.part == "vae":
        vae = train_vae(build_vae(), FOOTAGE, options.work, schedule, device)
        vae.save_pretrained(options.work / "vae")
        print(f"held-out clips reconstruct at {held_out_psnr(vae, FOOTAGE):.2f} dB")
    elif options.part == "latents":
        log_command(options.work, f"latents --clips {options.clips}")
        encode_clips(options.work, options.clips, device)
    elif options.part == "dit":
        train_dit(options.work, schedule, device)
    else:
        from .export import export

        export(options.work, options.out)


if __name__ == "__main__":
    main()
