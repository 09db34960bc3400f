"""How a diffusers scheduler moves the latents, found by running it: as a linear map of the noise and of the model's outputs.

With the model's outputs v_0 .. v_{N-1} given, the latents before step k are a_k noise + sum_{s<k} r_ks v_s: for Euler's sampler
r_ks = sigma_{s+1} - sigma_s for every k > s; a multistep sampler works with an output again in the steps after its own, so that r_ks still
changes for some k. Every sampler is asked for these numbers in the same way: a copy of it is given unit vectors for the noise and the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Schedulers keep their sigmas in fp32, and multistep ones take differences of logarithms of these: half of the digits are left in any case.
ROUNDING = float(torch.finfo(torch.float32).eps) ** 0.5
_MEND = "give the model FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler or DPMSolverMultistepScheduler, without such settings"


@dataclass(frozen=True)
class LinearMap:
    """scheduler: the class in diffusers. latents: [steps + 1, steps + 1], row k what the latents before step k are made of, the last row the
    take's end: first the noise's share, then that of each step's output.
    """

    scheduler: str
    latents: NDArray[np.float64]

    @property
    def responses(self) -> list[float]:
        """How much the take's end changes with the model's output of each step, the other outputs left as they are."""
        responses: list[float] = self.latents[-1, 1:].tolist()
        return responses

    def responds_as(self, responses: Sequence[float]) -> bool:
        """Whether the take's end responds to the outputs as these numbers say, one a step, but for rounding."""
        ours = self.responses
        largest = max(map(abs, (*ours, *responses)), default=0.0)
        return len(ours) == len(responses) and all(abs(a - b) <= ROUNDING * largest for a, b in zip(ours, responses, strict=True))

    @property
    def moves_by_velocity(self) -> bool:
        """Whether each step adds the model's output, times a number, to the latents, and nothing else (Euler's method)."""
        added = np.diff(self.latents, axis=0)
        own = np.diagonal(added, offset=1)
        others = added.copy()
        np.fill_diagonal(others[:, 1:], 0.0)
        return bool(np.abs(others).max() <= ROUNDING * np.abs(own).max())


def linear_map(scheduler: Any) -> LinearMap:
    """The map of a scheduler whose timesteps are set, and which has made no step yet; it is left as it is.

    Raises ValueError, with the mend, for samplers that draw noise, cut off values, or call the model several times a step.
    """
    name = type(scheduler).__name__
    for setting, found in _refused(scheduler):
        raise ValueError(f"{name} has {setting}={found}, so that the latents are no linear map of the noise and the model's outputs; {_MEND}.")
    if getattr(scheduler, "order", 1) != 1:
        raise ValueError(f"{name} calls the model {scheduler.order} times a step, and forecasts are of one call each; {_MEND}.")
    if getattr(scheduler, "step_index", None) is not None:
        raise ValueError(f"{name} is at step {scheduler.step_index} of a take already; put the cache on before the pipeline's call begins.")
    fresh = _on_cpu(scheduler)
    steps = len(fresh.timesteps)
    mixed = torch.randn(steps + 1, steps + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = torch.stack((torch.eye(steps + 1, dtype=torch.float64), mixed), dim=1)[..., None, None, None]
    moved = [given[0]]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for timestep, output in zip(fresh.timesteps, given[1:], strict=True):
            moved.append(fresh.step(output, timestep, moved[-1], return_dict=False)[0].double())
    units, mixture = torch.stack(moved).flatten(2).unbind(dim=1)
    if not units.isfinite().all():
        raise ValueError(f"{name} makes latents that are not finite (nan or inf) with its spacing and {steps} steps; {_MEND}.")
    off, size = (units @ mixed - mixture).abs().max(), (units.abs() @ mixed.abs()).max()
    if not off <= ROUNDING * size:
        raise ValueError(f"{name} moves the latents otherwise than by a linear map of the noise and the model's outputs; {_MEND}.")
    return LinearMap(name, units.numpy())


def _refused(scheduler: Any) -> Iterator[tuple[str, Any]]:
    """Settings with which a scheduler draws noise or cuts off values, each with its value."""
    for setting in ("stochastic_sampling", "thresholding", "algorithm_type"):
        value = scheduler.config.get(setting)
        if value is True or str(value).startswith("sde-"):
            yield setting, value


def _on_cpu(scheduler: Any) -> Any:
    """A copy at the take's first step, whose tensors lie where there is fp64."""
    fresh = deepcopy(scheduler)
    for name, value in vars(fresh).items():
        if isinstance(value, Tensor):
            setattr(fresh, name, value.cpu())
    fresh.set_begin_index(0)
    return fresh
