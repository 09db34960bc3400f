"""Longtake's own recipes, each with the settings that are tried.

Each method gets the same number of settings, spread so that speed-ups reach from about 1.3 to 5. A new recipe with a trigger that is
known here joins by itself; any other needs one line in `_SWEEPS`, or in `_CALIBRATED` if each setting is measured on the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ....cache import Recipe, enable_cache, load_recipe
from ....cache.recipe import knobs
from ....cache.recipe.read import recipe_names
from ....pipeline.calibration.calibrate import calibrate, calibrate_each
from ..films.samplers import NAMES, sampled_by, sampler
from .contender import INTERVALS, NUM_SETTINGS, OURS, Contender, Setting, Tuning, geometric, longer

Sweep = Callable[[Recipe, int], list[Recipe]]  # of a recipe with its numbers, for films of so many steps


def thresholds(low: float, high: float) -> Sweep:
    """From `low` to `high` at 50 steps."""

    def sweep(recipe: Recipe, steps: int) -> list[Recipe]:
        values = geometric(low * longer(steps), high * longer(steps), NUM_SETTINGS[steps])
        return [load_recipe(recipe, {"trigger": {"threshold": value}}) for value in values]

    return sweep


def intervals(recipe: Recipe, steps: int) -> list[Recipe]:
    return [load_recipe(recipe, {"trigger": {"interval": value}}) for value in INTERVALS[: NUM_SETTINGS[steps]]]


def rungs(recipe: Recipe, steps: int) -> list[Recipe]:
    """All its knobs turned together, from well below what it says to well above."""
    ladder = knobs.ladder(recipe)
    spread = ladder if len(ladder) < 2 * len(INTERVALS) else ladder[len(ladder) // 4 : -(len(ladder) // 4)]
    return [spread[round(place)] for place in np.linspace(0, len(spread) - 1, min(NUM_SETTINGS[steps], len(spread)))]


# By the recipe's own name, or else by its only trigger's.
_SWEEPS: dict[str, Sweep] = {
    "interval": intervals,
    "layerwise": rungs,
    "magnitude": thresholds(0.03, 1.0),
    "parts": rungs,
    "ranges": rungs,
    "rate": thresholds(0.01, 0.4),
    "relative_change": thresholds(0.03, 0.18),
    "seacache": thresholds(0.1, 0.8),
    "verify": rungs,
}
EULER_ONLY = {"meancache": "its corrections are worked out for a sampler that moves the latents by velocity times the step in sigma"}
UNCORRECTED = "planned without its corrector"
_OTHER = "dpm++"  # the sampler that plans are also made for where UniPC is the model's own: fewer steps do best on it
ON_OTHER = f"planned on {NAMES[_OTHER]}"
LEFT_OUT = {"ra_cfgcache": "decides from both branches before either runs; stock pipelines call one after the other"}


# Computed steps. LeMiCa's gaps are short, because each is rendered; MeanCache's plans have gaps of at most eight steps.
BUDGETS = {50: [20, 16, 12, 9, 7, 5], 30: [20, 16, 12, 9, 7, 5], 12: [9, 7, 6, 5, 4, 3], 6: [5, 4, 3, 2]}
_MEANCACHE_BUDGETS = {**BUDGETS, 50: [20, 16, 12, 9, 8, 7]}
_LEMICA_BUDGETS = {50: [30, 22, 18, 15, 13, 11], 30: [20, 16, 13, 11, 9, 7], 12: [9, 8, 7, 6, 5, 4], 6: [5, 4, 3, 2]}


def _by_budget(budgets: dict[int, list[int]], name: str, tuning: Tuning) -> dict[str, Recipe]:
    computed = budgets[tuning.num_inference_steps]
    recipes = calibrate_each(name, tuning.renderer, tuning.takes, computed=computed)
    return {f"computed {count}": recipe for count, recipe in zip(computed, recipes, strict=True)}


def _by_error(low: float, high: float, name: str, tuning: Tuning) -> dict[str, Recipe]:
    errors = geometric(low, high, tuning.num_settings)
    recipes = calibrate_each(name, tuning.renderer, tuning.takes, threshold=errors)
    return {f"threshold {error:g}": recipe for error, recipe in zip(errors, recipes, strict=True)}


# Recipes that are measured on the model for each setting anew; other calibrated ones are measured once, and swept.
_CALIBRATED: dict[str, Callable[[str, Tuning], dict[str, Recipe]]] = {
    "ertacache": partial(_by_error, 0.03, 0.4),
    "lemica": partial(_by_budget, _LEMICA_BUDGETS),
    "meancache": partial(_by_budget, _MEANCACHE_BUDGETS),
    "planned": partial(_by_budget, BUDGETS),
    "smoothcache": partial(_by_error, 0.03, 0.4),
}


def contenders(tuning: Tuning, only: str = "") -> Iterator[Contender]:
    """Every recipe that comes with longtake and runs in a stock pipeline on the stage's sampler, or those of them whose name contains `only`;
    and `planned` once more without its corrector, and on a sampler that one may choose instead of UniPC. Raises ValueError for a recipe
    without a sweep.
    """
    for name in recipe_names():
        if name not in LEFT_OUT and (tuning.stage.sampler == "euler" or name not in EULER_ONLY) and only in f"{OURS} {name}":
            yield Contender(OURS, name, tuple(_settings(name, tuning)), named=name == "planned")
    if only in f"{OURS} {UNCORRECTED}":
        recipes = {setting.label: without_corrector(setting.recipe) for setting in _settings("planned", tuning) if setting.recipe}
        settings = tuple(our_setting(label, recipe, tuning.num_inference_steps) for label, recipe in recipes.items())
        yield Contender(OURS, UNCORRECTED, settings, named=True)
    if tuning.stage.sampler == "unipc" and only in f"{OURS} {ON_OTHER}":
        yield Contender(OURS, ON_OTHER, tuple(_on_other(setting, tuning) for setting in _settings("planned", tuning, _OTHER)))


def _on_other(setting: Setting, tuning: Tuning) -> Setting:
    @contextmanager
    def put(pipe: Any) -> Iterator[None]:
        with sampled_by(sampler(tuning.studio.card, _OTHER), pipe), setting.put(pipe):
            yield

    return replace(setting, put=put)


def without_corrector(recipe: Recipe) -> Recipe:
    """A plan with its forecasts, that makes up for nothing once a step is computed."""
    values = recipe.to_dict()
    values["predictor"] = {"name": "planned", "damping_by_step": values["predictor"]["damping_by_step"]}
    return load_recipe(values)


def _settings(name: str, tuning: Tuning, on: str = "") -> Iterator[Setting]:
    """From the journal, where their recipes were measured on the model and this run goes on with another. on: a sampler other than the stage's."""
    entry = f"the settings of {name}" + (f" on {on}" if on else "")
    if entry not in tuning.journal:
        measured = replace(tuning, stage=replace(tuning.stage, sampler=on)) if on else tuning
        tuning.journal.note(entry, {label: recipe.to_dict() for label, recipe in _labelled(name, measured).items()})
    for label, recipe in tuning.journal[entry].items():
        yield our_setting(label, load_recipe(recipe), tuning.num_inference_steps)


def _labelled(name: str, tuning: Tuning) -> dict[str, Recipe]:
    if name in _CALIBRATED:
        return _CALIBRATED[name](name, tuning)
    recipe = load_recipe(name)
    swept = sweep(calibrate(name, tuning.renderer, tuning.takes) if recipe.calibrated else recipe, tuning.num_inference_steps)
    return {knobs.describe_knobs(recipe): recipe for recipe in swept}


def sweep(recipe: Recipe, steps: int) -> list[Recipe]:
    """The settings that are tried. Raises ValueError, with the mend, where nobody said."""
    trigger = recipe.parts[0].trigger.name if len(recipe.parts) == 1 else "parts"
    chosen = _SWEEPS.get(recipe.name) or _SWEEPS.get(trigger)
    if chosen is None:
        raise ValueError(f"Recipe '{recipe.name}' has no sweep; give it, or its trigger '{trigger}', a line in bench/cache/contenders/recipes.py.")
    return chosen(recipe, steps)


def our_setting(label: str, recipe: Recipe, num_inference_steps: int) -> Setting:
    return Setting(label, partial(put_recipe, recipe, num_inference_steps), recipe)


@contextmanager
def put_recipe(recipe: Recipe, num_inference_steps: int, pipe: Any) -> Iterator[None]:
    cached = enable_cache(pipe, recipe, num_inference_steps=num_inference_steps)
    try:
        yield
    finally:
        cached.disable()
