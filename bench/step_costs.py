"""What single model calls cost under a cache: a REUSE as a share of a full call, a COMPUTE over a call without a cache.

The demo model at its full window, one branch: the other one costs the same again. Each way has a transformer of its own, so that calls
can be made in turn while every cache keeps its state.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from ..cache import Cached, Recipe, enable_cache, load_recipe
from .stock import Studio

_NEVER = 10**6


def reuse_recipe(site: dict[str, Any], predictor: dict[str, Any]) -> Recipe:
    """Two computed steps, then none."""
    guards = {"first_steps": 2, "last_steps": 0}
    return load_recipe({"trigger": {"name": "interval", "interval": _NEVER}, "site": site, "predictor": predictor, "guards": guards})


def compute_recipe(recipe: Recipe) -> Recipe:
    """The recipe with every step computed, whatever its trigger measures."""
    return load_recipe(recipe, {"guards": {"first_steps": _NEVER}})


@torch.no_grad()
def time_calls(studio: Studio, recipes: dict[str, Recipe], rounds: int) -> dict[str, list[float]]:
    """Seconds a call, in turn: without a cache ("none") and under each recipe, its first two calls left out."""
    card = studio.card
    latents = torch.randn(
        1, card.latent_channels, card.latent_frames(card.trained_frames), card.height // card.spatial_stride, card.width // card.spatial_stride
    )
    text = studio.prompt("a red circle moves right over a grey background")["prompt_embeds"].to(latents.dtype)
    transformers: dict[str, tuple[Any, Cached | None]] = {}
    for name, recipe in (("none", None), *recipes.items()):
        transformer = WanTransformer3DModel.from_pretrained(card.path / "transformer").eval()
        transformers[name] = (transformer, enable_cache(transformer, recipe, num_inference_steps=_NEVER) if recipe else None)
    seconds: dict[str, list[float]] = {name: [] for name in transformers}
    for step in range(2 + rounds):
        timestep = torch.tensor([1000.0 - step])
        for name, (transformer, cached) in _in_turn(transformers.items(), step):
            began = time.perf_counter()
            with cached.step(step, timestep, branch="cond") if cached else nullcontext():
                transformer(hidden_states=latents, timestep=timestep, encoder_hidden_states=text, return_dict=False)
            seconds[name].append(time.perf_counter() - began)
    return {name: times[2:] for name, times in seconds.items()}


def _in_turn(ways: Iterable[tuple[str, Any]], turn: int) -> list[tuple[str, Any]]:
    """Each round begins with another one, so that no way always follows the same."""
    ordered = list(ways)
    start = turn % len(ordered)
    return ordered[start:] + ordered[:start]
