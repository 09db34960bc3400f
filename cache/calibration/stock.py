"""Calibrating on a stock diffusers pipeline, with nothing but that pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..model.beside_others import check_others, check_unmarked
from ..model.wrap import Wrapped
from ..recipe.calibration import Calibration, Sampling
from ..recipe.config import suggestion
from ..recipe.read import load_recipe
from ..recipe.recipe import Recipe
from ..run.cached import Cached, sampling_of
from ..run.enable import parts_of
from ..sampler.linear_map import linear_map
from ..schedule.put import check_scheduler, deciding_settings, put_schedule
from ..schedule.schedule import Schedule
from .path import check_budget
from .plan import MAX_GAP
from .planning import Planning, with_numbers
from .takes import Played, listening

_OURS = ("generator", "latents", "num_inference_steps", "output_type", "prompt", "prompt_embeds", "return_dict")
_FEWEST_STEPS = 3
CALIBRATED = ("planned", "schedule")


@dataclass
class PipelineTakes:
    """One take a prompt, with the prompt's number as seed."""

    pipeline: Any
    prompts: Sequence[str]
    num_inference_steps: int
    arguments: dict[str, Any]

    def __post_init__(self) -> None:
        _, self._transformers = parts_of(self.pipeline)
        self._sampling: Sampling | None = None

    @property
    def sampling(self) -> Sampling:
        assert self._sampling is not None, "nothing has been rendered"
        return self._sampling

    def __len__(self) -> int:
        return len(self.prompts)

    def render(self, index: int, cached: Cached | None = None, sigmas: Sequence[float] | None = None) -> Played:
        scheduler, generator = self.pipeline.scheduler, torch.Generator().manual_seed(index)
        if cached is not None:
            cached.attach(self._transformers, self.pipeline)
        steps = self.num_inference_steps if sigmas is None else len(sigmas)
        try:
            with listening(scheduler) as played, put_schedule(self.pipeline, sigmas) if sigmas is not None else nullcontext():
                self.pipeline(self.prompts[index], num_inference_steps=steps, generator=generator, output_type="latent", **self.arguments)
        finally:
            if cached is not None:
                cached.disable()
        self._sampling = sampling_of(self.pipeline)
        return played


def calibrate(
    pipeline: Any,
    name: str,
    *,
    prompts: Sequence[str],
    num_inference_steps: int,
    computed: int | None = None,
    say: Callable[[str], None] = print,
    **call_arguments: Any,
) -> Recipe | Schedule:
    """A recipe for `enable_cache`, or a schedule for `put_schedule`, that fits a stock diffusers pipeline and its calls:

        enable_cache(pipe, calibrate(pipe, "planned", prompts=[...], num_inference_steps=50, guidance_scale=5.0), num_inference_steps=50)

    name: `planned` or `schedule`. prompts: one full take each is rendered, and as many plans as three takes more take; three or four of them, with
    scenes like those that are wanted, will do. computed: how many steps of `num_inference_steps` to compute, two in five if left out.
    say: told how long it takes and what is chosen. call_arguments: those that the pipeline's calls will have: guidance_scale, height, width,
    num_frames, negative_prompt. Raises ValueError, with the mend, before anything is rendered, for what does not fit.
    """
    if name not in CALIBRATED:
        raise ValueError(f"'{name}' cannot be calibrated on a stock pipeline. {suggestion(name, list(CALIBRATED))}")
    taken = sorted(set(call_arguments) & set(_OURS))
    if taken:
        raise ValueError(f"calibrate sets {', '.join(taken)} of the pipeline's calls itself; leave it out.")
    unknown = sorted(set(call_arguments) - set(_arguments(pipeline)))
    if unknown:
        raise ValueError(f"{type(pipeline).__name__} takes no {', '.join(unknown)}. {suggestion(unknown[0], _arguments(pipeline))}")
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts is {prompts!r}; give a list of at least one prompt, better three or four.")
    if not isinstance(num_inference_steps, int) or num_inference_steps < _FEWEST_STEPS:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be a whole number of at least {_FEWEST_STEPS}.")
    budget = num_inference_steps * 2 // 5 if computed is None else computed
    if not isinstance(budget, int):
        raise ValueError(f"computed is {computed}; it must be a whole number of steps.")
    check_budget(num_inference_steps, budget, MAX_GAP, free_end=True)
    for transformer in parts_of(pipeline)[1]:
        check_others(transformer)
        check_unmarked(transformer)
    _check_sampler(pipeline, name, num_inference_steps)
    form = load_recipe("planned")
    takes = PipelineTakes(pipeline, prompts, num_inference_steps, call_arguments)
    planning = Planning(takes, form, say)
    at = takes.sampling
    if name == "schedule":
        return Schedule(planning.schedule(budget), at.scheduler, deciding_settings(pipeline.scheduler), at.flow_shift, at.guidance_scale[0])
    recipe = with_numbers(form, planning.plan(budget))
    stamp = Calibration("", num_inference_steps, at.scheduler, at.flow_shift, at.guidance_scale[0])
    return replace(recipe, name=f"{name}-{budget}-of-{num_inference_steps}", calibration=stamp)


def _arguments(pipeline: Any) -> list[str]:
    return list(inspect.signature(type(pipeline).__call__).parameters)[1:]


def _check_sampler(pipeline: Any, name: str, num_inference_steps: int) -> None:
    """Raise ValueError, with the mend, for a pipeline whose sampler cannot be planned for."""
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        raise ValueError(f"{type(pipeline).__name__} has no scheduler; give a diffusers pipeline.")
    if isinstance(vars(scheduler).get("set_timesteps"), Wrapped):
        raise ValueError("There is a schedule on this pipeline's scheduler; take it off with disable() first.")
    if name == "schedule":
        check_scheduler(scheduler)
    fresh = deepcopy(scheduler)
    fresh.set_timesteps(num_inference_steps)
    linear_map(fresh)
