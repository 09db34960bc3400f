"""What single model calls cost under a cache: a REUSE as a share of a full call, a COMPUTE over a call without a cache.

The demo model at its full window, one branch: the other one costs the same again. A recipe at a time, as a process that renders holds one
model: a transformer with the cache and one without take turns, a few calls at a turn, the first ones left out, because in a take the
processor's own caches hold what this model has just used and not what another one has.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from ....cache import Recipe, enable_cache, load_recipe
from ..films.studio import Studio

_NEVER = 10**6
_STEPS = 50  # of a take, as many as the recipes are calibrated for
_CALLS, _FIRST = 6, 2  # of a turn, and how many of them are left out


def reuse_recipe(site: dict[str, Any], predictor: dict[str, Any]) -> Recipe:
    """Two computed steps, then none."""
    guards = {"first_steps": 2, "last_steps": 0}
    return load_recipe({"trigger": {"name": "interval", "interval": _NEVER}, "site": site, "predictor": predictor, "guards": guards})


def compute_recipe(recipe: Recipe) -> Recipe:
    """The recipe with every step computed, whatever its trigger measures."""
    return load_recipe(recipe, {"guards": {"first_steps": _NEVER}})


@torch.no_grad()
def shares_of_a_call(studio: Studio, recipes: dict[str, Recipe], rounds: int) -> dict[str, float]:
    """What a call under each recipe takes of one without a cache: the median over the rounds, in each a few calls of both in a row."""
    inputs = _inputs(studio)
    bare = _Way(studio, inputs, None)
    return {name: _share(_Way(studio, inputs, recipe), bare, rounds) for name, recipe in recipes.items()}


def _share(way: _Way, bare: _Way, rounds: int) -> float:
    ratios = []
    for turn in range(rounds):
        seconds = {one: one.seconds() for one in ((bare, way) if turn % 2 else (way, bare))}
        ratios.append(seconds[way] / seconds[bare])
    return median(ratios)


def _inputs(studio: Studio) -> dict[str, Any]:
    card = studio.card
    shape = (card.latent_channels, card.latent_frames(card.trained_frames), card.height // card.spatial_stride, card.width // card.spatial_stride)
    text = studio.prompt("a red circle moves right over a grey background")["prompt_embeds"]
    return {"hidden_states": torch.randn(1, *shape), "encoder_hidden_states": text.to(torch.float32), "return_dict": False}


class _Way:
    """A transformer of its own, with a cache or without, that is called step after step, take after take."""

    def __init__(self, studio: Studio, inputs: dict[str, Any], recipe: Recipe | None) -> None:
        self._transformer: Any = WanTransformer3DModel.from_pretrained(studio.card.path / "transformer").eval()
        self._cached = enable_cache(self._transformer, recipe, num_inference_steps=_STEPS) if recipe else None
        self._inputs, self._step = inputs, 0

    def seconds(self) -> float:
        """Of a call, the median of a few; a new take begins with calls that are left out."""
        if self._step + _CALLS > _STEPS:
            self._step = 0
            if self._cached:
                self._cached.reset()
        return median([self._call() for _ in range(_CALLS)][_FIRST:])

    def _call(self) -> float:
        timestep = torch.tensor([1000.0 * (1 - self._step / _STEPS)])
        began = time.perf_counter()
        with self._cached.step(self._step, timestep, branch="cond") if self._cached else nullcontext():
            self._transformer(timestep=timestep, **self._inputs)
        self._step += 1
        return time.perf_counter() - began
