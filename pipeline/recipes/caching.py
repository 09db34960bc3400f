"""What a recipe comes to on a model: its numbers, whether it fits, and how many bytes it will hold. Knows cards and takes, loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache import Recipe, load_recipe
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


def numbers_path(card: ModelCard, name: str, num_inference_steps: int) -> Path:
    """Where a recipe lies that was calibrated on this model; num_inference_steps: 0 for one that fits any."""
    return card.path / "longtake" / (f"{name}-{num_inference_steps}-steps.yaml" if num_inference_steps else f"{name}.yaml")


def find_recipe(
    name: str, card: ModelCard, num_inference_steps: int, changes: Mapping[str, Mapping[str, Any]] | None = None, dtype: str | None = None
) -> Recipe:
    """A recipe by name or YAML path, with the model's numbers: those beside the model, or else published ones.

    Raises ValueError, with the mend, for a recipe that needs numbers and finds none.
    """
    recipe = load_recipe(name)
    if recipe.calibrated and recipe.calibration is None:
        there = [path for steps in (num_inference_steps, 0) if (path := numbers_path(card, name, steps)).is_file()]
        if there:
            return load_recipe(there[0], changes, dtype)
        others = sorted(path.stem for path in card.path.glob(f"longtake/{name}-*-steps.yaml"))
        if others:
            raise ValueError(
                f"There are numbers for recipe '{name}' beside the model ({', '.join(others)}), but none for {num_inference_steps} steps; run "
                f"`longtake calibrate` with --steps {num_inference_steps}."
            )
    return load_recipe(name, changes, dtype).fitted(card.name, card.dim, card.num_layers)


def default_recipe(
    card: ModelCard, takes: Sequence[Take], model: str, changes: Mapping[str, Mapping[str, Any]], dtype: str | None
) -> tuple[Recipe | None, str]:
    """What a job uses that names no cache: `planned` where it was calibrated on this model for such takes; else none, and why.

    model: the model's hash. Raises ValueError for changes that do not belong to `planned`.
    """
    kinds = {(take.num_inference_steps, take.flow_shift) for take in takes}
    steps = takes[0].num_inference_steps
    path = numbers_path(card, "planned", steps)
    if len(kinds) > 1:
        return None, "takes of several num_inference_steps or flow_shift have no plan in common"
    if not path.is_file():
        return None, f"`longtake calibrate {card.path} --steps {steps} --prompt ...` makes one for this model"
    try:
        recipe = load_recipe(path)
        for take in takes:
            check_recipe(recipe, card, take, model)
    except ValueError as error:
        return None, f"the numbers beside the model do not serve: {error}"
    return load_recipe(path, changes, dtype), ""


def check_recipe(recipe: Recipe, card: ModelCard, take: Take, model: str, degrees: Degrees | None = None) -> None:
    """Raise ValueError, with the mend, if a recipe cannot work on this model, take or gang. model: the model's hash."""
    num_calls = card.num_calls(take.num_inference_steps)
    if card.calls_a_step > 1 and (recipe.calibrated or recipe.calibration or recipe.abscissa == "sigma"):
        raise ValueError(
            f"Recipe '{recipe.name}' counts steps of one model call each, and this model's scheduler makes {card.calls_a_step} a step; use another "
            f"recipe (interval, fbcache), or save the model with FlowMatchEulerDiscreteScheduler."
        )
    if recipe.calibration:
        recipe.calibration.check(model, take.num_inference_steps, take.flow_shift, recipe.name)
    if recipe.calibration or not recipe.calibrated:  # a form that is to be calibrated says nothing yet
        _check_guidance(recipe, take)
    recipe.check(model_shape(card, take), num_calls)
    if not card.moves_by_velocity:
        for part in recipe.parts:
            part.predictor.build().check_sampler(None)
    if (derives_branch(recipe) or recipe.branches == "joint") and not take.is_guided(card):
        raise ValueError(f"Recipe '{recipe.name}' works on both guidance branches, but take '{take.name}' has one; use another recipe.")
    if degrees is not None:
        check_gang(recipe, degrees)


def derives_branch(recipe: Recipe) -> bool:
    """Whether it takes one guidance branch from the other, so that there is but one to run."""
    return any(part.site.name == "guidance" for part in recipe.parts)


def check_gang(recipe: Recipe, degrees: Degrees) -> None:
    """Raise ValueError, with the mend, if a recipe cannot work on a gang of that shape."""
    if derives_branch(recipe) and degrees.cfg_degree > 1:
        raise ValueError(
            f"Recipe '{recipe.name}' derives one guidance branch from the other, which saves nothing while both run at once; set "
            f"parallel.cfg_degree to 1."
        )


def _check_guidance(recipe: Recipe, take: Take) -> None:
    scales = [scale for part in recipe.parts if (scale := getattr(part.trigger.config, "guidance_scale", None)) is not None]
    if scales not in ([], [take.guidance_scale]):
        raise ValueError(
            f"Recipe '{recipe.name}' was calibrated at guidance_scale {scales[0]:g}, take '{take.name}' has {take.guidance_scale:g}; make them "
            f"equal, or run `longtake calibrate` with --guidance-scale {take.guidance_scale:g}."
        )


def model_shape(card: ModelCard, take: Take, ranks: int = 1, rank: int = 0, *, by_frames: bool = False) -> ModelShape:
    """One model call of a take, of its longest window. ranks: that share tokens, of which this is the shape on one."""
    frames = max(window.stop - window.start for window in take.timeline_for(card).windows)
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
    """Where the cache is to keep what it keeps, `device` or `host`. Raises ValueError, with the mend, for one over a budget that refuses."""
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
    windows = -(-len(take.timeline_for(card).windows) // degrees.window_degree)
    branches = 2 if take.is_guided(card) and degrees.cfg_degree == 1 else 1
    itemsize = {"float32": 4, "bfloat16": 2, "float16": 2}[options.dtype]
    return predict_bytes(recipe, shape, windows, branches, itemsize)
