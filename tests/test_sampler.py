"""Samplers as linear maps: what diffusers' schedulers make of a model's outputs, and what follows for forecasts."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.cache.calibration.amending import amended_share
from longtake.cache.predictors.planned import Planned, PlannedConfig
from longtake.cache.sampler.linear_map import ROUNDING, linear_map

from stock import flow_sampler

SAMPLERS = st.sampled_from(
    [
        ("FlowMatchEulerDiscreteScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
        *(("UniPCMultistepScheduler", {"solver_order": order}) for order in (1, 2, 3)),
        ("UniPCMultistepScheduler", {"use_karras_sigmas": True}),
        *(("DPMSolverMultistepScheduler", {"solver_order": order}) for order in (1, 2, 3)),
    ]
)


def _ready(kind: str, shift: float, steps: int, settings: dict[str, Any]) -> Any:
    scheduler = flow_sampler(kind, shift, **settings)
    scheduler.set_timesteps(steps)
    return scheduler


@settings(max_examples=40)
@given(sampler=SAMPLERS, shift=st.floats(1, 9), steps=st.integers(2, 30), seed=st.integers(0, 99))
def test_a_take_is_the_linear_combination_of_noise_and_outputs(sampler: tuple[str, dict[str, Any]], shift: float, steps: int, seed: int) -> None:
    """In fp32, as takes are rendered, at every step; and with the noise's and the outputs' own numbers in one draw."""
    kind, own = sampler
    scheduler = _ready(kind, shift, steps, own)
    found = linear_map(scheduler)
    assert found.latents.shape == (steps + 1, steps + 1)
    assert scheduler.step_index is None, "the sampler itself is left as it was"
    drawn = torch.randn(steps + 1, 1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    latents, expected = drawn[0], torch.einsum("ks,s...->k...", torch.from_numpy(found.latents), drawn.double())
    for index, (timestep, output) in enumerate(zip(scheduler.timesteps, drawn[1:], strict=True)):
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
        size = (np.abs(found.latents[index + 1]) * 5).sum()  # five standard deviations of what is drawn
        assert (latents - expected[index + 1]).abs().max() <= ROUNDING * size, (sampler, shift, steps, index)


@settings(max_examples=20)
@given(shift=st.floats(1, 9), steps=st.integers(1, 30))
def test_eulers_responses_are_its_steps_in_sigma(shift: float, steps: int) -> None:
    scheduler = _ready("FlowMatchEulerDiscreteScheduler", shift, steps, {})
    found = linear_map(scheduler)
    assert found.responses == (scheduler.sigmas[1:] - scheduler.sigmas[:-1]).tolist()
    assert found.moves_by_velocity
    assert found.responds_as(found.responses)
    if steps > 2:
        assert not linear_map(_ready("UniPCMultistepScheduler", shift, steps, {})).moves_by_velocity


@pytest.mark.parametrize(
    ("other", "shift", "steps", "changes"),
    [
        ("FlowMatchEulerDiscreteScheduler", 3.0, 12, {}),
        ("DPMSolverMultistepScheduler", 3.0, 12, {}),
        ("UniPCMultistepScheduler", 3.1, 12, {}),
        ("UniPCMultistepScheduler", 3.0, 11, {}),
        ("UniPCMultistepScheduler", 3.0, 12, {"solver_order": 3}),
        ("UniPCMultistepScheduler", 3.0, 12, {"use_karras_sigmas": True}),
    ],
)
def test_another_sampler_responds_otherwise(other: str, shift: float, steps: int, changes: dict[str, Any]) -> None:
    own = linear_map(_ready("UniPCMultistepScheduler", 3.0, 12, {}))
    planned = Planned(PlannedConfig([1.0] * 12, own.responses))
    planned.check_sampler(linear_map(_ready("UniPCMultistepScheduler", 3.0, 12, {})))
    with pytest.raises(ValueError, match=f"than the {other} at hand, with its {steps} steps"):
        planned.check_sampler(linear_map(_ready(other, shift, steps, changes)))


class _Halves(diffusers.FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Cuts off what is large, and says so in no setting."""

    def step(self, model_output: torch.Tensor, *given: Any, **named: Any) -> Any:
        return super().step(model_output.clamp(-0.5, 0.5), *given, **named)


_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
REFUSED = [
    (diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "has stochastic_sampling=True"),
    (diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", **_FLOW), "has algorithm_type=sde-dpmsolver"),
    (diffusers.DPMSolverMultistepScheduler(thresholding=True, **_FLOW), "has thresholding=True"),
    (diffusers.UniPCMultistepScheduler(thresholding=True, **_FLOW), "has thresholding=True"),
    (diffusers.FlowMatchHeunDiscreteScheduler(), "calls the model 2 times a step"),
    (diffusers.FlowMatchLCMScheduler(), "moves the latents otherwise than by a linear map"),  # draws noise, which no setting says
    (_Halves(), "moves the latents otherwise than by a linear map"),
]


@pytest.mark.parametrize(("scheduler", "message"), REFUSED, ids=lambda value: "" if isinstance(value, str) else type(value).__name__)
def test_samplers_that_draw_noise_or_cut_off_values_are_refused(scheduler: Any, message: str) -> None:
    """And with nothing drawn from the generator that a user may have seeded."""
    scheduler.set_timesteps(6)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"{type(scheduler).__name__} {message}.*; give the model FlowMatchEulerDiscreteScheduler"):
        linear_map(scheduler)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sampler_that_makes_no_numbers_is_refused() -> None:
    """diffusers' exponential spacing takes a flow's sigmas for others, which are above 1."""
    with pytest.raises(ValueError, match=r"UniPCMultistepScheduler makes latents that are not finite .* its spacing and 6 steps"):
        linear_map(_ready("UniPCMultistepScheduler", 3.0, 6, {"use_exponential_sigmas": True}))


def test_a_sampler_in_the_midst_of_a_take_is_refused() -> None:
    scheduler = _ready("UniPCMultistepScheduler", 3.0, 6, {})
    scheduler.step(torch.zeros(1, 4, 1, 2, 2), scheduler.timesteps[0], torch.zeros(1, 4, 1, 2, 2))
    with pytest.raises(ValueError, match="is at step 1 of a take already; put the cache on before"):
        linear_map(scheduler)


@pytest.mark.parametrize("sampler", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize(("here", "there"), [(8, 14), (13, 16)])
def test_what_the_model_mends_itself_is_not_made_up_for_again(sampler: str, here: int, there: int) -> None:
    """A flow whose clean latents depend on the step alone, and whose outputs run straight over the gap: nothing of its error is left in the film."""
    scheduler = _ready(sampler, 3.0, 20, {})
    found, sigmas = linear_map(scheduler), scheduler.sigmas.tolist()
    real = [torch.full((1, 1, 1, 1, 1), float(max(0, step - here))) for step in range(20)]
    latents, clean = torch.zeros(1, 1, 1, 1, 1), []
    for timestep, sigma, output in zip(scheduler.timesteps, sigmas, real, strict=False):
        clean.append(latents - sigma * output)
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]

    def off(numbers: PlannedConfig) -> float:
        """By how much the gap's outputs and the one after it change the film, had the later ones stayed as they were."""
        scheduler, planned = _ready(sampler, 3.0, 20, {}), Planned(numbers)
        latents, error = torch.zeros(1, 1, 1, 1, 1), 0.0
        for step in range(there + 1):
            if here < step < there:
                used = planned.predict(step)
                planned.settle(step, used)
            else:
                output = (latents - clean[step]) / sigmas[step]
                used = planned.amend(step, output)
                planned.push(step, output)
            error += found.responses[step] * (used - real[step]).item()
            latents = scheduler.step(used, scheduler.timesteps[step], latents, return_dict=False)[0]
        return abs(error)

    shares = [amended_share(found, sigmas, here, there)] * 20
    none, whole, share = (off(PlannedConfig([0.0] * 20, *numbers)) for numbers in ((), (found.responses,), (found.responses, [], shares)))
    print(sampler, "uncorrected", none, "all of it", whole, "the share", share)
    assert share <= 1e-4 * min(none, whole)


def test_steps_that_hardly_reach_the_take_s_end_make_up_for_little() -> None:
    """UniPC of order 3: its fourth last output moves the take's end the other way; of order 2, few steps, far shifted: hardly at all."""
    third = _ready("UniPCMultistepScheduler", 3.0, 12, {"solver_order": 3})
    assert amended_share(linear_map(third), third.sigmas.tolist(), 5, 8) == 0.0
    assert 0.3 < amended_share(linear_map(third), third.sigmas.tolist(), 1, 4) < 1.0
    second = _ready("UniPCMultistepScheduler", 7.0, 8, {})
    assert 0.0 < amended_share(linear_map(second), second.sigmas.tolist(), 2, 5) < 8 / 30
