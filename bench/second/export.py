"""Writing the second model's trained parts as one checkpoint in diffusers' format, with its card."""

from __future__ import annotations

from pathlib import Path

from ...pipeline.demo.export import export_trained
from .nets import FLOW_SHIFT, GUIDANCE_SCALE, MAX_SEQUENCE_LENGTH, SPATIAL_STRIDE, TEMPORAL_STRIDE, build_denoiser, build_scheduler
from .scene import FPS, NUM_FRAMES, SIZE

_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
longtake:
  name: longtake-second
  trained_frames: {frames}
  height: {size}
  width: {size}
  max_sequence_length: {length}
  fps: {fps}
  guidance_scale: {guidance_scale}
---
# The benchmark's second model

Another small Wan, on which caches are measured beside the demo model, so that no figure holds for one model alone: {transformer:.1f} M parameters
of DiT, {vae:.1f} M of VAE, {text:.1f} M of text encoder. Its latents are {space}x smaller in space and {time}x in time (the demo's 8x and 4x),
its flow shift is {shift:g} (the demo's 3), and its world is another, drawn by a program (`bench/second/scene.py`): one glowing shape that grows,
shrinks, turns, slides, pulses or blinks before a dark ground of two colours, {size}x{size} pixels, {frames} frames, {fps} a second. A fifth of the
attribute combinations was never trained on. Prompts are sentences such as "a glowing azure bar turns clockwise before a sea background"; pass
`max_sequence_length={length}` to the stock pipeline.

These weights were frozen before any cache was measured on them. Trained on the CPU with `python -m longtake.bench.second.train COMMAND` for each
of these, and then `export` (`training_log.jsonl` is the log; minutes are totals of what went before, too):

{commands}
"""


def export(work: Path, out: Path) -> None:
    """Write `out` from what training left in `work`: weights in bf16, the card and the training log. Raises ValueError for a folder that is there."""
    if out.exists():
        raise ValueError(f"'{out}' is there already, and figures may have been measured on it; give another folder with --out, or move it away.")
    facts = {"frames": NUM_FRAMES, "size": SIZE, "length": MAX_SEQUENCE_LENGTH, "fps": FPS, "guidance_scale": GUIDANCE_SCALE}
    strides = {"space": SPATIAL_STRIDE, "time": TEMPORAL_STRIDE, "shift": FLOW_SHIFT}
    export_trained(build_denoiser(), build_scheduler(), work, out, _CARD, {**facts, **strides})
