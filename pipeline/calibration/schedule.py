"""Planning schedules for a model: the sigmas at which a sampler calls it, chosen by rendering them (cache/calibration/planning.py)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ...cache import Schedule
from ...cache.calibration.planning import Planning
from ...cache.schedule.put import check_scheduler, deciding_settings
from ..checkpoint.card import ModelCard
from ..checkpoint.model_hash import model_hash
from ..loop.render import Renderer
from ..take import Take
from .calibrate import check_calibration
from .takes import RendererTakes

_log = logging.getLogger(__name__)


def check_schedule(card: ModelCard, takes: list[Take], *, computed: int | None = None, threshold: float | None = None) -> int:
    """How many steps the schedule will have. Raises ValueError, with the mend, as `check_calibration` does for a plan, and for a sampler that
    takes no schedule.
    """
    for take in takes:
        take.check(card)
        take.scheduled_sampler(card)
    return check_calibration("planned", card, takes, computed=computed, threshold=threshold)[-1].computed


def plan_schedule(renderer: Renderer, takes: list[Take], *, computed: int | None = None) -> Schedule:
    """The schedule of `computed` steps for takes of this kind, chosen from the sigmas of theirs. Raises ValueError as `check_schedule` does."""
    return plan_schedules(renderer, takes, [computed])[0]


def plan_schedules(renderer: Renderer, takes: list[Take], computed: Sequence[int | None]) -> list[Schedule]:
    """One schedule for each number of steps, from one measurement."""
    card, take = renderer.family.card, takes[0]
    budgets = [check_schedule(card, takes, computed=budget) for budget in computed]
    scheduler = renderer.family.scheduler(take)
    check_scheduler(scheduler)
    _, form, _ = check_calibration("planned", card, takes, computed=budgets[0])
    planning = Planning(RendererTakes(renderer, takes), form, _log.info)
    return [
        Schedule(
            sigmas=planning.schedule(budget),
            scheduler=type(scheduler).__name__,
            settings=deciding_settings(scheduler),
            flow_shift=card.flow_shift if take.flow_shift is None else take.flow_shift,
            guidance_scale=take.guidance_scale,
            model=model_hash(card.path),
        )
        for budget in budgets
    ]
