"""Writing the trained parts as one checkpoint in diffusers' format, with its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline

from .nets import GUIDANCE_SCALE, MAX_LATENT_FRAMES, MAX_SEQUENCE_LENGTH, build_scheduler
from .scene import FPS, SIZE
from .training.dit import DenoiserWithText, build_denoiser
from .training.trainer import LOG

_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
longtake:
  name: longtake-demo
  trained_frames: {frames}
  height: {size}
  width: {size}
  max_sequence_length: {length}
  fps: {fps}
  guidance_scale: {guidance_scale}
---
# longtake's demo model

A small but genuine Wan: {transformer:.1f} M parameters of DiT, {vae:.1f} M of VAE, {text:.1f} M of text encoder, trained on the CPU on clips that a
program draws (`pipeline/demo/scene.py`): one or two flat-shaded things that move over a background, {size}x{size} pixels, {fps} frames a second,
up to {frames} frames. A fifth of the attribute combinations was never trained on. Prompts are sentences such as "a red circle moves left over a
grey background"; pass `max_sequence_length={length}` to the stock pipeline.

Trained with `python -m longtake.pipeline.demo.train COMMAND` for each of these, and then `export` (`training_log.jsonl` is the log; minutes are
totals of what went before, too):

{commands}
"""


def export(work: Path, out: Path) -> None:
    """Write `out` anew from what training the demo model left in `work`."""
    facts = {"frames": (MAX_LATENT_FRAMES - 1) * 4 + 1, "size": SIZE, "length": MAX_SEQUENCE_LENGTH, "fps": FPS, "guidance_scale": GUIDANCE_SCALE}
    export_trained(build_denoiser(), build_scheduler(), work, out, _CARD, facts)


def export_trained(
    model: DenoiserWithText, scheduler: FlowMatchEulerDiscreteScheduler, work: Path, out: Path, card: str, facts: dict[str, Any]
) -> None:
    """Write the averaged weights in `work` in bf16, the training log, and a card that says `facts`, millions of parameters and `commands`."""
    average = torch.load(work / "dit.pt", weights_only=True)["average"]
    model.load_state_dict({key.removeprefix("module."): value for key, value in average.items() if key != "n_averaged"})
    vae = AutoencoderKLWan.from_pretrained(work / "vae")
    vae.register_to_config(_name_or_path="")  # it would name a folder of the machine that trained it
    save_checkpoint(model, vae, scheduler, out, dtype=torch.bfloat16)
    shutil.copy(work / LOG, out / LOG)
    parts = {"transformer": model.transformer, "vae": vae, "text": model.text_encoder}
    millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in parts.items()}
    rows = [json.loads(line) for line in (work / LOG).read_text().splitlines()]
    commands = "\n".join(f"    {row['command']}" for row in rows if "command" in row)
    (out / "README.md").write_text(card.format(**facts, **millions, commands=commands))


def save_checkpoint(
    model: DenoiserWithText, vae: AutoencoderKLWan, scheduler: FlowMatchEulerDiscreteScheduler, folder: Path, dtype: torch.dtype
) -> None:
    """All parts in diffusers' own format, as stock `WanPipeline.from_pretrained` loads them."""
    pipeline = WanPipeline(model.tokenizer, model.text_encoder, vae, scheduler, transformer=model.transformer)
    pipeline.to(dtype).save_pretrained(folder)
