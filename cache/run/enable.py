"""Putting a recipe on diffusers' transformers, or on those of a pipeline, once all fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..model.beside_others import check_others, check_unmarked
from ..model.block_calls import num_blocks
from ..recipe.fit import name_from_path
from ..recipe.read import load_recipe
from ..recipe.recipe import Recipe
from ..state.storage import PLACES, Storage
from ..trace.replay import Replay
from .agreement import Shards
from .cached import Cached
from .call import BRANCH_BY_BRANCH
from .session import Session


def enable_cache(
    model: Any,
    recipe: str | Path | Recipe,
    *,
    num_inference_steps: int,
    shards: Shards | None = None,
    replay: Replay | None = None,
    place: str = "device",
    model_name: str = "",
    overlap: int | None = None,
) -> Cached:
    """Put a cache on a diffusers transformer, on several that take turns (Wan 2.2's experts), or on those of a pipeline.

    Model calls are told apart by their timestep and by diffusers' `cache_context`, as stock pipelines use it, or inside
    `with cached.step(...)`, which says more (segments of a long take).

    num_inference_steps: of a take, for a transformer alone; a pipeline's calls have as many as their own schedule says.
    recipe: a name, a YAML path or a Recipe. shards: for sharded models. replay: make the decisions of a trace again instead of the
    trigger's own. place: where features are kept, `device` or `host`. model_name: the model's name, by which the published numbers of
    recipes are found; if left out, the name of the folder or hub id that it was loaded from. overlap: for loops whose windows begin elsewhere
    at each step: how many latent frames they share; their calls are made inside `Cached.fused`. Raises ValueError, with the mend, for what does
    not fit: recipes, pipelines, schedulers and transformers that the cache cannot work on, other caches that are on already.
    """
    pipeline, transformers = parts_of(model)
    if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be a whole number of at least 1.")
    if place not in PLACES:
        raise ValueError(f"place is '{place}'; it must be one of {', '.join(PLACES)}.")
    for transformer in transformers:
        check_others(transformer)
        check_unmarked(transformer)
    chosen = load_recipe(recipe).fitted(model_name or _name(transformers[0]), *_size(transformers[0]))
    chosen.check_steps(num_inference_steps)
    if pipeline is not None and chosen.branches == "joint":
        raise ValueError(BRANCH_BY_BRANCH.format(chosen.name))
    if pipeline is not None and (chosen.aggregate, chosen.border) != ("mean", "reset"):
        raise ValueError(f"Recipe '{chosen.name}' sets aggregate or border, and stock pipelines have no segments and no chunks; leave both out.")
    if pipeline is not None and overlap is not None:
        raise ValueError(f"overlap is {overlap}, and stock pipelines have no windows that shift; leave it out, or use a loop of your own.")
    storage = Storage(chosen.dtype, place, by_frame=shards is not None and shards.segments is not None)
    cached = Cached(replace(Session.fresh(chosen, num_inference_steps, storage, shards, replay), overlap=overlap))
    cached.attach(transformers, pipeline)
    return cached


def parts_of(model: Any) -> tuple[Any, list[Any]]:
    """The pipeline, None if a model comes without one, and the transformers."""
    if isinstance(model, (list, tuple)):
        pipeline, found = None, list(model)
    elif isinstance(model, nn.Module):
        pipeline, found = None, [model]
    else:
        pipeline, found = model, [getattr(model, "transformer", None), getattr(model, "transformer_2", None)]
    transformers = [transformer for transformer in found if transformer is not None]
    for transformer in transformers:
        if not (isinstance(transformer, nn.Module) and hasattr(transformer, "config")):
            raise ValueError(f"A cache goes on diffusers' transformers, not on a {type(transformer).__name__}; give one, or its pipeline.")
    if not transformers:
        raise ValueError(f"{type(model).__name__} has no transformer to put a cache on; give a diffusers pipeline that has one, or the transformer.")
    return pipeline, transformers


def _name(transformer: Any) -> str:
    """The name in the path or hub id that diffusers loaded it from; empty for a model that was made from a config."""
    return name_from_path(str(getattr(transformer.config, "_name_or_path", "")))


def _size(transformer: Any) -> tuple[int, int]:
    """Width and number of blocks; zeros for models whose blocks are not known."""
    try:
        count = num_blocks(transformer)
    except ValueError:
        return 0, 0
    return transformer.config.num_attention_heads * transformer.config.attention_head_dim, count
