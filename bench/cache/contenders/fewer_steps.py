"""What a user does without any cache: fewer steps, on the same sampler or on one that integrates better, shifted or spaced otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from ..films.samplers import NAMES, SPACINGS, sampled_by, sampler, spaced
from .contender import FEWER_STEPS, Contender, Setting, Tuning

COUNTS = {50: (25, 16, 12, 9, 7, 4), 30: (25, 16, 12, 9, 7, 4), 12: (10, 9, 7, 6, 5, 4), 6: (5, 4, 3, 2)}  # by steps of the stage
SHIFTS = (6.0, 10.0, 14.0)  # beside the model's own, 3; chosen on the tuning clips so that the best lies inside
LEFT_OUT = {
    "UniPC with use_exponential_sigmas or use_beta_sigmas, DPM++ 2M with these or use_karras_sigmas": "diffusers 0.42.1 then steps from a noise "
    "level of 157 down, which is a variance-exploding process's and no flow's; measured at the noise levels that "
    "FlowMatchEulerDiscreteScheduler makes of the same settings",
}

_PutSteps = Callable[[int, Any], AbstractContextManager[None]]  # of a number of steps and a pipeline


def contenders(tuning: Tuning) -> Iterator[Contender]:
    card = tuning.studio.card

    def plain(name: str, flow_shift: float | None, steps: int, pipe: Any) -> AbstractContextManager[None]:
        return sampled_by(sampler(card, name, flow_shift), pipe)

    for name, called in NAMES.items():
        yield _contender(tuning, called, partial(plain, name, None), named=name in ("unipc", tuning.stage.sampler))
    for name in ("unipc", "dpm++"):
        for flow_shift in SHIFTS:
            yield _contender(tuning, f"{NAMES[name]}, shift {flow_shift:g}", partial(plain, name, flow_shift))
    for name, called in NAMES.items():
        for how in SPACINGS:
            yield _contender(tuning, f"{called}, {how} spacing", partial(spaced, card, name, how))


def _contender(tuning: Tuning, method: str, put: _PutSteps, *, named: bool = False) -> Contender:
    counts = COUNTS[tuning.stage.steps]
    settings = tuple(Setting(f"{steps} steps", partial(put, steps), steps=steps) for steps in counts)
    return Contender(FEWER_STEPS, method, settings, named)


def best_of_shifts(method: str) -> str | None:
    """The name under which the best of a sampler's flow shifts is counted, for each of the methods that it is the best of; None for others."""
    sampler_name, _, how = method.partition(", ")
    shifted = sampler_name in (NAMES["unipc"], NAMES["dpm++"]) and (not how or how.startswith("shift "))
    return f"{sampler_name}, best shift" if shifted else None
