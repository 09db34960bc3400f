"""Choosing the sigmas at which a sampler calls the model: of the steps of uncached takes those that a plan of as many would compute."""

from __future__ import annotations

from ...cache import Schedule
from ...cache.schedule.put import check_scheduler, deciding_settings
from ..checkpoint.card import ModelCard
from ..checkpoint.model_hash import model_hash
from ..loop.render import Renderer
from ..take import Take
from .calibrate import check_calibration
from .measure import measure_growth, measure_velocities
from .methods.planned import plan_steps


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
    card, take = renderer.family.card, takes[0]
    num_steps = check_schedule(card, takes, computed=computed)
    scheduler = renderer.family.scheduler(take)
    check_scheduler(scheduler)
    _, form, _ = check_calibration("planned", card, takes, computed=num_steps)
    velocities = measure_velocities(renderer, takes, form)
    plan = plan_steps(velocities.guided, velocities.sigmas, measure_growth(renderer, takes), num_steps)
    return Schedule(
        sigmas=velocities.sigmas[list(plan.computed)].tolist(),
        scheduler=type(scheduler).__name__,
        settings=deciding_settings(scheduler),
        flow_shift=card.flow_shift if take.flow_shift is None else take.flow_shift,
        guidance_scale=take.guidance_scale,
        model=model_hash(card.path),
    )
