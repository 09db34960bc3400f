"""A timed training loop with checkpoints: the part that training the VAE and training the DiT share.

Knows optimisers, averages and checkpoints; a part gives it modules and a loss.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ....files import written_whole

_LONGEST_STEP = 4.0  # seconds; a step beyond it was compiling or suspended, which is no training time
_LOG_STEPS = 50
_SAVE_SECONDS = 120.0
_AVERAGE_DECAY = 0.99  # a window of 100 steps: training is short and ends at a small learning rate

LOG = "training_log.jsonl"

Loss = Callable[[Generator, int], tuple[Tensor, dict[str, float]]]


def log_command(folder: Path, arguments: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as file:
        file.write(json.dumps({"command": arguments}) + "\n")


@dataclass(frozen=True)
class Schedule:
    """Cosine from `peak_lr` at minute `since` to `final_lr` at minute `minutes` of training time, summed over resumed runs."""

    minutes: float
    peak_lr: float
    final_lr: float
    since: float = 0.0
    warmup_steps: int = 100

    def learning_rate(self, step: int, seconds: float) -> float:
        done = min(1.0, (seconds / 60 - self.since) / (self.minutes - self.since))
        cosine = self.final_lr + 0.5 * (self.peak_lr - self.final_lr) * (1 + math.cos(math.pi * done))
        return cosine * min(1.0, (step + 1) / self.warmup_steps)


def _build_optimisers(module: nn.Module, matrices: Sequence[nn.Parameter], lr: float) -> list[torch.optim.Optimizer]:
    """Muon (arXiv 2502.16982, its steps scaled to the size of AdamW's) for `matrices`, AdamW for the rest."""
    chosen = set(matrices)
    rest = [weight for weight in module.parameters() if weight.requires_grad and weight not in chosen]
    optimisers: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)]
    if matrices:
        optimisers.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return optimisers


class Trainer:
    """Trains `module` in place and keeps a moving average of its weights, which is what gets used.

    `matrices`: those of its weights that Muon trains.
    Checkpoints go to `folder`/PART.pt, from where a new trainer goes on; the log to `folder`/`LOG`.
    """

    def __init__(self, part: str, module: nn.Module, schedule: Schedule, folder: Path, matrices: Sequence[nn.Parameter] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.part, self.module, self.schedule = part, module, schedule
        self.average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(_AVERAGE_DECAY))
        self.optimisers = _build_optimisers(module, matrices, schedule.peak_lr)
        self.step, self.seconds = 0, 0.0
        self._checkpoint, self._log = folder / f"{part}.pt", folder / LOG
        self._figures: list[dict[str, float]] = []
        if self._checkpoint.exists():
            self._resume()

    def run(self, loss: Loss) -> Any:
        """Train until the schedule's minutes are used and return the averaged module. loss: (random, step) -> (scalar, figures to log)."""
        last_save = time.monotonic()
        while self.seconds < 60 * self.schedule.minutes:
            began = time.monotonic()
            self._advance(loss)
            self.seconds += min(time.monotonic() - began, _LONGEST_STEP)
            if self.step % _LOG_STEPS == 0:
                self._write_log()
            if time.monotonic() - last_save > _SAVE_SECONDS:
                self._save()
                last_save = time.monotonic()
        self._save()
        return self.average.module

    def _advance(self, loss: Loss) -> None:
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.schedule.learning_rate(self.step, self.seconds)
        value, figures = loss(np.random.default_rng(self.step), self.step)
        self.module.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.average.update_parameters(self.module)
        self.step += 1
        self._figures.append({"loss": float(value.detach()), **figures})

    def _write_log(self) -> None:
        names = sorted({name for row in self._figures for name in row})
        means = {name: round(float(np.mean([row[name] for row in self._figures if name in row])), 5) for name in names}
        line = json.dumps({"part": self.part, "step": self.step, "minutes": round(self.seconds / 60, 2), **means})
        print(line, flush=True)
        with self._log.open("a") as file:
            file.write(line + "\n")
        self._figures.clear()

    def _resume(self) -> None:
        saved = torch.load(self._checkpoint, weights_only=True)
        self.module.load_state_dict(saved["module"])
        self.average.load_state_dict(saved["average"])
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        self.step, self.seconds = saved["step"], saved["seconds"]

    def _save(self) -> None:
        weights = {"module": self.module.state_dict(), "average": self.average.state_dict()}
        states = [optimiser.state_dict() for optimiser in self.optimisers]
        with written_whole(self._checkpoint) as temporary:
            torch.save({**weights, "optimisers": states, "step": self.step, "seconds": self.seconds}, temporary)
