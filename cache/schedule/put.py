"""Setting a schedule's sigmas on diffusers' schedulers, and on those of stock pipelines for as long as one likes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from ..model.wrap import Wrapped, wrap
from .schedule import SCHEDULERS, Schedule, load_schedule

_LARGEST = 1 - 1e-6  # of multistep samplers, which take the logarithm of 1 - sigma; diffusers stops them there as well
_DECIDING = (
    "num_train_timesteps",
    "prediction_type",
    "solver_order",
    "solver_type",
    "algorithm_type",
    "predict_x0",
    "lower_order_final",
    "euler_at_final",
    "disable_corrector",
    "thresholding",
    "stochastic_sampling",
)
_REFUSED = {"invert_sigmas": True, "final_sigmas_type": "sigma_min", "use_flow_sigmas": False}


def deciding_settings(scheduler: Any) -> dict[str, Any]:
    """The settings of a diffusers scheduler that decide how it steps between two given sigmas, by name."""
    return {name: value for name, value in _own_settings(scheduler).items() if name in _DECIDING}


def _own_settings(scheduler: Any) -> dict[str, Any]:
    """Those that the scheduler's class knows: a config may keep others, of the scheduler that it was made from."""
    known = inspect.signature(type(scheduler).__init__).parameters
    return {name: value for name, value in scheduler.config.items() if name in known}


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError, with the mend, for a diffusers scheduler that does not step at the sigmas that it is given."""
    name = type(scheduler).__name__
    if name not in SCHEDULERS:
        raise ValueError(f"A schedule is put on {', '.join(SCHEDULERS)}, not on {name}; give the pipeline one of them.")
    for setting, refused in _REFUSED.items():
        if _own_settings(scheduler).get(setting) == refused:
            raise ValueError(f"{name} has {setting}={refused}, with which its sigmas are no flow's from noise down to 0; make it without.")
    if getattr(scheduler, "solver_p", None) is not None:
        raise ValueError(f"{name} has a solver_p, which keeps sigmas of its own; make it without.")


def check_settings(scheduler: Any, schedule: Schedule, where: str) -> None:
    """Raise ValueError, with the mend, for a scheduler that steps otherwise than the one that the sigmas were planned for. where: whose it is, as
    the message begins.
    """
    here = deciding_settings(scheduler)
    for name, planned in schedule.settings.items():
        if here.get(name) != planned:
            raise ValueError(
                f"{where}: the schedule was planned for a {schedule.scheduler} with {name}={planned}, and this one has {here.get(name)}; make them "
                f"equal, or plan one with `longtake calibrate` and --recipe schedule."
            )


def set_sigmas(scheduler: Any, sigmas: Sequence[float]) -> None:
    """Let a scheduler step at exactly these sigmas, and last to 0, where its `set_timesteps` has just made as many others.

    The model is told the exact timesteps of these sigmas, where diffusers' multistep samplers cut their own to whole numbers: that alone brings
    the demo model's films of 12 steps of UniPC 1 dB closer to the converged ones. The largest sigma of these samplers is a millionth below 1.
    """
    exact = torch.tensor(sigmas)
    if type(scheduler).__name__ != SCHEDULERS[0]:
        exact = exact.clamp(max=_LARGEST)
        if len(exact) > 1 and exact[1] >= exact[0]:
            raise ValueError(
                f"sigma 2 of {len(sigmas)} is {sigmas[1]:g}, as good as 1 to {type(scheduler).__name__}; leave out one of the first two."
            )
    scheduler.sigmas = torch.cat([exact, torch.zeros(1)]).to(scheduler.sigmas.device)
    scheduler.timesteps = (exact * scheduler.config.num_train_timesteps).to(scheduler.timesteps.device)


class Scheduled:
    """A schedule at work on a pipeline. `disable` takes it off, as leaving a `with` block does."""

    def __init__(self, pipeline: Any, schedule: Schedule) -> None:
        self.schedule = schedule
        self._pipeline = pipeline
        self._scheduler = pipeline.scheduler
        self._undo: Callable[[], None] | None = wrap(self._scheduler, "set_timesteps", self._set_timesteps)

    def _set_timesteps(self, original: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        asked, planned = len(self._scheduler.timesteps), self.schedule.num_steps
        if asked != planned:
            raise ValueError(f"The call has {asked} steps, the pipeline's schedule {planned}; give it num_inference_steps={planned}.")
        for name in ("_guidance_scale", "_guidance_scale_2"):  # of the call that has just begun
            if (scale := getattr(self._pipeline, name, None)) is not None:
                self.schedule.check("The pipeline", guidance_scale=scale)
        set_sigmas(self._scheduler, self.schedule.sigmas)

    def disable(self) -> None:
        """Give the scheduler its own timesteps back; a second time it does nothing."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.disable()


def put_schedule(pipeline: Any, schedule: str | Path | Mapping[str, Any] | Sequence[float] | Schedule) -> Scheduled:
    """Let a stock diffusers pipeline step at a schedule's sigmas, whatever shift or spacing its scheduler has, until it is taken off:

        with put_schedule(pipe, "schedule-unipc-12-steps.yaml"):
            pipe(prompt, num_inference_steps=12)

    schedule: a YAML file's path, or sigmas. Its scheduler is FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler or
    DPMSolverMultistepScheduler, with flow sigmas; one that the pipeline is given afterwards has no schedule. A cache may be put on the pipeline as
    well: it counts the schedule's steps. Raises ValueError, with the mend, for what does not fit; calls of the pipeline do so for another
    number of steps, or another guidance scale, than the schedule was planned for.
    """
    chosen = load_schedule(schedule)
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None:
        raise ValueError(f"{type(pipeline).__name__} has no scheduler to put a schedule on; give a diffusers pipeline.")
    check_scheduler(scheduler)
    if isinstance(vars(scheduler).get("set_timesteps"), Wrapped):
        raise ValueError("There is a schedule on this pipeline's scheduler already; take it off with disable() first.")
    chosen.check("The pipeline's scheduler", scheduler=type(scheduler).__name__)
    check_settings(scheduler, chosen, "The pipeline's scheduler")
    return Scheduled(pipeline, chosen)
