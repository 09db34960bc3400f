"""A timed training loop with checkpoints: the part that training the VAE and training the DiT share.

Knows optimisers, averages and checkpoints; a part gives it modules and a loss.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn

_LONGEST_STEP = 4.0  # seconds; a step beyond it was compiling or suspended, which is no training time


@dataclass(frozen=True)
class Schedule:
    """Cosine from `peak_lr` to `final_lr` over `minutes` of training time, summed over resumed runs."""

    minutes: float
    peak_lr: float
    final_lr: float
    warmup_steps: int = 100

    def learning_rate(self, step: int, seconds: float) -> float:
        done = min(1.0, seconds / (60 * self.minutes))
        cosine = self.final_lr + 0.5 * (self.peak_lr - self.final_lr) * (1 + math.cos(math.pi * done))
        return cosine * min(1.0, (step + 1) / self.warmup_steps)


def train(
    part: str,
    module: nn.Module,
    loss: Callable[[Generator, int], tuple[Tensor, dict[str, float]]],
    schedule: Schedule,
    folder: Path,
    *,
    seed: int = 0,
    average_decay: float = 0.999,
) -> nn.Module:
    """Train `module` in place until the schedule's minutes are used; go on from `folder`/PART.pt where there is one.

    loss: (random generator, step) -> (scalar loss, figures for the log). Logs one JSON line every 50 steps.
    Returns the moving average of the weights, which is what gets used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / f"{part}.pt", folder / "training_log.jsonl"
    decay = torch.optim.swa_utils.get_ema_multi_avg_fn(average_decay)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=decay, use_buffers=False)
    optimiser = torch.optim.AdamW(module.parameters(), lr=schedule.peak_lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    step, seconds = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(saved["module"])
        average.load_state_dict(saved["average"])
        optimiser.load_state_dict(saved["optimiser"])
        step, seconds = saved["step"], saved["seconds"]

    def save() -> None:
        state = {"module": module.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save({**state, "step": step, "seconds": seconds}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)

    last_save = time.monotonic()
    window: list[dict[str, float]] = []
    while seconds < 60 * schedule.minutes:
        began = time.monotonic()
        for group in optimiser.param_groups:
            group["lr"] = schedule.learning_rate(step, seconds)
        value, figures = loss(np.random.default_rng((seed, step)), step)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        average.update_parameters(module)
        step += 1
        seconds += min(time.monotonic() - began, _LONGEST_STEP)
        window.append({"loss": float(value.detach()), **figures})
        if step % 50 == 0:
            mean = {
                key: round(sum(row[key] for row in window if key in row) / max(1, sum(key in row for row in window)), 5)
                for key in sorted({k for row in window for k in row})
            }
            line = json.dumps({"part": part, "step": step, "minutes": round(seconds / 60, 2), **mean})
            print(line, flush=True)
            with log.open("a") as file:
                file.write(line + "\n")
            window.clear()
        if time.monotonic() - last_save > 120:
            save()
            last_save = time.monotonic()
    save()
    return average.module
