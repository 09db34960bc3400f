"""Recipes that decide from both branches before either runs, in a stock pipeline, which calls one branch after the other.

The conditional call runs both branches in a batch, the unconditional one gets its half of what came out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....cache import Recipe, enable_cache, load_recipe
from ....cache.model.wrap import wrap
from ....cache.recipe.knobs import describe_knobs
from ....pipeline.calibration.calibrate import calibrate
from .contender import OURS, Contender, Setting, Tuning
from .recipes import LEFT_OUT, rungs


def contenders(tuning: Tuning, only: str = "") -> list[Contender]:
    """Those recipes that `recipes` leaves out, or those of them whose name contains `only`."""
    return [Contender(OURS, name, tuple(_settings(name, tuning))) for name in LEFT_OUT if only in f"{OURS} {name}"]


def _settings(name: str, tuning: Tuning) -> Iterator[Setting]:
    steps, entry = tuning.num_inference_steps, f"the recipe {name}"
    if entry not in tuning.journal:
        tuning.journal.note(entry, calibrate(name, tuning.renderer, tuning.takes).to_dict())
    negative = tuning.studio.prompt("")["negative_prompt_embeds"]
    for recipe in rungs(load_recipe(tuning.journal[entry]), steps):
        yield Setting(describe_knobs(recipe), partial(put, recipe, steps, negative), recipe)


@contextmanager
def put(recipe: Recipe, num_inference_steps: int, negative: Tensor, pipe: Any) -> Iterator[None]:
    """negative: the negative prompt's embeddings, which the pipeline hands over too late."""
    cached = enable_cache(pipe.transformer, recipe, num_inference_steps=num_inference_steps)
    step = -1
    uncond: Tensor | None = None

    def forward(original: Callable[..., Any], hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any) -> tuple[Tensor]:
        nonlocal step, uncond
        if uncond is not None:
            mine, uncond = uncond, None
            return (mine,)
        step += 1
        both = (torch.cat(pair) for pair in ((hidden_states, hidden_states), (timestep, timestep), (encoder_hidden_states, negative)))
        with cached.step(step, timestep[0], branch="both"):
            cond, uncond = original(*both, **others)[0].chunk(2)
        return (cond,)

    undo = wrap(pipe.transformer, "forward", forward)
    try:
        yield
    finally:
        undo()
        cached.disable()
