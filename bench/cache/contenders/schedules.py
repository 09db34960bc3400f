"""Schedules of our own: so many steps of UniPC or DPM++ 2M at noise levels that were planned for it, without a cache; and caches on top of them.

With a cache some blocks or modules are computed at every other step of the schedule alone, so that it has more steps for the same cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from ....cache import Recipe, load_recipe, put_schedule
from ....pipeline.calibration.schedule import plan_schedules
from ..films.samplers import NAMES, sampled_by, sampler
from .contender import OURS, Contender, Setting, Tuning
from .recipes import BUDGETS, put_recipe

_ON_TOP = {  # by the method's name: a recipe and what it computes every other step
    "blocks": ("deepcache", {"trigger": {"interval": 2}}),
    "modules": ("fora", {"trigger": {"interval": 2}}),
    "modules with forecasts": ("taylorseer", {"trigger": {"interval": 2}}),
}


def contenders(tuning: Tuning) -> Iterator[Contender]:
    yield _contender(tuning, "schedule", "unipc", named=True)
    yield _contender(tuning, f"schedule on {NAMES['dpm++']}", "dpm++")
    for method, (name, changes) in _ON_TOP.items():
        yield _contender(tuning, f"schedule with a cache of {method}", "unipc", load_recipe(name, changes))


def _contender(tuning: Tuning, method: str, name: str, recipe: Recipe | None = None, *, named: bool = False) -> Contender:
    """name: of the sampler, as takes have it."""
    return Contender(OURS, method, tuple(_setting(tuning, name, tuple(sigmas), recipe) for sigmas in _planned(tuning, name)), named)


def _planned(tuning: Tuning, name: str) -> list[list[float]]:
    """The noise levels of each number of steps, from the journal where they were planned before."""
    entry = f"the schedules on {name}"
    if entry not in tuning.journal:
        planned = plan_schedules(tuning.renderer, tuning.takes_on(name), BUDGETS[tuning.stage.steps])
        tuning.journal.note(entry, [schedule.sigmas for schedule in planned])
    levels: list[list[float]] = tuning.journal[entry]
    return levels


def _setting(tuning: Tuning, name: str, sigmas: tuple[float, ...], recipe: Recipe | None) -> Setting:
    put = partial(_put, tuning.studio.card, name, sigmas, recipe)
    return Setting(f"{len(sigmas)} steps", put, recipe, steps=len(sigmas), sigmas=sigmas)


@contextmanager
def _put(card: Any, name: str, sigmas: tuple[float, ...], recipe: Recipe | None, pipe: Any) -> Iterator[None]:
    with sampled_by(sampler(card, name), pipe), put_schedule(pipe, sigmas):
        if recipe is None:
            yield
        else:
            with put_recipe(recipe, len(sigmas), pipe):
                yield
