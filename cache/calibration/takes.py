"""The takes that a calibration renders, each again and again from its own noise, and what is measured on them. Knows no loop and no pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..model.wrap import wrap
from ..recipe.recipe import Recipe
from ..run.cached import Cached
from ..sampler.linear_map import LinearMap, linear_map
from ..schedule.schedule import SCHEDULERS
from .path import Floats
from .recorder import Playback

_FIRST_PROBED, _LAST_PROBED = 0.02, 0.8  # shares of a take's steps between which growth is measured
_PROBES_A_TAKE = 1.5


@dataclass
class Played:
    """One rendering. noise: the latents that it began with; outputs: what the sampler was given at each step, guided and for the whole take;
    latents: at its end. All of them in fp32 on the CPU. scheduler: as it was before the first step.
    """

    noise: Tensor | None = None
    outputs: list[Tensor] = field(default_factory=list)
    latents: Tensor | None = None
    scheduler: Any = None


class Takes(Protocol):
    """Takes of one kind: equal numbers of steps, sampler, guidance and size."""

    @property
    def num_inference_steps(self) -> int: ...

    def __len__(self) -> int: ...

    def render(self, index: int, cached: Cached | None = None, sigmas: Sequence[float] | None = None) -> Played:
        """Take `index` from its first step to its last. cached: to be put on the model meanwhile. sigmas: to step at instead of its own."""


@contextmanager
def listening(scheduler: Any) -> Iterator[Played]:
    """Note what a scheduler is given and makes of it, inside the context."""
    played = Played()

    def step(original: Any, output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if played.noise is None:
            played.noise, played.scheduler = _copied(sample), deepcopy(scheduler)
        played.outputs.append(_copied(output))
        moved = original(output, timestep, sample, *args, **kwargs)
        played.latents = _copied(moved[0])
        return moved

    undo = wrap(scheduler, "step", step)
    try:
        yield played
    finally:
        undo()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)


@dataclass(frozen=True)
class Measured:
    """What full takes say of a model and a sampler.

    gram: [1 + steps, 1 + steps], mean products, per latent value, of the noise and the guided outputs of all steps, over the takes. branches:
    [branches, steps, steps], the same of each branch's own outputs. growth: [steps], see `_measure_growth`. sampler: what it makes of noise
    and outputs; scheduler: it, at the start of a take; sigmas: [steps]. films: each take's latents.
    """

    gram: Floats
    branches: Floats
    growth: Floats
    sampler: LinearMap
    scheduler: Any
    films: list[Tensor]

    @property
    def sigmas(self) -> Floats:
        values: Floats = self.scheduler.sigmas[: len(self.growth)].double().cpu().numpy()
        return values

    @property
    def takes_sigmas(self) -> bool:
        """Whether the sampler can be told at which sigmas to step."""
        return type(self.scheduler).__name__ in SCHEDULERS

    @property
    def outputs(self) -> Floats:
        """[steps, steps]: the guided outputs alone."""
        return self.gram[1:, 1:]

    @property
    def responses(self) -> Floats:
        """[steps], how much the take's end changes with each step's output, the other outputs left as they are."""
        return np.array(self.sampler.responses)


def measure(takes: Takes, recipe: Recipe, after_first: Callable[[], None] = lambda: None) -> Measured:
    """recipe: any that keeps the value of the model's output. after_first: called once the first take is rendered. Raises ValueError, with the
    mend, for samplers that are no linear maps.
    """
    grams, branches, films = [], [], []
    logs: list[tuple[int, float]] = []
    sampler: LinearMap | None = None
    scheduler: Any = None
    probes = _probes(len(takes), takes.num_inference_steps)
    for index in range(len(takes)):
        recorded = Playback(recipe, takes.num_inference_steps)
        played = takes.render(index, recorded)
        assert played.noise is not None and played.latents is not None, "a take without steps"
        if index == 0:
            after_first()
        scheduler, sampler = played.scheduler, sampler or linear_map(played.scheduler)
        grams.append(_gram([played.noise, *played.outputs]))
        branches.append(np.stack([_gram(outputs) for outputs in recorded.outputs.values()]))
        films.append(played.latents)
        for step in probes[index :: len(takes)]:
            logs.append((step, _log_growth(takes, index, recorded, played, step, sampler)))
    assert sampler is not None, "no takes"
    growth = _measure_growth(logs, takes.num_inference_steps)
    return Measured(np.mean(grams, axis=0), np.mean(branches, axis=0), growth, sampler, scheduler, films)


def calls_of_measuring(num_takes: int, num_steps: int) -> int:
    """How many steps of one take each `measure` computes."""
    return num_takes * num_steps + sum(num_steps - 1 - step for step in _probes(num_takes, num_steps))


def _gram(tensors: Sequence[Tensor]) -> Floats:
    stacked = torch.stack([tensor.flatten() for tensor in tensors]).double()
    products: Floats = (stacked @ stacked.T / stacked.shape[1]).numpy()
    return products


def _probes(num_takes: int, num_steps: int) -> list[int]:
    """The steps at which growth is measured, closer together early on; of n takes, each one serves for every n-th of them."""
    count = max(2, round(_PROBES_A_TAKE * num_takes))
    return sorted({max(1, min(num_steps - 2, round(float(share) * num_steps))) for share in np.geomspace(_FIRST_PROBED, _LAST_PROBED, count)})


def _log_growth(takes: Takes, index: int, recorded: Playback, played: Played, step: int, sampler: LinearMap) -> float:
    disturbed = takes.render(index, recorded.again_until(step))
    assert disturbed.latents is not None and played.latents is not None, "a take without steps"
    error = (disturbed.outputs[step] - played.outputs[step]) * sampler.responses[step]
    changed = (disturbed.latents - played.latents).double().square().mean() / error.double().square().mean()
    return float(changed.log())


def _measure_growth(logs: Sequence[tuple[int, float]], num_steps: int) -> Floats:
    """[steps], how much a small error grows that the model's output has at each step: mean square in the film, by what it would be there if the
    outputs of later steps did not change with it.

    Measured at a few steps with the error that reusing the last output makes there; log-linear between these steps.
    """
    probed = sorted({step for step, _ in logs})
    means = [float(np.mean([log for at, log in logs if at == step])) for step in probed]
    growth: Floats = np.exp(np.interp(np.arange(num_steps), probed, means))
    return growth
