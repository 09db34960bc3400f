"""Which recipe a take is rendered with, and where a recipe's numbers for a model come from. Knows cards and takes; loads no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...cache import Recipe, load_recipe
from ..checkpoint.card import ModelCard
from ..take import Take
from .check import check_recipe


def numbers_path(card: ModelCard, name: str, num_inference_steps: int, scheduler: str | None = None) -> Path:
    """The path of a recipe with numbers that were measured on this model. num_inference_steps: 0 where they hold for any number of steps, and
    then for any sampler. scheduler: the sampler's name; None for the checkpoint's own.
    """
    sampler = "" if scheduler in (None, card.sampler) else f"-{scheduler}"
    return card.path / "longtake" / (f"{name}{sampler}-{num_inference_steps}-steps.yaml" if num_inference_steps else f"{name}.yaml")


def find_recipe(
    name: str,
    card: ModelCard,
    num_inference_steps: int,
    changes: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: str | None = None,
    *,
    scheduler: str | None = None,
) -> Recipe:
    """A recipe by name or YAML path, with the model's numbers: those beside the model, or else published ones. scheduler: as in `numbers_path`.

    Raises ValueError, with the mend, for a recipe that needs numbers and finds none.
    """
    recipe = load_recipe(name)
    if recipe.calibrated and recipe.calibration is None:
        there = [path for steps in (num_inference_steps, 0) if (path := numbers_path(card, name, steps, scheduler)).is_file()]
        if there:
            return load_recipe(there[0], changes, dtype)
        others = sorted(path.stem for path in card.path.glob(f"longtake/{name}-*-steps.yaml"))
        if others:
            raise ValueError(
                f"There are numbers for recipe '{name}' beside the model ({', '.join(others)}), but none for {num_inference_steps} steps"
                f"{_named(scheduler, ' of ')}; run `longtake calibrate` with --steps {num_inference_steps}{_named(scheduler, ' --scheduler ')}."
            )
    return load_recipe(name, changes, dtype).fitted(card.name, card.dim, card.num_layers)


def _named(scheduler: str | None, words: str) -> str:
    """The name of a sampler, after `words`; empty for the checkpoint's own."""
    return "" if scheduler is None else words + scheduler


def shift_of(card: ModelCard, take: Take) -> float:
    return card.flow_shift if take.flow_shift is None else take.flow_shift


def sampling_options(take: Take) -> str:
    """The options of `longtake calibrate` for takes like this one, each after a space."""
    return f" --guidance-scale {take.guidance_scale:g}" + ("" if take.flow_shift is None else f" --flow-shift {take.flow_shift:g}")


def default_recipe(
    card: ModelCard, takes: Sequence[Take], model: str, changes: Mapping[str, Mapping[str, Any]], dtype: str | None
) -> tuple[Recipe | None, str]:
    """The recipe of a job that names none: `planned` where it was calibrated on this model for such takes; else none, and why.

    model: the model's hash. Raises ValueError for changes that do not belong to `planned`.
    """
    if any(take.schedule is not None for take in takes):
        return None, "a schedule computes each of its steps; name a recipe to reuse some of them"
    kinds = {(take.num_inference_steps, shift_of(card, take), take.scheduler or card.sampler) for take in takes}
    steps, scheduler = takes[0].num_inference_steps, takes[0].scheduler
    path = numbers_path(card, "planned", steps, scheduler)
    if len(kinds) > 1:
        return None, "numbers are for one num_inference_steps, flow_shift and scheduler, and the takes have several"
    if not path.is_file():
        command = f"longtake calibrate {card.called} --steps {steps}{_named(scheduler, ' --scheduler ')}{sampling_options(takes[0])} --prompt ..."
        return None, f"there is no plan for this model and {steps} steps{_named(scheduler, ' of ')}; `{command}` makes one"
    try:
        recipe = load_recipe(path)
        for take in takes:
            check_recipe(recipe, card, take, model)
    except ValueError as error:
        return None, f"the numbers beside the model cannot be used: {error}"
    return load_recipe(path, changes, dtype), ""
