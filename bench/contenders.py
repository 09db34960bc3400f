"""Who is compared: a tool, a method of it and the settings that are tried. Here longtake's own recipes; the others' are in `rivals`.

Each method gets the same number of settings, spread so that speed-ups reach from about 1.3 to 5. A new recipe with a trigger that is
known here joins by itself; any other needs one line in `_SWEEPS`, or in `CALIBRATED` if it is measured on the model first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..cache import Recipe, enable_cache, load_recipe
from ..cache.recipe import recipe_names
from ..pipeline.calibrate import calibrate_planned, calibration_takes
from ..pipeline.render import Renderer
from ..pipeline.take import Take
from .stock import GUIDANCE_SCALE, Clip, Studio

OURS = "longtake"
STEPS = (50, 12, 6)
NUM_SETTINGS = {50: 6, 12: 6, 6: 4}  # by steps a film: 6 steps leave no more intervals and budgets to choose from
INTERVALS = (2, 3, 4, 5, 6, 8)

Put = Callable[[Any], AbstractContextManager[None]]


@dataclass(frozen=True)
class Setting:
    """put: takes a stock pipeline and keeps a fresh cache on it inside the context. recipe: ours only."""

    label: str
    put: Put
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Contender:
    tool: str
    method: str
    settings: tuple[Setting, ...]

    @property
    def name(self) -> str:
        return f"{self.tool} {self.method}"


@dataclass(frozen=True)
class Tuning:
    """What calibration may look at: films of trained scenes, none of which is measured.

    renderer: the same model as the studio's, in longtake's own loop.
    """

    studio: Studio
    renderer: Renderer
    clips: list[Clip]
    num_inference_steps: int

    @property
    def num_settings(self) -> int:
        return NUM_SETTINGS[self.num_inference_steps]

    @property
    def takes(self) -> list[Take]:
        prompts = [clip.prompt for clip in self.clips]
        return calibration_takes(self.renderer.family.card, prompts, self.num_inference_steps, GUIDANCE_SCALE)


Changes = Mapping[str, Mapping[str, Any]]
Sweep = Callable[[int], list[Changes]]  # from the steps of a film


def geometric(low: float, high: float, count: int) -> list[float]:
    return [float(f"{value:.3g}") for value in np.geomspace(low, high, count)]


def longer(steps: int) -> float:
    """How much farther thresholds reach than at 50 steps: changes from step to step are larger, and fewer of them are left out."""
    return float((50 / steps) ** 0.5)


def thresholds(low: float, high: float, part: str = "trigger", key: str = "threshold") -> Sweep:
    """From `low` to `high` at 50 steps."""
    return lambda steps: [{part: {key: value}} for value in geometric(low * longer(steps), high * longer(steps), NUM_SETTINGS[steps])]


def intervals(part: str = "trigger", key: str = "interval") -> Sweep:
    return lambda steps: [{part: {key: value}} for value in INTERVALS[: NUM_SETTINGS[steps]]]


def budgets(steps: int) -> list[int]:
    """Computed steps."""
    return {50: [30, 22, 16, 12, 9, 7], 12: [9, 7, 6, 5, 4, 3], 6: [5, 4, 3, 2]}[steps]


# By the recipe's own name, or else by its trigger's.
_SWEEPS: dict[str, Sweep] = {
    "interval": intervals(),
    "ranges": intervals(),
    "relative_change": thresholds(0.03, 0.18),
    "magnitude": thresholds(0.03, 1.0),
}


def _planned(tuning: Tuning) -> list[Recipe]:
    return [calibrate_planned(tuning.renderer, tuning.takes, budget) for budget in budgets(tuning.num_inference_steps)]


# Recipes that are measured on the model for each setting anew, whether or not one of that name comes along.
CALIBRATED: dict[str, Callable[[Tuning], list[Recipe]]] = {
    "planned": _planned,
}


def our_contenders(tuning: Tuning) -> list[Contender]:
    """Every recipe that comes along, and every calibrated one. Raises ValueError for a recipe without a sweep."""
    ours = [Contender(OURS, name, tuple(_settings(name, tuning))) for name in sorted({*recipe_names(), *CALIBRATED})]
    for contender in ours:
        assert len({setting.label for setting in contender.settings}) == tuning.num_settings, contender.name
    return ours


def _settings(name: str, tuning: Tuning) -> Iterator[Setting]:
    steps = tuning.num_inference_steps
    if name in CALIBRATED:
        for recipe in CALIBRATED[name](tuning):
            yield our_setting(recipe.name, recipe, steps)
    else:
        for changes in sweep_of(name)(steps):
            label = ", ".join(f"{key}={value}" for settings in changes.values() for key, value in settings.items())
            yield our_setting(label, load_recipe(name, changes), steps)


def sweep_of(recipe: str) -> Sweep:
    """Raises ValueError, with the mend, where there is none."""
    trigger = load_recipe(recipe).trigger.name
    sweep = _SWEEPS.get(recipe) or _SWEEPS.get(trigger)
    if sweep is None:
        raise ValueError(f"Recipe '{recipe}' has no sweep; give bench/contenders.py a line for it, or for its trigger '{trigger}'.")
    return sweep


def our_setting(label: str, recipe: Recipe, num_inference_steps: int) -> Setting:
    return Setting(label, partial(_put, recipe, num_inference_steps), recipe)


@contextmanager
def _put(recipe: Recipe, num_inference_steps: int, pipe: Any) -> Iterator[None]:
    cached = enable_cache(pipe, recipe, num_inference_steps=num_inference_steps)
    try:
        yield
    finally:
        cached.disable()
