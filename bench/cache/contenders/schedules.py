"""Schedules of our own: so many UniPC steps at noise levels that were planned for it, without a cache; and caches on top of them.

With a cache some blocks or modules are computed at every other step of the schedule alone, so that it has more steps for the same cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ....cache import Recipe, load_recipe, put_schedule
from ....pipeline.calibration.schedule import plan_schedules
from ..films.samplers import sampled_by, sampler
from .contender import OURS, Contender, Setting, Tuning
from .recipes import BUDGETS, put_recipe

SAMPLER = "unipc"
_ON_TOP = {  # by the method's name: a recipe and what it computes every other step
    "blocks": ("deepcache", {"trigger": {"interval": 2}}),
    "modules": ("fora", {"trigger": {"interval": 2}}),
    "modules with forecasts": ("taylorseer", {"trigger": {"interval": 2}}),
}


def contenders(tuning: Tuning) -> Iterator[Contender]:
    schedules = {count: tuple(sigmas) for count, sigmas in _planned(tuning)}
    yield Contender(OURS, "schedule", tuple(_setting(tuning, sigmas, None) for sigmas in schedules.values()), named=True)
    for method, (name, changes) in _ON_TOP.items():
        recipe = load_recipe(name, changes)
        yield Contender(OURS, f"schedule with a cache of {method}", tuple(_setting(tuning, sigmas, recipe) for sigmas in schedules.values()))


def _planned(tuning: Tuning) -> Iterator[tuple[int, list[float]]]:
    """The noise levels of each number of steps, from the journal where they were planned before."""
    entry, counts = f"the schedules on {SAMPLER}", BUDGETS[tuning.stage.steps]
    if entry not in tuning.journal:
        planned = plan_schedules(tuning.renderer, tuning.takes_on(SAMPLER), counts)
        tuning.journal.note(entry, [[count, schedule.sigmas] for count, schedule in zip(counts, planned, strict=True)])
    yield from tuning.journal[entry]


def _setting(tuning: Tuning, sigmas: tuple[float, ...], recipe: Recipe | None) -> Setting:
    put = partial(_put, tuning.studio.card, sigmas, recipe)
    return Setting(f"{len(sigmas)} steps", put, recipe, steps=len(sigmas), sigmas=sigmas)


@contextmanager
def _put(card: Any, sigmas: tuple[float, ...], recipe: Recipe | None, pipe: Any) -> Iterator[None]:
    with sampled_by(sampler(card, SAMPLER), pipe), put_schedule(pipe, sigmas):
        if recipe is None:
            yield
        else:
            with put_recipe(recipe, len(sigmas), pipe):
                yield
