"""Benchmarks: fronts are what their definition says, every recipe is measured, and the pool of processes survives a lost one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longtake.bench.cache.bars.fronts import Point, comparable_at, fastest_at, speed_at
from longtake.bench.cache.contenders.contender import NUM_SETTINGS, STEPS
from longtake.bench.cache.contenders.joint import put
from longtake.bench.cache.contenders.recipes import sweep
from longtake.bench.cache.films.studio import GUIDANCE_SCALE, Studio, clips, moving_region, psnr
from longtake.bench.cache.journal import Journal
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


@pytest.mark.parametrize("name", [name for name in recipe_names() if not load_recipe(name).calibrated])
def test_every_recipe_is_tried_with_the_same_number_of_settings(name: str) -> None:
    for steps in STEPS:
        recipes = sweep(load_recipe(name), steps)
        assert len({str(recipe.deciding()) for recipe in recipes}) == NUM_SETTINGS[steps]


def test_a_joint_decision_in_a_stock_pipeline_is_that_of_our_own_loop() -> None:
    studio, [clip] = Studio(), clips(1, held_out=True)
    studio.pipe.text_encoder = type(studio.pipe.text_encoder).from_pretrained(studio.card.path / "text_encoder", dtype=torch.float32)  # as ours
    recipe = load_recipe({**load_recipe("ra_cfgcache", {"trigger": {"threshold": 0.5}}).to_dict(), "calibrated": False})
    with put(recipe, 6, studio.prompt("")["negative_prompt_embeds"], studio.pipe):
        film = studio.film(clip, 6)
    take = Take.clip(studio.card, "clip", clip.prompt, seed=clip.seed, num_inference_steps=6, guidance_scale=GUIDANCE_SCALE)
    rendered = Renderer(studio.card).render(replace(take, noise="diffusers"), recipe)
    assert rendered.trace is not None
    assert film.computed == 2 * rendered.trace.summary()["compute"] < 12
    assert_same(film.latents, rendered.latents)


def test_tuning_clips_are_not_measured() -> None:
    assert not {clip.prompt for clip in clips(20, held_out=True)} & {clip.prompt for clip in clips(20, held_out=False)}


def test_psnr_of_the_moving_region_looks_there_alone() -> None:
    frames = torch.full((5, 3, 8, 8), 0.5)
    frames[2, 1, 3, 4] = 0.6
    region = moving_region(frames)
    assert region.nonzero().tolist() == [[3, 4]]
    other = frames.clone()
    other[:, :, 0, 0] += 0.1
    assert psnr(frames, other, region) == 100
    assert psnr(frames, other) == pytest.approx(20 + 10 * torch.tensor(64.0).log10().item(), abs=1e-3)


def test_a_journal_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path, subject = tmp_path / "journal", {"model": "a"}
    journal = Journal(path, subject)
    journal.note("first", [1.5])
    journal.note("second", {"psnr": 40.0})
    with path.open("a") as file:
        file.write('["third", [0.')
    again = Journal(path, subject)
    assert again["first"] == [1.5] and again["second"] == {"psnr": 40.0} and "third" not in again and again.sittings == 2
    again.note("third", 3)
    assert Journal(path, subject)["third"] == 3
    assert "first" not in Journal(path, {"model": "b"})
    again.discard()
    assert not path.exists()


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
