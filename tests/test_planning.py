"""Plans and schedules that are chosen by rendering: the choosing by itself, what a sampler makes of fewer steps, and whole calibrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.cache import Cached, Recipe, Schedule, calibrate, enable_cache, load_recipe, put_schedule
from longtake.cache.calibration.choose import Choice, choose, decibels, improve, relative_error, rounds
from longtake.cache.calibration.plan import Weighing, moved_steps, spreads, weighings
from longtake.cache.calibration.planning import TAKES_A_TAKE, Planning
from longtake.cache.calibration.schedule import moved_while_better, sampler_at
from longtake.cache.calibration.takes import Played
from longtake.cache.predictors.planned import Planned, PlannedConfig
from longtake.cache.schedule.put import set_sigmas
from longtake.pipeline.calibration.calibrate import calibrate as calibrate_model
from longtake.pipeline.calibration.calibrate import calibration_takes
from longtake.pipeline.calibration.schedule import plan_schedule
from longtake.pipeline.calibration.takes import RendererTakes
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.render import Renderer, whole_take
from longtake.pipeline.recipes.check import check_recipe
from longtake.pipeline.take import TimelineSettings

from stock import flow_sampler as sampler_of_class

pytestmark = pytest.mark.numerical

PROMPTS = ["a red circle", "a blue square moves left"]
ERRORS = st.floats(1e-3, 10)
SAMPLERS = {"euler": "FlowMatchEulerDiscreteScheduler", "unipc": "UniPCMultistepScheduler", "dpm++": "DPMSolverMultistepScheduler"}


def flow_sampler(name: str, shift: float = 3.0, **settings: Any) -> Any:
    return sampler_of_class(SAMPLERS[name], shift, **settings)


@given(table=st.lists(st.lists(ERRORS, min_size=4, max_size=4), min_size=1, max_size=16), renders=st.integers(1, 40))
def test_the_best_of_what_is_rendered_to_the_end_is_chosen_within_the_budget(table: list[list[float]], renders: int) -> None:
    choice = choose(range(len(table)), lambda number, take: table[number][take], 4, renders)
    tried = len(choice.errors)
    assert sum(map(len, choice.errors.values())) == sum(rounds(tried, 4))
    assert choice.renders == sum(len(errors) for number, errors in choice.errors.items() if number) + 4
    assert tried == 1 or choice.renders <= renders
    assert [table[0][take] for take in choice.takes] == sorted(table[0], reverse=True)
    assert all(errors == [table[number][take] for take in choice.takes[: len(errors)]] for number, errors in choice.errors.items())
    finalists = {number: errors for number, errors in choice.errors.items() if len(errors) == 4}
    least_worst = min(map(max, finalists.values()))
    assert max(finalists[choice.best]) <= 1.5 * least_worst
    better = [number for number in finalists if choice.mean(number) < choice.mean(choice.best) * (1 - 1e-12)]
    assert all(max(finalists[number]) > 1.5 * least_worst for number in better)


def test_a_candidate_that_ruins_a_take_is_not_chosen_though_its_mean_is_best() -> None:
    table = [[0.1, 0.1], [0.001, 0.16], [inf, 0.01]]
    choice = choose(range(3), lambda number, take: table[number][take], 2, 100)
    assert choice.best == 0
    assert "20.0 dB of the latents on the mean of 2 take(s), 20.0 on the worst" in str(choice)


@given(start=st.integers(0, 60), renders=st.integers(0, 60))
def test_changes_are_made_while_they_help_and_renderings_are_left(start: int, renders: int) -> None:
    """On a slope towards 30, whose neighbours are one apart; two takes."""
    used = 0

    def error(place: int, take: int) -> float:
        nonlocal used
        used += 1
        return 1.0 + abs(place - 30)

    choice = Choice([start], [1, 0], errors={0: [1.0 + abs(start - 30)] * 2})
    best, errors, left = improve(choice, lambda place: (place + 1, place - 1), error, renders)
    assert used == renders - left <= renders
    assert errors == [1.0 + abs(best - 30)] * 2
    assert abs(best - 30) <= abs(start - 30)
    assert best == 30 or left == 0


def test_errors_are_relative() -> None:
    film = torch.tensor([3.0, 4.0])
    assert relative_error(film * 1.1, film) == pytest.approx(0.1, rel=1e-5)
    assert decibels(0.1) == pytest.approx(20)
    assert relative_error(film * torch.nan, film) == inf


@given(computed=st.sets(st.integers(1, 19), min_size=1, max_size=12))
def test_single_steps_are_moved_and_stay_in_order(computed: set[int]) -> None:
    steps = (0, *sorted(computed))
    for moved in moved_steps(steps, 20):
        assert moved[0] == 0 and moved[-1] < 20 and all(a < b for a, b in pairwise(moved))
        assert sum(a != b for a, b in zip(steps, moved, strict=True)) == 1


def test_weighings_are_those_of_the_docs() -> None:
    found = list(weighings(50, 12))
    assert {weighing.growth_power for weighing in found} == {0.0, 0.25, 0.5, 1.0}
    assert {weighing.max_gap for weighing in found} == {12, 9}
    assert len(found) == len(set(found)) == 16
    assert Weighing(1.0, corrected=True) in found


@given(num_steps=st.integers(2, 60), share=st.floats(0, 1))
def test_gaps_of_spreads_grow_evenly(num_steps: int, share: float) -> None:
    num_computed = max(1, round(share * num_steps))
    for steps, _ in spreads(num_steps, num_computed):
        assert len(steps) == num_computed and steps[0] == 0 and steps[-1] < num_steps
        gaps = [after - before for before, after in pairwise(steps)]
        assert all(gap > 0 for gap in gaps)
        assert all(after >= before - 1 for before, after in pairwise(gaps)), "longer, but for what rounding takes"
    assert (0, 1, 3, 7, 12, 18, 26, 36, 46) in dict(spreads(50, 9))


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(["euler", "unipc", "dpm++"]), chosen=st.sets(st.integers(1, 11), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_what_a_sampler_makes_of_fewer_steps_is_known_from_the_outputs_there(kind: str, chosen: set[int], seed: int) -> None:
    scheduler = flow_sampler(kind)
    scheduler.set_timesteps(12)
    generator = torch.Generator().manual_seed(seed)
    noise, *outputs = torch.randn(13, 1, 1, 4, dtype=torch.float64, generator=generator)
    steps = [0, *sorted(chosen)]
    sigmas = scheduler.sigmas[steps].double().numpy()
    known = sampler_at(scheduler, sigmas) @ torch.stack([noise, *(outputs[step] for step in steps)]).flatten(1).numpy()
    fewer = flow_sampler(kind)
    fewer.set_timesteps(len(steps))
    set_sigmas(fewer, sigmas.tolist())
    latents, made = noise, [noise]
    for timestep, step in zip(fewer.timesteps, steps, strict=True):
        latents = fewer.step(outputs[step], timestep, latents, return_dict=False)[0]
        made.append(latents)
    np.testing.assert_allclose(known, torch.stack(made).flatten(1).numpy(), atol=1e-4 * float(np.abs(known).max()))


def test_steps_are_moved_downhill() -> None:
    assert moved_while_better((0, 1, 2, 3), lambda steps: sum((a - b) ** 2 for a, b in zip(steps, (0, 4, 9, 15), strict=True)), 20) == (0, 4, 9, 15)


@given(error=st.floats(0.01, 10), expected=st.floats(0.01, 1))
def test_a_forecast_that_is_worse_than_expected_corrects_less(error: float, expected: float) -> None:
    """At a step whose forecast is off by `error` of the output's size."""
    output = torch.full((1, 4), 2.0)
    made = []
    for errors in ([], [0.0, 0.0, expected, 0.0]):
        predictor = Planned(PlannedConfig([0.0] * 4, [-0.25] * 4, expected_errors=errors))
        predictor.push(0.0, output * (1 + error))
        predictor.settle(1.0, predictor.predict(1.0))
        made.append(predictor.amend(2.0, output) - output)
    torch.testing.assert_close(made[1], made[0] * min(1.0, expected / error), rtol=1e-4, atol=1e-6)


CALL = {"guidance_scale": 3.0, "height": 32, "width": 32, "num_frames": 17, "max_sequence_length": 32}
STEPS, COMPUTED = 12, 5


def _pipe(folder: Path, sampler: str) -> Any:
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = flow_sampler(sampler)
    return pipe


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
def test_a_stock_pipeline_is_calibrated_as_a_checkpoint_is(tiny_wan: Path, sampler: str) -> None:
    pipe, said = _pipe(tiny_wan, sampler), list[str]()
    calls = 0

    def count(module: Any, args: Any) -> None:
        nonlocal calls
        calls += 1

    pipe.transformer.blocks[1].register_forward_pre_hook(count)
    found = calibrate(pipe, "planned", prompts=PROMPTS, num_inference_steps=STEPS, computed=COMPUTED, say=said.append, **CALL)
    assert isinstance(found, Recipe) and found.calibration
    assert calls <= 2 * TAKES_A_TAKE * len(PROMPTS) * STEPS  # two branches
    assert "takes' worth" in said[0] and any("min" in line for line in said) and any(line.startswith("chosen by ") for line in said)
    renderer = Renderer(card := read_card(tiny_wan))
    takes = calibration_takes(card, PROMPTS, STEPS, 3.0, scheduler=sampler, noise="diffusers")
    ours = calibrate_model("planned", renderer, takes, computed=COMPUTED)
    assert found.parts[0].trigger.config.computed == ours.parts[0].trigger.config.computed
    for name, values in vars(found.parts[0].predictor.config).items():
        assert values == pytest.approx(getattr(ours.parts[0].predictor.config, name), rel=1e-3, abs=1e-6), name
    assert ours.calibration and (found.name, found.calibration.scheduler) == (ours.name, ours.calibration.scheduler)
    check_recipe(ours, card, takes[0], ours.calibration.model)

    cached = enable_cache(pipe, found, num_inference_steps=STEPS)
    run = {**CALL, "num_inference_steps": STEPS, "output_type": "latent"}
    pipe(PROMPTS[0], **run)
    assert cached.trace.summary() == {"compute": 2 * COMPUTED, "reuse": 2 * (STEPS - COMPUTED)}
    for changes, message in (
        ({"guidance_scale": 5.0}, "calibrated at guidance_scale 3, the take has 5"),
        ({"num_inference_steps": 10}, "calibrated for 12 steps, the take has 10"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(PROMPTS[0], **{**run, **changes})
    for other in (flow_sampler("dpm++"), flow_sampler(sampler, 7.0)):
        pipe.scheduler = other
        with pytest.raises(ValueError, match="was calibrated with"):
            pipe(PROMPTS[0], **run)


def test_a_schedule_is_planned_on_a_stock_pipeline_as_for_a_checkpoint(tiny_wan: Path) -> None:
    pipe = _pipe(tiny_wan, "unipc")
    found = calibrate(pipe, "schedule", prompts=PROMPTS, num_inference_steps=STEPS, computed=COMPUTED, say=lambda line: None, **CALL)
    assert isinstance(found, Schedule)
    card = read_card(tiny_wan)
    takes = calibration_takes(card, PROMPTS, STEPS, 3.0, scheduler="unipc", noise="diffusers")
    ours = plan_schedule(Renderer(card), takes, computed=COMPUTED)
    assert found.sigmas == pytest.approx(ours.sigmas) and found.num_steps == COMPUTED
    assert (found.scheduler, found.flow_shift, found.guidance_scale) == (ours.scheduler, ours.flow_shift, ours.guidance_scale)
    with put_schedule(pipe, found):
        pipe(PROMPTS[0], num_inference_steps=COMPUTED, output_type="latent", **CALL)
        with pytest.raises(ValueError, match="planned for guidance_scale 3"):
            pipe(PROMPTS[0], num_inference_steps=COMPUTED, output_type="latent", **{**CALL, "guidance_scale": 4.0})


def test_a_candidate_that_diverges_is_not_chosen_and_ends_nothing(tiny_wan: Path) -> None:
    renders = 0

    class Diverging(RendererTakes):
        """Every other schedule ends in numbers that are not finite."""

        def render(self, index: int, cached: Cached | None = None, sigmas: Sequence[float] | None = None) -> Played:
            nonlocal renders
            renders += sigmas is not None
            if sigmas is not None and renders % 2:
                raise FloatingPointError("not finite")
            return super().render(index, cached, sigmas)

    card = read_card(tiny_wan)
    takes = Diverging(Renderer(card), calibration_takes(card, PROMPTS[:1], STEPS, 3.0))
    said: list[str] = []
    sigmas = Planning(takes, replace(load_recipe("planned"), calibrated=False), said.append).schedule(COMPUTED)
    assert len(sigmas) == COMPUTED and renders > 1
    assert "inf" not in said[-2]  # of the last that was better


@pytest.mark.parametrize(
    "timeline",
    [
        TimelineSettings("rollout", 5, 2),
        TimelineSettings("rollout", 5, 2, 1, "isolated"),
        TimelineSettings("windows", 5, 2),
        TimelineSettings("banded", 3, 0),
    ],
    ids=["joint", "isolated", "windows", "banded"],
)
def test_takes_of_a_timeline_are_calibrated_by_their_last_round(tiny_wan: Path, timeline: TimelineSettings) -> None:
    """What is rendered for calibration is what a job renders, and the plan holds for it."""
    renderer = Renderer(card := read_card(tiny_wan))
    takes = calibration_takes(card, PROMPTS, STEPS, 3.0, timeline=timeline)
    last = takes[0].timeline_for(card).rounds[-1]
    assert len(takes[0].timeline_for(card).rounds) == (2 if timeline.name == "rollout" else 1)
    whole = whole_take(renderer.steps(takes[0], None)).latents
    measured = RendererTakes(renderer, takes)
    for _ in range(2):
        played = measured.render(0)
        assert played.latents is not None and len(played.outputs) == STEPS
        assert torch.equal(played.latents, whole[:, :, last.frames.start : last.frames.stop])
    recipe = calibrate_model("planned", renderer, takes, computed=COMPUTED)
    trace = whole_take(renderer.steps(takes[0], recipe)).trace
    assert trace is not None
    computed = {entry.step for entry in trace.entries if entry.decision == "compute"}
    assert computed == set(recipe.parts[0].trigger.config.computed)


def test_what_cannot_be_calibrated_is_refused_before_anything_is_rendered(tiny_wan: Path) -> None:
    pipe = _pipe(tiny_wan, "euler")

    def refused(match: str, name: str = "planned", **changes: Any) -> None:
        settings: dict[str, Any] = {"prompts": PROMPTS, "num_inference_steps": STEPS, **CALL, **changes}
        with pytest.raises(ValueError, match=match):
            calibrate(pipe, name, **settings)

    refused("'teacache' cannot be calibrated on a stock pipeline", "teacache")
    refused("calibrate sets generator of the pipeline's calls itself", generator=torch.Generator())
    refused("prompts is 'a red circle'; give a list", prompts="a red circle")
    refused("prompts is", prompts=[1])
    refused("takes no guidance", guidance=3)
    refused("computed is 2.5; it must be a whole number", computed=2.5)
    cached = enable_cache(pipe, "fbcache", num_inference_steps=STEPS)
    refused("has a cache already; call disable")
    cached.disable()
    with put_schedule(pipe, [1.0, 0.5]):
        refused("There is a schedule on this pipeline's scheduler")
    refused("13 of 12 steps cannot be the computed ones", computed=13)
    refused("num_inference_steps is 0", num_inference_steps=0)
    pipe.scheduler = flow_sampler("euler", stochastic_sampling=True)
    refused("stochastic_sampling=True")
