"""Benchmarks: fronts are what their definition says, every recipe is measured, and the pool of processes survives a lost one."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from longtake.bench import results
from longtake.bench.cache.bars.fronts import Point, comparable_at, fastest_at, speed_at, worth_going_on
from longtake.bench.cache.bars.gains import fronts, gains, methods
from longtake.bench.cache.contenders.contender import NUM_SETTINGS, Contender, Setting, Tuning
from longtake.bench.cache.contenders.fewer_steps import best_of_shifts
from longtake.bench.cache.contenders.joint import put
from longtake.bench.cache.contenders.recipes import our_setting, put_recipe, sweep
from longtake.bench.cache.films import converged
from longtake.bench.cache.films.models import GUIDANCE_SCALE, MODELS, Model
from longtake.bench.cache.films.samplers import SPACINGS, sampled_by, sampler, spaced
from longtake.bench.cache.films.studio import Studio, moving_region, psnr
from longtake.bench.cache.measure import measure
from longtake.bench.cache.picture import draw, named_lines
from longtake.bench.cache.points import Measured
from longtake.bench.cache.stages import STAGES, Stage, expected_hours, stage_named
from longtake.bench.journal import Journal
from longtake.bench.pool import GlooPool
from longtake.cache import load_recipe
from longtake.cache.recipe.read import recipe_names
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.loop.render import Renderer
from longtake.pipeline.take import Take

from same import assert_same

pytestmark = pytest.mark.numerical

POINTS = st.lists(st.builds(Point, speedup=st.floats(1, 10), psnr=st.floats(10, 60)), min_size=1, max_size=8)
LINE = [Point(2, 40), Point(4, 30)]


@given(points=POINTS, low=st.floats(0, 70), high=st.floats(0, 70))
def test_more_quality_is_never_faster(points: list[Point], low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert speed_at(points, low) >= speed_at(points, high) >= 1


@given(points=POINTS, place=st.data())
def test_a_front_reaches_its_points_and_no_farther(points: list[Point], place: st.DataObject) -> None:
    chosen = place.draw(st.sampled_from(points))
    assert chosen.speedup <= speed_at(points, chosen.psnr) <= max(point.speedup for point in points)


@given(methods=st.dictionaries(st.text(), POINTS, min_size=1), more=POINTS, psnr=st.floats(0, 70))
def test_another_method_never_makes_a_tool_slower(methods: dict[str, list[Point]], more: list[Point], psnr: float) -> None:
    assert fastest_at({**methods, "another one": more}, psnr)[0] >= fastest_at({k: v for k, v in methods.items() if k != "another one"}, psnr)[0]


@pytest.mark.parametrize(("psnr", "speedup"), [(40, 2), (35, 3), (30, 4), (20, 4), (41, 1)])
def test_speed_is_linear_in_decibels_between_neighbours(psnr: float, speedup: float) -> None:
    assert speed_at(LINE, psnr) == speedup


def test_fronts_are_compared_where_all_of_them_have_points() -> None:
    tool, gentle = {"line": LINE}, {"gentle": [Point(1.5, 50), Point(2, 36)]}
    assert comparable_at(32, tool) == 32
    assert comparable_at(32, tool, gentle) == 36


@given(methods=st.dictionaries(st.text(), POINTS, min_size=1))
def test_whoever_is_on_the_front_goes_on(methods: dict[str, list[Point]]) -> None:
    for level in range(20, 51):
        speed, name = fastest_at(methods, level)
        assert speed <= 1.01 or name in worth_going_on(methods)


def test_contenders_far_from_the_front_do_not_go_on() -> None:
    slow = [Point(point.speedup / 2, point.psnr) for point in LINE]
    assert worth_going_on({"line": LINE, "nearly": [Point(1.9, 40), Point(3.8, 30)], "slow": slow}) == {"line", "nearly"}


def _measured(stage: str, who: str, setting: str, speedup: float, psnr: float, calls: float, clips: int = 2) -> Measured:
    """Against the converged film 1 dB less; the first clip 3 dB better than the last."""
    tool, method = who.split(": ")
    of_clips = tuple((speedup, psnr + shift, psnr - 1 + shift) for shift in np.linspace(1.5, -1.5, clips).tolist())
    return Measured(stage, tool, method, setting, speedup, psnr, psnr - 2, psnr - 1, psnr - 1.5, psnr - 2.5, calls, of_clips)


def _stage(stage: str) -> list[Measured]:
    steps = float(stage.rsplit("/", maxsplit=1)[-1])
    counted = {"longtake: schedule": (44.0, 39.0), "fewer steps: UniPC": (34.0, 30.0), "fewer steps: UniPC, shift 10": (36.0, 29.0)}
    planned = {"longtake: planned": (48.0, 41.0), "longtake: planned without its corrector": (46.0, 38.5), "diffusers: SeaCache": (31.0, 23.0)}
    return [
        *(_measured(stage, who, f"{n} steps", steps / n, at[n == 9], n) for who, at in counted.items() for n in (12, 9)),
        *(_measured(stage, who, f"computed {n}", 0.97 * steps / n, at[n == 9], n) for who, at in planned.items() for n in (12, 9)),
        _measured(stage, "longtake: interval", "interval 8", 4.0, 25.0, 12.5),
        _measured(stage, "cache-dit: DBCache", "far off", 9.0, 60.0, 2.0, clips=1),
    ]


def test_gains_are_differences_at_equal_cost_against_the_converged_film() -> None:
    bars, raw = gains([*_stage("demo/euler/50"), *_stage("demo/unipc/50")])
    values = {name: bar.value for name, bar in bars.items()}
    assert values == {"converged_gain_12": 12, "schedule_gain_12": 10, "schedule_gain_9": 9, "forecast_gain_9": 2, "corrector_gain_9": 2.5}
    assert all(bar.holds for bar in bars.values())
    assert raw["converged_gain_12"]["less"]["who"] == "fewer steps UniPC, shift 10, 12 steps"
    assert raw["converged_gain_12"]["more"]["psnr_converged_worst"] == 45.5, "our worst clip is said"


def test_fronts_count_fewer_steps_and_the_best_shift_but_no_contender_of_the_first_clips_alone() -> None:
    bars, rows = fronts(_stage("demo/euler/50"))
    assert set(bars) == {"front_30db", "front_35db", "front_40db"}
    assert {row["of"] for row in rows} == {"psnr", "psnr_moving", "psnr_converged"}
    theirs = next(row for row in rows if row["of"] == "psnr" and row["wanted"] == 30)
    assert theirs["theirs"] == (50 / 9, "fewer steps UniPC, best shift") and theirs["ours"][1].startswith("longtake")
    best = methods(_stage("demo/euler/50"), "demo/euler/50", "psnr", ours=False)["fewer steps UniPC, best shift"]
    assert sorted(point.psnr for point in best) == [30, 36]


def test_the_picture_names_eight_lines_at_most_and_is_drawn_from_results_alone(tmp_path: Path) -> None:
    more = [_measured("demo/euler/50", f"{tool}: {n}", "one", 2.0, 20.0 + n, 25) for tool in ("longtake", "diffusers", "cache-dit") for n in range(9)]
    points = [Measured.read(json.loads(json.dumps(asdict(point)))) for point in [*_stage("demo/euler/50"), *_stage("second/euler/50"), *more]]
    named = named_lines(points, ["demo/euler/50"])
    assert len(named) <= 8 and {"longtake planned", "longtake schedule", "fewer steps UniPC"} <= set(named)
    assert {name.split()[0] for name in named} == {"longtake", "fewer", "diffusers", "cache-dit"}
    draw(points, tmp_path / "cache.png")
    assert (tmp_path / "cache.png").stat().st_size > 10_000


def test_every_stage_is_found_by_its_name_and_has_eight_clips_of_its_model() -> None:
    for stage in STAGES:
        assert stage_named(stage.name) is stage
    assert all(max(stage.clips for stage in STAGES if stage.model == model) >= 8 for model in MODELS)
    assert sum(map(expected_hours, STAGES)) < 8
    with pytest.raises(ValueError, match="no stage 'demo/unipc'; known: demo/euler/50"):
        stage_named("demo/unipc")


@pytest.mark.parametrize("name", ["euler", "unipc", "dpm++"])
@pytest.mark.parametrize("how", SPACINGS)
def test_spacings_are_noise_levels_of_a_flow(name: str, how: str) -> None:
    if how == "beta":
        pytest.importorskip("scipy")
    card = MODELS["demo"].card
    pipe = SimpleNamespace(scheduler=None)
    with spaced(card, name, how, 9, pipe):
        pipe.scheduler.set_timesteps(9)
        sigmas, timesteps = pipe.scheduler.sigmas.tolist(), pipe.scheduler.timesteps.tolist()
    assert pipe.scheduler is None
    assert len(sigmas) == 10 and sigmas == sorted(sigmas, reverse=True)
    assert 0.99 < sigmas[0] <= 1 and sigmas[-1] == 0
    assert all(abs(1000 * sigma - time) <= 1 for sigma, time in zip(sigmas, timesteps, strict=False))
    plain = sampler(card, name)
    plain.set_timesteps(9)
    assert max(abs(a - b) for a, b in zip(sigmas, plain.sigmas.tolist(), strict=True)) > 0.05, "another spacing than the sampler's own"


@pytest.mark.parametrize(("cls", "how"), [(UniPCMultistepScheduler, "exponential"), *((DPMSolverMultistepScheduler, how) for how in SPACINGS[:2])])
def test_what_is_left_out_is_no_flow(cls: type, how: str) -> None:
    """The reason that fewer_steps.LEFT_OUT gives; once diffusers mends it, these spacings are to be measured as they are."""
    config = sampler(MODELS["demo"].card, "unipc" if cls is UniPCMultistepScheduler else "dpm++").config
    scheduler = cls.from_config(config, **{f"use_{how}_sigmas": True})
    scheduler.set_timesteps(9)
    assert scheduler.sigmas[0] > 100


def test_a_shift_is_counted_among_its_sampler_s() -> None:
    assert best_of_shifts("UniPC") == best_of_shifts("UniPC, shift 10") == "UniPC, best shift"
    assert best_of_shifts("Euler") is None and best_of_shifts("DPM++ 2M, beta spacing") is None


@torch.no_grad()
def test_calls_are_counted_by_what_is_computed_of_them() -> None:
    """A whole film: as many model calls of a branch as it has steps, twice, on any sampler and with a cache."""
    studio, [clip] = Studio(MODELS["demo"].card), MODELS["demo"].tuning_clips(1)
    assert studio.film(clip, 3).computed == 6
    with sampled_by(sampler(studio.card, "unipc"), studio.pipe):
        film = studio.film(clip, 4)
    assert film.computed == 8 and len(film.step_seconds) == 4
    assert type(studio.pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    with put_recipe(load_recipe("interval", {"trigger": {"interval": 2}, "guards": {"first_steps": 1, "last_steps": 0}}), 4, studio.pipe):
        assert studio.film(clip, 4).computed == 4


@pytest.fixture
def few_steps_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converged, "CONVERGED_STEPS", 6)


@pytest.mark.usefixtures("few_steps_converge")
def test_a_converged_film_is_rendered_once(tmp_path: Path) -> None:
    studio, [clip] = Studio(MODELS["demo"].card), MODELS["demo"].tuning_clips(1)
    latents = converged.ConvergedFilms(studio, tmp_path, {"model": "a"}).latents(clip)
    [kept] = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    assert torch.equal(converged.ConvergedFilms(studio, tmp_path, {"model": "a"}).latents(clip), latents)
    assert kept.stat().st_mtime_ns == written
    converged.ConvergedFilms(studio, tmp_path, {"model": "b"}).latents(clip)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", [name for name in recipe_names() if not load_recipe(name).calibrated])
def test_every_recipe_is_tried_with_the_same_number_of_settings(name: str) -> None:
    for steps in NUM_SETTINGS:
        recipes = sweep(load_recipe(name), steps)
        assert len({str(recipe.deciding()) for recipe in recipes}) == NUM_SETTINGS[steps]


def test_a_joint_decision_in_a_stock_pipeline_is_that_of_our_own_loop() -> None:
    studio, [clip] = Studio(MODELS["demo"].card), MODELS["demo"].tuning_clips(1)
    studio.pipe.text_encoder = type(studio.pipe.text_encoder).from_pretrained(studio.card.path / "text_encoder", dtype=torch.float32)  # as ours
    recipe = load_recipe({**load_recipe("ra_cfgcache", {"trigger": {"threshold": 0.5}}).to_dict(), "calibrated": False})
    with put(recipe, 6, studio.prompt("")["negative_prompt_embeds"], studio.pipe):
        film = studio.film(clip, 6)
    take = Take.clip(studio.card, "clip", clip.prompt, seed=clip.seed, num_inference_steps=6, guidance_scale=GUIDANCE_SCALE)
    rendered = Renderer(studio.card).render(replace(take, noise="diffusers"), recipe)
    assert rendered.trace is not None
    whole = 2 * rendered.trace.summary()["compute"]
    assert whole < 12
    assert film.computed == pytest.approx(whole + (12 - whole) / studio.card.num_layers), "of other calls the first block alone is computed"
    assert_same(film.latents, rendered.latents)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_measured_clips_are_neither_tuning_clips_nor_clips_of_earlier_results(model: Model) -> None:
    measured, tuning = model.measured_clips(16), model.tuning_clips(16)
    earlier = {model.draw(np.random.default_rng((23, index)), held_out) for index in range(50) for held_out in (True, False)}
    assert len({clip.prompt for clip in measured}) == len({clip.seed for clip in measured}) == 16
    assert not {clip.prompt for clip in measured} & ({clip.prompt for clip in tuning} | earlier)
    assert measured[:8] == model.measured_clips(8), "more clips are the same ones and others"


def test_psnr_of_the_moving_region_looks_there_alone() -> None:
    frames = torch.full((5, 3, 8, 8), 0.5)
    frames[2, 1, 3, 4] = 0.6
    region = moving_region(frames)
    assert region.nonzero().tolist() == [[3, 4]]
    other = frames.clone()
    other[:, :, 0, 0] += 0.1
    assert psnr(frames, other, region) == 100
    assert psnr(frames, other) == pytest.approx(20 + 10 * torch.tensor(64.0).log10().item(), abs=1e-3)


def test_a_checkout_with_changes_is_told_from_a_commit_and_new_results_are_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "code.py").write_text("1")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm one"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    monkeypatch.setattr(results, "RESULTS", tmp_path / "bench" / "results")
    clean = results.commit()
    assert len(clean) == 12
    (tmp_path / "bench" / "results" / "cache.json").write_text("{}")
    assert results.commit() == clean
    (tmp_path / "new.py").write_text("2")
    assert results.commit() == f"{clean}+"


def test_a_journal_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path, subject = tmp_path / "journal", {"model": "a"}
    journal = Journal(path, subject)
    journal.note("first", [1.5])
    journal.note("second", {"psnr": 40.0})
    journal.close()
    with path.open("a") as file:
        file.write('["third", [0.')
    again = Journal(path, subject)
    assert again["first"] == [1.5] and again["second"] == {"psnr": 40.0} and "third" not in again and again.sittings == 2
    again.note("third", 3)
    with pytest.raises(ValueError, match="Something else measures into 'journal' already"):
        Journal(path, subject)
    again.close()
    once_more = Journal(path, subject)
    assert once_more["third"] == 3
    once_more.close()
    other = Journal(path, {"model": "b"})
    assert "first" not in other
    other.discard()
    assert not list(tmp_path.iterdir())


def _setting(label: str, computed: int, steps: int) -> Setting:
    """Of a film of `steps` steps the first so many computed, the others reused."""
    recipe = load_recipe({"trigger": {"name": "mask", "computed": list(range(computed))}, "site": {"name": "output"}, "predictor": {"name": "reuse"}})
    return our_setting(label, load_recipe(recipe, {"guards": {"first_steps": 1, "last_steps": 0}}), steps)


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps_converge")
def test_a_stage_renders_what_no_journal_holds_and_leaves_what_is_far_from_the_front(tmp_path: Path) -> None:
    stage = Stage("demo", "euler", 4, clips=2, first_clips=1)
    model = MODELS["demo"]
    studio, clips = Studio(model.card), model.tuning_clips(2)
    renderer = Renderer(model.card)
    unipc = Setting("3 steps", partial(sampled_by, sampler(model.card, "unipc")), steps=3)
    idle = Setting("idle", lambda pipe: nullcontext())
    whole = [
        Contender("ours", "good", (_setting("2", 2, 4),)),
        Contender("ours", "slow", (replace(idle, steps=8),)),
        Contender("theirs", "named", (idle,), named=True),
        Contender("theirs", "UniPC", (unipc,)),
    ]
    journal = Journal(tmp_path / "journal", {})
    films = converged.ConvergedFilms(studio, tmp_path, {})
    points = {point.name: point for point in measure(Tuning(stage, studio, renderer, clips, journal), films, whole, clips)}
    assert {name: len(point.of_clips) for name, point in points.items()} == {"ours good": 2, "ours slow": 1, "theirs named": 2, "theirs UniPC": 2}
    assert {name: point.computed for name, point in points.items()} == {"ours good": 2, "ours slow": 8, "theirs named": 4, "theirs UniPC": 3}
    assert points["theirs named"].psnr == 100 and 10 < points["ours good"].psnr_converged < 100
    assert points["ours good"].psnr_converged != points["ours good"].psnr
    journal.close()
    again = Tuning(stage, cast(Studio, SimpleNamespace()), renderer, clips, Journal(tmp_path / "journal", {}))  # with which nothing can be rendered
    assert {point.name: point for point in measure(again, films, whole, clips)} == points


def _number_unless(mesh: Mesh, dying: int | None) -> int:
    if mesh.rank == dying:
        os._exit(1)
    return mesh.rank


def test_a_rank_that_dies_costs_the_pool_one_run() -> None:
    with GlooPool(2) as pool:
        assert pool.run(_number_unless, 2, None) == [0, 1]
        with pytest.raises((EOFError, TimeoutError)):
            pool.run(_number_unless, 2, 1)
        assert pool.run(_number_unless, 2, None) == [0, 1]
