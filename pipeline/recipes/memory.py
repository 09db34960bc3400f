"""How many bytes a recipe's cache will hold during a take, and where they will be kept. Knows cards and takes; loads no model."""

from __future__ import annotations

from dataclasses import dataclass

from ...cache import Recipe
from ...cache.recipe.budget import predict_bytes
from ...cache.sites import ModelShape
from ...parallel.groups.degrees import Degrees
from ...parallel.tokens.layout import Layout
from ..checkpoint.card import ModelCard
from ..options import ModelOptions
from ..take import Take


@dataclass(frozen=True)
class Budget:
    """gigabytes: the most that a rank's cache may hold, 1e9 bytes each; None for no limit. over: `refuse` or `host`."""

    gigabytes: float | None = None
    over: str = "refuse"


def model_shape(card: ModelCard, take: Take, ranks: int = 1, rank: int = 0, *, by_frames: bool = False) -> ModelShape:
    """The sizes of a model call that shows most of a take, on one rank. ranks: how many share the tokens; rank: which of them it is."""
    frames = max(call.num_shown for call in take.timeline_for(card).calls)
    tokens = card.num_tokens(frames, take.height, take.width)
    steps = frames // card.patch_size[0]
    layout = Layout.frames(steps, tokens // steps, ranks) if by_frames and steps > 1 else Layout.even(tokens, ranks)
    return ModelShape(
        tokens=layout.counts[rank],
        text_tokens=card.max_sequence_length if card.num_joint_layers else 0,
        dim=card.dim,
        latents=card.latent_channels * frames * (take.height // card.spatial_stride) * (take.width // card.spatial_stride),
        num_blocks=card.num_layers,
        num_joint=card.num_joint_layers,
    )


def choose_place(recipe: Recipe, card: ModelCard, take: Take, degrees: Degrees, options: ModelOptions, budget: Budget) -> str:
    """Where the cache will keep features, `device` or `host`. Raises ValueError, with the mend, for one above a budget whose `over` is refuse."""
    needed = cache_bytes(recipe, card, take, degrees, options) / 1e9
    if budget.gigabytes is None or needed <= budget.gigabytes:
        return "device"
    if budget.over == "host":
        return "host"
    raise ValueError(
        f"Recipe '{recipe.name}' would hold {needed:.3g} GB on a rank for take '{take.name}', and cache.budget_gb is {budget.gigabytes:g}; set "
        f"cache.over_budget=host or cache.dtype=bfloat16, use more ranks, or a smaller recipe (`longtake recipes` lists their memory)."
    )


def cache_bytes(recipe: Recipe, card: ModelCard, take: Take, degrees: Degrees, options: ModelOptions) -> int:
    """The most bytes that one rank's cache will hold during a take: rank 0's, which has as many tokens and windows as any."""
    shape = model_shape(card, take, degrees.sequence_degree, by_frames=options.layout == "frames")
    calls = -(-take.timeline_for(card).most_calls // degrees.window_degree)
    branches = 2 if take.is_guided(card) and degrees.cfg_degree == 1 else 1
    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[options.dtype]
    return predict_bytes(recipe, shape, calls, branches, itemsize)
