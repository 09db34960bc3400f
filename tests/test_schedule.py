"""Schedules: files, and the sigmas that stock pipelines and jobs step at."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe, Schedule, enable_cache, load_recipe, load_schedule, put_schedule
from longtake.jobs.cli.app import app
from longtake.jobs.events import Event, Note
from longtake.jobs.rendering import render
from longtake.jobs.settings.config import load_job
from longtake.jobs.settings.plan import Plan
from longtake.jobs.settings.planning import plan_job
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.checkpoint.model_hash import model_hash
from longtake.pipeline.loop.render import Renderer, WholeTake, whole_take
from longtake.pipeline.recipes.schedules import schedule_path
from longtake.pipeline.take import Take
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from same import assert_same, assert_same_film
from stock import call, every, rows_of, tiny_pipeline
from takes import stock_latents, stock_take

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SAMPLERS: dict[str, Callable[..., Any]] = {
    "euler": lambda shift, **more: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift, **more),
    "unipc": lambda shift, **more: diffusers.UniPCMultistepScheduler(flow_shift=shift, **_FLOW, **more),
    "dpm++": lambda shift, **more: diffusers.DPMSolverMultistepScheduler(flow_shift=shift, **_FLOW, **more),
}
SIGMAS = [1.0, 0.97, 0.9005, 0.9001, 0.6, 0.2]


def sigmas_of(scheduler: Any, num_steps: int) -> list[float]:
    scheduler.set_timesteps(num_steps)
    sigmas: list[float] = scheduler.sigmas[:-1].tolist()
    return sigmas


def with_exact_timesteps(scheduler: Any) -> Any:
    """The scheduler with timesteps that are not cut to whole numbers."""

    class Exact(type(scheduler)):  # type: ignore[misc]
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            self.timesteps = 1000 * self.sigmas[:-1]

    return Exact.from_config(scheduler.config)


# On stock pipelines


@pytest.mark.numerical
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_stock_pipeline_steps_at_a_schedule_s_sigmas(tiny_wan: Path, sampler: str) -> None:
    """Whatever shift and spacing its own scheduler has: the film is to the bit that of a scheduler whose own sigmas these are, told the exact
    timesteps of them.
    """
    pipe, make = tiny_pipeline(tiny_wan), SAMPLERS[sampler]
    pipe.scheduler = with_exact_timesteps(make(7.0))
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
    """Up to the millionth that multistep samplers need below 1; so are the timesteps, where their own are whole numbers."""
    pipe = tiny_pipeline(tiny_wan)
    pipe.scheduler = SAMPLERS[sampler](5.0)
    with put_schedule(pipe, SIGMAS):
        assert call(pipe, len(SIGMAS)).isfinite().all()
        largest = 1.0 if sampler == "euler" else 1 - 1e-6
        expected = torch.tensor([min(sigma, largest) for sigma in SIGMAS], dtype=torch.float64)
        assert torch.equal(pipe.scheduler.sigmas, torch.cat([expected.float(), torch.zeros(1)]))
        assert torch.equal(pipe.scheduler.timesteps, 1000 * expected.float())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_cache_counts_the_steps_of_a_schedule(tiny_wan: Path, sampler: str) -> None:
    """Two of its steps would have the same timestep if these were whole numbers."""
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
        (SAMPLERS["unipc"](3.0, solver_order=3), planned, "with solver_order=2, and this one has 3"),
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
        with pytest.raises(ValueError, match=r"planned for guidance_scale 5\.0, and guidance_scale is 4\.0 here"):
            call(pipe, 6)
        call(pipe, 6, guidance_scale=5.0)
    with pytest.raises(ValueError, match="dict has no scheduler"):
        put_schedule({}, SIGMAS)


# In takes and jobs


def scheduled_take(scheduler: str, num_frames: int = 17) -> Take:
    return stock_take(num_frames, num_inference_steps=len(SIGMAS), scheduler=scheduler, schedule=Schedule(SIGMAS))


@pytest.mark.numerical
@pytest.mark.parametrize(("model", "sampler"), [*(("tiny_wan", name) for name in SAMPLERS), ("tiny_hunyuan", "euler"), ("tiny_hunyuan", "unipc")])
def test_a_take_is_rendered_as_the_scheduled_stock_pipeline_does(request: pytest.FixtureRequest, model: str, sampler: str) -> None:
    """Also where the pipeline hands sigmas of its own to its scheduler, as HunyuanVideo's does."""
    folder = request.getfixturevalue(model)
    card, take = read_card(str(folder)), scheduled_take(sampler)
    take.check(card)
    stock = diffusers.DiffusionPipeline.from_pretrained(folder)
    stock.scheduler = SAMPLERS[sampler](card.flow_shift)
    put_schedule(stock, SIGMAS)
    ours = Renderer(card).render(take, None).latents
    assert_same(ours, stock_latents(stock, take, card.max_sequence_length))


def _render(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None) -> WholeTake:
    return Renderer(card, mesh=mesh).render(take, recipe)


def _interrupt(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path) -> None:
    renderer = Renderer(card, mesh=mesh)
    steps = renderer.steps(take, recipe)
    for _ in range(3):
        next(steps)
    renderer.save(folder)
    steps.close()


@pytest.mark.numerical
@pytest.mark.parametrize("recipe", [None, "taylorseer_lite"])
def test_a_schedule_is_the_same_film_on_2_ranks_and_after_a_break(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path, recipe: str | None) -> None:
    card, take = read_card(str(tiny_wan)), scheduled_take("unipc", 13)
    chosen = None if recipe is None else load_recipe(recipe, {"trigger": {"interval": 2}, "guards": {"first_steps": 1, "last_steps": 1}})
    alone, two = Renderer(card).render(take, chosen), Degrees(ulysses_degree=2)
    for rendered in gloo_pool.run(_render, two, card, take, chosen):
        assert_same_film(rendered, alone)
    gloo_pool.run(_interrupt, two, card, take, chosen, tmp_path)
    assert_same_film(whole_take(Renderer(card).steps(take, chosen, snapshot=tmp_path)), alone)


PLANNED = Schedule(SIGMAS, "UniPCMultistepScheduler", {"solver_order": 2}, flow_shift=3.0, guidance_scale=4.0)
JOB: dict[str, Any] = {"scheduler": "unipc", "schedule": "planned", "num_inference_steps": 6, "guidance_scale": 4.0, "num_frames": 5}


@pytest.fixture
def job(tiny_wan_copy: Path, tmp_path: Path) -> dict[str, Any]:
    """A job whose schedule lies beside its model."""
    path = schedule_path(read_card(str(tiny_wan_copy)), "unipc", 6)
    path.parent.mkdir()
    path.write_text(replace(PLANNED, model=model_hash(tiny_wan_copy)).to_yaml())
    return {"model": str(tiny_wan_copy), "output": str(tmp_path / "out"), "takes": [{"name": "one", "prompt": "a red circle"}], **JOB}


def plan(job: dict[str, Any], *overrides: str) -> Plan:
    return plan_job(load_job(job, overrides))


def test_a_job_finds_the_schedule_of_its_sampler_and_steps(job: dict[str, Any], tmp_path: Path) -> None:
    """Without a cache, unless it names one; a schedule by its path gives the same film, and one that was not planned is not checked."""
    planned = plan(job)
    [one] = planned.takes
    assert one.take.schedule is not None
    assert one.take.schedule.sigmas == SIGMAS
    assert planned.recipe is None
    assert "a schedule computes each of its steps" in planned.why_no_cache
    on_top = plan(job, "cache=fora", "cache.guards.first_steps=1")
    assert on_top.recipe is not None
    (tmp_path / "own.yaml").write_text(f"sigmas: {SIGMAS}")
    by_path = plan(job, f"schedule={tmp_path}/own.yaml")
    keys = [found.takes[0].film_key for found in (planned, by_path, on_top, plan(job, "schedule=none"))]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    [fallen_back] = plan(job, "takes.0.schedule=none").takes
    assert fallen_back.film_key == keys[3]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule=plannned"], "schedule is 'plannned'; it must be planned, none, or the path"),
        (["schedule=none.yaml"], "'none.yaml' cannot be read"),
        (
            ["num_inference_steps=12"],
            r"no schedule-unipc-12-steps beside the model \(schedule-unipc-6-steps\); .*`longtake calibrate .* --recipe schedule --scheduler unipc "
            "--computed 12 --guidance-scale 4 --prompt",
        ),
        (
            ["scheduler=dpm++", "flow_shift=2"],
            r"no schedule-dpm\+\+-6-steps beside .*--scheduler dpm\+\+ --computed 6 --guidance-scale 4 --flow-shift 2",
        ),
        (["scheduler=euler", "schedule=PLANNED"], "planned for scheduler UniPCMultistepScheduler, and scheduler is FlowMatchEuler"),
        (["num_inference_steps=7", "schedule=PLANNED"], "num_inference_steps is 7, and its schedule has 6 steps"),
        (["guidance_scale=5"], r"planned for guidance_scale 4\.0, and guidance_scale is 5\.0 here"),
        (["flow_shift=5"], r"planned for flow_shift 3\.0, and flow_shift is 5\.0 here"),
        (["schedule=OWN", "flow_shift=5"], "flow_shift is 5, which moves no sigmas of a schedule"),
        (["schedule=STALE"], "the schedule was planned for another model"),
        (["cache=CALIBRATED"], "is calibrated for the steps that a sampler makes itself"),
        (["cache=planned"], "is calibrated for the steps that a sampler makes itself"),
        (["cache.trigger.interval=2"], "cache.recipe is none here, but cache sets trigger"),
    ],
)
def test_a_schedule_of_another_kind_of_take_is_refused(job: dict[str, Any], tmp_path: Path, overrides: list[str], message: str) -> None:
    beside = schedule_path(read_card(job["model"]), "unipc", 6)
    (tmp_path / "own.yaml").write_text(f"sigmas: {SIGMAS}")
    (tmp_path / "stale.yaml").write_text(replace(PLANNED, model="0" * 64).to_yaml())
    calibrated = {**every(2).to_dict(), "calibration": {"model": model_hash(Path(job["model"])), "num_inference_steps": 6}}
    (tmp_path / "calibrated.yaml").write_text(yaml.safe_dump(calibrated))
    files = {"PLANNED": beside, "OWN": tmp_path / "own.yaml", "STALE": tmp_path / "stale.yaml", "CALIBRATED": tmp_path / "calibrated.yaml"}
    for word, path in files.items():
        overrides = [change.replace(word, str(path)) for change in overrides]
    with pytest.raises(ValueError, match=message):
        plan(job, *overrides)


def test_a_sampler_of_two_calls_a_step_takes_no_schedule(job: dict[str, Any]) -> None:
    diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0).save_pretrained(Path(job["model"]) / "scheduler")
    with pytest.raises(ValueError, match="FlowMatchHeunDiscreteScheduler, takes no schedule; set scheduler to one of euler, unipc"):
        plan({**job, "scheduler": None})


@pytest.mark.ray
def test_a_job_says_and_keeps_its_schedule(ray_cluster: str, job: dict[str, Any]) -> None:
    events: list[Event] = []
    [take] = render({**job, "save_latents": True}, on_event=events.append).takes
    assert take.manifest is not None
    assert take.manifest.config["take"]["schedule"]["sigmas"] == SIGMAS
    assert take.manifest.config["take"]["scheduler"] == "unipc"
    assert take.manifest.recipe is None
    notes = [event.text for event in events if isinstance(event, Note)]
    assert "sampler: UniPCMultistepScheduler, a schedule of 6 steps, at sigmas 1 0.97 0.9005 0.9001 0.6 0.2" in notes
    card, [planned] = read_card(job["model"]), plan(job).takes
    latents = load_file(take.folder / "latents.safetensors")["latents"]
    assert_same(latents, Renderer(card).render(planned.take, None).latents)


# Planned by `longtake calibrate`


def calibrate(model: Path, *options: str) -> Result:
    usual = ["calibrate", str(model), "--steps", "8", "--computed", "5", "--guidance-scale", "4", "--prompt", "a red circle"]
    return CliRunner().invoke(app, [*usual, *options])


@pytest.mark.parametrize(("own", "sampler"), [("unipc", None), ("euler", "dpm++")])
def test_a_planned_schedule_serves_its_sampler(tiny_wan_copy: Path, tmp_path: Path, own: str, sampler: str | None) -> None:
    """It is of the sampler's own sigmas, the first of them among these, lies where jobs find it, and fits the stock pipeline."""
    SAMPLERS[own](3.0).save_pretrained(tiny_wan_copy / "scheduler")
    done = calibrate(tiny_wan_copy, "--recipe", "schedule", *(() if sampler is None else ("--scheduler", sampler)))
    assert done.exit_code == 0, done.output
    made = load_schedule(tiny_wan_copy / "longtake" / f"schedule-{sampler or own}-5-steps.yaml")
    fine = sigmas_of(SAMPLERS[sampler or own](3.0), 8)
    assert set(made.sigmas) < set(fine)
    assert made.sigmas[0] == fine[0]
    assert (made.flow_shift, made.guidance_scale, made.model) == (3.0, 4.0, model_hash(tiny_wan_copy))
    job = {**JOB, "model": str(tiny_wan_copy), "output": str(tmp_path / "out"), "takes": [{"name": "one", "prompt": "fog"}]}
    [planned] = plan({**job, "scheduler": sampler, "num_inference_steps": 5}).takes
    assert planned.take.schedule == made
    pipe = tiny_pipeline(tiny_wan_copy)
    pipe.scheduler = SAMPLERS[sampler or own](3.0)
    with put_schedule(pipe, made):
        call(pipe, 5)


def test_a_plan_for_a_named_sampler_lies_apart(tiny_wan_copy: Path, tmp_path: Path) -> None:
    """Jobs with another one do not find it."""
    assert calibrate(tiny_wan_copy, "--scheduler", "unipc").exit_code == 0
    assert (tiny_wan_copy / "longtake" / "planned-unipc-8-steps.yaml").is_file()
    job = {**JOB, "model": str(tiny_wan_copy), "output": str(tmp_path / "out"), "takes": [{"name": "one", "prompt": "fog"}]}
    job |= {"schedule": "none", "num_inference_steps": 8}
    assert plan(job).recipe is not None
    other = plan(job, "scheduler=dpm++")
    assert other.recipe is None
    assert f"no plan for this model and 8 steps of dpm++; `longtake calibrate {tiny_wan_copy} --steps 8 --scheduler dpm++" in other.why_no_cache
    with pytest.raises(ValueError, match=r"\(planned-unipc-8-steps\), but none for 8 steps of euler; .* --steps 8 --scheduler euler"):
        plan(job, "cache=planned", "scheduler=euler")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "schedule", "--threshold", "0.1"], "--threshold is for recipes whose steps"),
        (["--recipe", "schedule", "--computed", "9"], "9 of 8 steps cannot be the computed ones"),
        (["--recipe", "schedul"], "Did you mean 'schedule'"),
        (["--scheduler", "ddim"], "scheduler is 'ddim'; models of this kind are rendered with euler, unipc"),
        (["--recipe", "schedule"], "FlowMatchHeunDiscreteScheduler, takes no schedule; set scheduler to one of"),
    ],
)
def test_what_cannot_be_planned_is_refused(tiny_wan_copy: Path, options: list[str], message: str) -> None:
    """Before the model is loaded; the last of these with a checkpoint whose own scheduler calls the model twice a step."""
    if "Heun" in message:
        diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0).save_pretrained(tiny_wan_copy / "scheduler")
    refused = calibrate(tiny_wan_copy, *options)
    assert refused.exit_code == 2
    assert re.search(message, " ".join(refused.output.split()))
    assert not (tiny_wan_copy / "longtake").exists()


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
