"""Films of 30 s on each timeline: what a plan saves of them, and whether they hold."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cache import Recipe, load_recipe
from ...pipeline.calibration.calibrate import calibrate_each, calibration_takes
from ...pipeline.checkpoint.card import ModelCard, read_card
from ...pipeline.demo.scene import sentence
from ...pipeline.loop.render import Renderer, whole_take
from ...pipeline.take import Take
from ..journal import Journal
from .holds import as_row, background_shift, held
from .plans import Uncached, decode
from .takes import ACT_SECONDS, TIMELINES, frames_in, long_take, script

_SECONDS, _STEPS = 30.0, 50
_BUDGETS = (16, 12, 10)
_PLANNED_FOR, _COMPARED, _SHOWN = 4, 2, 16  # scripts: of calibration, which come after all others; films with and without a plan; films looked at
_ACTS = round(_SECONDS / ACT_SECONDS)
LEAST_PSNR = 35.0  # dB to the take without a cache, at which a plan's speed-up counts


def plans_of(name: str, journal: Journal) -> list[dict[str, Any]]:
    """A timeline's films with each plan, beside those without a cache. A plan of the model's own clips serves all timelines."""
    renderer = Renderer(read_card("demo"))
    recipes = _recipes(renderer, journal)
    for number in range(_COMPARED):
        missing = [recipe for recipe in recipes if _compared(name, recipe, number) not in journal]
        if missing:
            uncached = Uncached(renderer, _take(renderer.family.card, name, number))
            for recipe in missing:
                journal.note(_compared(name, recipe, number), uncached.beside(recipe))
    rows = []
    for recipe in recipes:
        films = [journal[_compared(name, recipe, number)] for number in range(_COMPARED)]
        rows.append({"recipe": recipe.name, **{key: [film[key] for film in films] for key in films[0]}})
    return rows


def _compared(name: str, recipe: Recipe, number: int) -> str:
    return f"{name}, {recipe.name}, film {number}"


def films_of(name: str, journal: Journal) -> dict[str, Any]:
    """A timeline's films with the fastest plan that reaches `LEAST_PSNR` there, looked at."""
    renderer = Renderer(read_card("demo"))
    chosen = fastest(plans_of(name, journal))
    recipes = {recipe.name: recipe for recipe in _recipes(renderer, journal)}
    for number in range(_SHOWN):
        entry = f"{name}, film {number} looked at"
        if entry not in journal:
            journal.note(entry, _looked_at(renderer, name, number, recipes[chosen["recipe"]] if chosen else None))
    return {"recipe": chosen and chosen["recipe"], "takes": [journal[f"{name}, film {number} looked at"] for number in range(_SHOWN)]}


def fastest(plans: list[dict[str, Any]]) -> dict[str, Any] | None:
    enough = [plan for plan in plans if fmean(plan["psnr"]) >= LEAST_PSNR]
    return max(enough, key=lambda plan: fmean(plan["speedup"]), default=None)


def _recipes(renderer: Renderer, journal: Journal) -> list[Recipe]:
    if "plans" not in journal:
        card = renderer.family.card
        prompts = [sentence(script(_SHOWN + number, 1).acts[0]) for number in range(_PLANNED_FOR)]
        made = calibrate_each("planned", renderer, calibration_takes(card, prompts, _STEPS, card.guidance_scale), computed=_BUDGETS)
        journal.note("plans", [recipe.to_dict() for recipe in made])
    return [load_recipe(values) for values in journal["plans"]]


def _take(card: ModelCard, name: str, number: int) -> Take:
    return long_take(card, script(number, _ACTS), TIMELINES[name], frames_in(card, _SECONDS), _STEPS)


def _looked_at(renderer: Renderer, name: str, number: int, recipe: Recipe | None) -> dict[str, Any]:
    take = _take(renderer.family.card, name, number)
    latents = whole_take(renderer.steps(take, recipe)).latents
    frames: NDArray[np.uint8] = decode(renderer, latents).mul(255).round().byte().numpy()
    clip = renderer.family.card.trained_frames
    shift = background_shift(frames[:clip], frames[-clip:])
    return {**as_row(held(frames, script(number, _ACTS))), "background_shift": shift}
