"""Films of 30 s on each timeline: what a plan saves of them, and whether they hold. Two processes render, one thread each."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from fractions import Fraction
from functools import lru_cache
from multiprocessing import get_context
from statistics import fmean
from typing import Any

import torch

from ...cache import Recipe, load_recipe
from ...pipeline.calibration.calibrate import calibrate_each, calibration_takes
from ...pipeline.checkpoint.card import read_card
from ...pipeline.demo.scene import FPS, sentence
from ...pipeline.film.checks.film import FilmChecks
from ...pipeline.film.checks.take import plan_checks
from ...pipeline.loop.render import Renderer, whole_take
from ...pipeline.take import Take
from ..journal import Journal
from .holds import as_row, held
from .plans import Uncached, decode
from .takes import ACT_SECONDS, TIMELINES, frames_in, long_take, script

_SECONDS, _STEPS = 30.0, 50
_BUDGETS = (16, 12, 10)
_PLANNED_FOR, _COMPARED, _SHOWN = 4, 2, 16  # scripts: of calibration, which come after all others; films with and without a plan; films looked at
_ACTS = round(_SECONDS / ACT_SECONDS)
_PROCESSES = 2
LEAST_PSNR = 35.0  # dB to the take without a cache, at which a plan's speed-up counts

Values = dict[str, Any]


def plans_of(name: str, journal: Journal) -> list[Values]:
    """A timeline's films with each plan, beside those without a cache. A plan of the model's own clips serves all timelines."""
    recipes = _recipes(journal)
    found = _each(journal, _compare, {f"{name}, film {number} with plans": (name, number, recipes) for number in range(_COMPARED)})
    return [
        {"recipe": recipe["name"], **{key: [film[index][key] for film in found] for key in found[0][index]}} for index, recipe in enumerate(recipes)
    ]


def films_of(name: str, journal: Journal) -> Values:
    """A timeline's films with the fastest plan that reaches `LEAST_PSNR` there, looked at."""
    chosen = fastest(plans_of(name, journal))
    recipe = next((recipe for recipe in _recipes(journal) if chosen and recipe["name"] == chosen["recipe"]), None)
    takes = _each(journal, _look_at, {f"{name}, film {number} looked at": (name, number, recipe) for number in range(_SHOWN)})
    ratios = [take["seam_ratio"] for take in takes if take["seam_ratio"] is not None]
    return {"recipe": recipe and recipe["name"], "seam_ratio": fmean(ratios) if ratios else None, "takes": takes}


def fastest(plans: list[Values]) -> Values | None:
    enough = [plan for plan in plans if fmean(plan["psnr"]) >= LEAST_PSNR]
    return max(enough, key=lambda plan: fmean(plan["speedup"]), default=None)


def _each(journal: Journal, work: Callable[..., Any], arguments: dict[str, tuple[Any, ...]]) -> list[Any]:
    """What `work` gives for each of the arguments, from the journal where it is there."""
    missing = {entry: given for entry, given in arguments.items() if entry not in journal}
    if missing:
        with ProcessPoolExecutor(_PROCESSES, get_context("forkserver")) as pool:
            futures = {pool.submit(work, *given): entry for entry, given in missing.items()}
            for future in as_completed(futures):
                journal.note(futures[future], future.result())
    return [journal[entry] for entry in arguments]


def _recipes(journal: Journal) -> list[Values]:
    """Those of all timelines, with numbers of four clips."""
    if "recipes" not in journal:
        renderer = _renderer()
        card = renderer.family.card
        prompts = [sentence(script(_SHOWN + number, 1).acts[0]) for number in range(_PLANNED_FOR)]
        made = calibrate_each("planned", renderer, calibration_takes(card, prompts, _STEPS, card.guidance_scale), computed=_BUDGETS)
        journal.note("recipes", [recipe.to_dict() for recipe in made])
    values: list[Values] = journal["recipes"]
    return values


@lru_cache
def _renderer() -> Renderer:
    """Of this process."""
    torch.set_num_threads(1)
    return Renderer(read_card("demo"))


def _take(name: str, number: int) -> Take:
    card = _renderer().family.card
    return long_take(card, script(number, _ACTS), TIMELINES[name], frames_in(card, _SECONDS), _STEPS)


def _compare(name: str, number: int, recipes: list[Values]) -> list[Values]:
    uncached = Uncached(_renderer(), _take(name, number))
    return [uncached.beside(load_recipe(values)) for values in recipes]


def _look_at(name: str, number: int, values: Values | None) -> Values:
    renderer, take = _renderer(), _take(name, number)
    recipe: Recipe | None = load_recipe(values) if values else None
    frames = decode(renderer, whole_take(renderer.steps(take, recipe)).latents).mul(255).round().byte()
    checks = FilmChecks(plan_checks(take, renderer.family.card, Fraction(FPS)))
    checks.add(frames)
    seen = checks.result()
    told = {"seam_ratio": seen.seam_ratio, "background_shift": seen.background_shift, "marks": seen.summary}
    return {**as_row(held(frames.numpy(), script(number, _ACTS))), **told}
