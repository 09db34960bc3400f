"""Schedules: files, and the sigmas that stock pipelines and jobs step at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from longtake.cache import Schedule, enable_cache, load_schedule, put_schedule

from stock import call, every, rows_of, tiny_pipeline

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SAMPLERS: dict[str, Callable[..., Any]] = {
    "euler": lambda shift, **more: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **more),
    "unipc": lambda shift, **more: diffusers.UniPCMultistepScheduler(flow_shift=shift, **_FLOW, **more),
    "dpm++": lambda shift, **more: diffusers.DPMSolverMultistepScheduler(flow_shift=shift, **_FLOW, **more),
}
SIGMAS = [1.0, 0.97, 0.9, 0.9 - 1e-5, 0.6, 0.2]


def sigmas_of(scheduler: Any, num_steps: int) -> list[float]:
    scheduler.set_timesteps(num_steps)
    sigmas: list[float] = scheduler.sigmas[:-1].tolist()
    return sigmas


# On stock pipelines


@pytest.mark.numerical
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_stock_pipeline_steps_at_a_schedule_s_sigmas(tiny_wan: Path, sampler: str) -> None:
    """Whatever shift and spacing its own scheduler has: the film is to the bit that of a scheduler whose own sigmas these are."""
    pipe, make = tiny_pipeline(tiny_wan), SAMPLERS[sampler]
    pipe.scheduler = make(7.0)
    theirs = call(pipe)
    for own in (make(3.0), make(3.0, use_karras_sigmas=True)):
        pipe.scheduler = own
        before = call(pipe)
        with put_schedule(pipe, sigmas_of(make(7.0), 8)):
            assert torch.equal(call(pipe), theirs)
        torch.testing.assert_close(call(pipe), before, rtol=0, atol=0, equal_nan=True)  # DPM++ knows no Karras sigmas of flows
        assert not torch.equal(before, theirs)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sigmas_are_exactly_those_of_the_schedule(tiny_wan: Path, sampler: str) -> None:
    """Up to the millionth that multistep samplers need below 1; timesteps are those of the sigmas, in the scheduler's own numbers."""
    pipe = tiny_pipeline(tiny_wan)
    pipe.scheduler = SAMPLERS[sampler](5.0)
    with put_schedule(pipe, SIGMAS):
        assert call(pipe, len(SIGMAS)).isfinite().all()
        largest = 1.0 if sampler == "euler" else 1 - 1e-6
        expected = torch.tensor([min(sigma, largest) for sigma in SIGMAS], dtype=torch.float64)
        assert torch.equal(pipe.scheduler.sigmas, torch.cat([expected.float(), torch.zeros(1)]))
        away = 1000 * expected - pipe.scheduler.timesteps.double()
        assert (away.abs() < 1e-4).all() if sampler == "euler" else ((away > -1e-9) & (away < 1)).all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_cache_counts_the_steps_of_a_schedule(tiny_wan: Path, sampler: str) -> None:
    """Two of its steps have the same timestep where these are whole numbers. The first put on is the first taken off, or the last."""
    pipe = tiny_pipeline(tiny_wan)
    pipe.scheduler = SAMPLERS[sampler](3.0)
    plain = call(pipe, len(SIGMAS))
    cached, scheduled = enable_cache(pipe, every(2), num_inference_steps=len(SIGMAS)), put_schedule(pipe, SIGMAS)
    call(pipe, len(SIGMAS))
    row = [(step, "reuse" if step in (1, 3) else "compute") for step in range(6)]
    assert rows_of(cached) == {"cond": row, "uncond": row}
    scheduled.disable()
    cached.disable()
    assert torch.equal(call(pipe, len(SIGMAS)), plain)


def test_what_is_no_schedule_of_the_pipeline_is_refused(tiny_wan: Path) -> None:
    """With nothing put on it. Steps and guidance are those of a call, and refused by it."""
    pipe = tiny_pipeline(tiny_wan)
    planned = Schedule(SIGMAS, "UniPCMultistepScheduler", {"solver_order": 2}, guidance_scale=5.0)
    heun, short = diffusers.FlowMatchHeunDiscreteScheduler(), SAMPLERS["unipc"](3.0, final_sigmas_type="sigma_min")
    for scheduler, schedule, message in (
        (heun, SIGMAS, "not on FlowMatchHeunDiscreteScheduler; give the pipeline one of them"),
        (diffusers.UniPCMultistepScheduler(), SIGMAS, "has use_flow_sigmas=False"),
        (short, SIGMAS, "has final_sigmas_type=sigma_min"),
        (SAMPLERS["euler"](3.0), planned, "planned for scheduler UniPCMultistepScheduler, and scheduler is FlowMatchEulerDiscreteScheduler here"),
        (SAMPLERS["unipc"](3.0, solver_order=3), planned, "with solver_order=2, and the pipeline's has 3"),
    ):
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match=message):
            put_schedule(pipe, schedule)
        assert "set_timesteps" not in vars(scheduler)
    pipe.scheduler = SAMPLERS["unipc"](3.0)
    with put_schedule(pipe, planned):
        with pytest.raises(ValueError, match="already; take it off"):
            put_schedule(pipe, SIGMAS)
        with pytest.raises(ValueError, match="The call has 8 steps, the pipeline's schedule 6; give it num_inference_steps=6"):
            call(pipe, 8)
        with pytest.raises(ValueError, match="planned for guidance_scale 5.0, and guidance_scale is 4.0 here"):
            call(pipe, 6)
        call(pipe, 6, guidance_scale=5.0)
    with pytest.raises(ValueError, match="dict has no scheduler"):
        put_schedule({}, SIGMAS)


# Files


def test_a_schedule_is_written_and_read(tmp_path: Path) -> None:
    path, schedule = tmp_path / "schedule.yaml", Schedule(SIGMAS, "UniPCMultistepScheduler", {"solver_order": 2}, 3.0, 4.0, "0" * 64)
    path.write_text(schedule.to_yaml())
    assert load_schedule(path) == load_schedule(str(path)) == schedule
    assert load_schedule(SIGMAS) == load_schedule({"sigmas": SIGMAS}) == Schedule(SIGMAS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sigmas: []", "sigmas is empty; give one for each step"),
        ("sigmas: [1.0, 0.5, 0.5]", "sigma 2 of 3 is 0.5; they must be at most 1, descend"),
        ("sigmas: [1.1, 0.5]", "sigma 1 of 2 is 1.1"),
        ("sigmas: [1.0, 0.5, 0.0]", "sigma 3 of 3 is 0; they must .* stay above 0"),
        ("sigmas: [1.0, .nan]", "must be a finite number"),
        ("sigmas: [1.0, half]", "half"),
        ("sigma: [1.0]", "has no setting 'sigma'. Did you mean 'sigmas'"),
        ("scheduler: UniPCMultistepScheduler", "lacks a setting: .*sigmas"),
        ("- 1.0", "must be a mapping with sigmas"),
        ("sigmas: [1.0", "is not valid YAML"),
    ],
)
def test_what_is_no_schedule_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "schedule.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_schedule(path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_schedule(tmp_path)
