"""Which of diffusers' samplers move the latents by velocities alone, so that a forecast's effect on them is known."""

from __future__ import annotations

from typing import Any


def velocity_sigmas(scheduler: Any) -> list[float] | None:
    """The sigmas of a sampler that moves the latents by velocity times the step in sigma and by nothing else, one more than it has steps;
    None for any other sampler.
    """
    moves_by_velocity = type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler" and not scheduler.config.stochastic_sampling
    return scheduler.sigmas.tolist() if moves_by_velocity else None
