"""How many bytes a recipe's cache will hold during a take, and where they will be kept. Knows cards and takes; loads no model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...cache import Recipe
from ...cache.recipe.budget import predict_bytes
from ...cache.sites import ModelShape
from ...parallel.groups.degrees import Degrees
from ...parallel.tokens.bands import frames_of, share_out
from ...parallel.tokens.layout import Layout
from ..checkpoint.card import ModelCard
from ..options import ModelOptions
from ..take import Take


@dataclass(frozen=True)
class Budget:
    """gigabytes: the most that a rank's cache may hold, 1e9 bytes each; None for no limit. over: `refuse` or `host`."""

    gigabytes: float | None = None
    over: str = "refuse"


def model_shape(card: ModelCard, take: Take, ranks: int = 1, rank: int = 0, *, by_frames: bool = False, places: int = 1) -> ModelShape:
    """The sizes of a model call that shows most of a take, on one rank. ranks: how many share the tokens; rank: which of them it is. places: on the
    window axis, which share the segments of a banded take.
    """
    timeline = take.timeline_for(card)
    shares = [share for call in timeline.calls if call.bands for share in share_out(call.bands, places)]
    frames = max([len(frames_of(share)) for share in shares] or [call.num_shown for call in timeline.calls])
    tokens = card.num_tokens(frames, take.height, take.width)
    steps = frames // card.patch_size[0]
    layout = Layout.frames(steps, tokens // steps, ranks) if by_frames and steps > 1 else Layout.even(tokens, ranks)
    return ModelShape(
        tokens=layout.counts[rank],
        text_tokens=card.max_sequence_length if card.num_joint_layers else 0,
        dim=card.dim,
        latents=_latents(card, take, frames),
        num_blocks=card.num_layers,
        num_joint=card.num_joint_layers,
        scales=frames if timeline.is_banded else 1,
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
    shape = model_shape(card, take, degrees.sequence_degree, by_frames=options.layout == "frames", places=degrees.window_degree)
    timeline = take.timeline_for(card)
    calls = -(-timeline.most_calls // degrees.window_degree)
    branches = 2 if take.is_guided(card) and degrees.cfg_degree == 1 else 1
    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[options.dtype]
    if not timeline.shifts:
        return predict_bytes(recipe, shape, calls, branches, itemsize)
    # Sites that keep latents keep those of the whole round, fused in fp32. The others keep them frame by frame, and what the step before left.
    tokens, latents = split_by_site(recipe)
    frames = calls * max(call.num_shown for call in timeline.calls)
    of_frame = replace(shape, tokens=-(-card.num_tokens(1, take.height, take.width) // degrees.sequence_degree), latents=_latents(card, take, 1))
    whole = replace(shape, latents=_latents(card, take, timeline.num_latent_frames))
    by_frame = 2 * predict_bytes(tokens, of_frame, frames, branches, itemsize) if tokens else 0
    return by_frame + (predict_bytes(latents, whole, 1, branches, itemsize=4) if latents else 0)


def split_by_site(recipe: Recipe) -> tuple[Recipe | None, Recipe | None]:
    """The recipe's parts that keep tokens, and those that keep latents; None for none."""
    parts = [tuple(part for part in recipe.parts if part.site.build().sharded is sharded) for sharded in (True, False)]
    tokens, latents = (replace(recipe, parts=some) if some else None for some in parts)
    return tokens, latents


def _latents(card: ModelCard, take: Take, frames: int) -> int:
    return card.latent_channels * frames * (take.height // card.spatial_stride) * (take.width // card.spatial_stride)
