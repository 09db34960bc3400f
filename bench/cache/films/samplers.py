"""The samplers that films are compared on, and the spacings of steps that a user of diffusers can choose among.

`use_karras_sigmas`, `use_exponential_sigmas` and `use_beta_sigmas` of diffusers 0.42.1 give noise levels of a flow, from 1 down to 0, on
FlowMatchEulerDiscreteScheduler, and Karras on UniPC, which spaces it otherwise. UniPC's other two and DPM++'s three are of a
variance-exploding process and begin at 157, which is no share of noise: there `spaced` sets what FlowMatchEulerDiscreteScheduler makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from ....cache.schedule.put import put_schedule
from ....pipeline.checkpoint.card import ModelCard
from ....pipeline.families.samplers import make_scheduler
from ....pipeline.take import Take
from .models import GUIDANCE_SCALE

NAMES = {"euler": "Euler", "unipc": "UniPC", "dpm++": "DPM++ 2M"}  # of samplers, as takes have them: as people call them
SPACINGS = ("karras", "exponential", "beta")


def sampler(card: ModelCard, name: str, flow_shift: float | None = None) -> Any:
    """A fresh diffusers scheduler. name: as takes have it. flow_shift: the model's own if left out."""
    take = Take.clip(card, "sampler", "", seed=0, num_inference_steps=1, guidance_scale=GUIDANCE_SCALE)
    return make_scheduler(card, replace(take, scheduler=name, flow_shift=flow_shift))


def spacing(card: ModelCard, name: str, num_inference_steps: int) -> list[float]:
    """The noise levels that FlowMatchEulerDiscreteScheduler makes of one of SPACINGS at the model's flow shift, without the 0 at the end.

    Raises ImportError for `beta` where scipy is not installed.
    """
    made = _respaced(sampler(card, "euler"), name)
    made.set_timesteps(num_inference_steps)
    return [float(sigma) for sigma in made.sigmas[:-1]]


def spaced(card: ModelCard, name: str, how: str, num_inference_steps: int, pipe: Any) -> AbstractContextManager[None]:
    """Let a stock pipeline use a sampler at one of SPACINGS, by its own setting where that makes noise levels of a flow."""
    if name == "euler" or (name, how) == ("unipc", "karras"):
        return sampled_by(_respaced(sampler(card, name), how), pipe)
    return sampled_by(sampler(card, name), pipe, spacing(card, how, num_inference_steps))


def _respaced(scheduler: Any, how: str) -> Any:
    return type(scheduler).from_config(scheduler.config, **{f"use_{how}_sigmas": True})


@contextmanager
def sampled_by(scheduler: Any, pipe: Any, sigmas: list[float] | None = None) -> Iterator[None]:
    """Let a stock pipeline use another scheduler, at its own noise levels or at given ones."""
    before, pipe.scheduler = pipe.scheduler, scheduler
    try:
        if sigmas is None:
            yield
        else:
            with put_schedule(pipe, sigmas):
                yield
    finally:
        pipe.scheduler = before
