"""Triggers against hand-computed sequences, recipes and their errors, the cached stack on a real transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from longtake.cache import Recipe, enable_cache, load_recipe
from longtake.cache.decision import Decision, Signal, ratio
from longtake.cache.recipe import Guards, recipe_names
from longtake.cache.triggers.interval import Interval, IntervalConfig
from longtake.cache.triggers.relative_change import RelativeChange, RelativeChangeConfig
from longtake.pipeline.card import read_card
from longtake.pipeline.render import Renderer

from takes import tiny_take

COMPUTE, REUSE = Decision.COMPUTE, Decision.REUSE


def _decisions(trigger: RelativeChange, values: list[float]) -> list[Decision]:
    decisions = []
    for step, value in enumerate(values):
        signal = trigger.signal(torch.full((1, 2, 2), value))
        decision = trigger.decide(step, ratio(signal.sums))
        trigger.settle(decision)
        decisions.append(decision)
    return decisions


def test_interval_computes_every_nth_step() -> None:
    trigger = Interval(IntervalConfig(3))
    assert [trigger.decide(step, None) for step in range(7)] == [COMPUTE, REUSE, REUSE, COMPUTE, REUSE, REUSE, COMPUTE]


def test_relative_change_compares_with_the_last_computed_step() -> None:
    # Against 1.0: 1.05 -> 0.05, 1.09 -> 0.09, 1.11 -> 0.11, computed; against 1.11: 1.2 -> 0.081.
    decisions = _decisions(RelativeChange(RelativeChangeConfig(0.1)), [1.0, 1.05, 1.09, 1.11, 1.2])
    assert decisions == [COMPUTE, REUSE, REUSE, COMPUTE, REUSE]


def test_relative_change_accumulates_rescaled_changes() -> None:
    # Steps change by 0.1, rescaled 2x - 0.05 = 0.15 each: 0.15, 0.3 >= 0.25 computed, 0.15.
    config = RelativeChangeConfig(0.25, accumulate=True, rescale=[2.0, -0.05])
    assert _decisions(RelativeChange(config), [1.0, 1.1, 1.21, 1.331]) == [COMPUTE, REUSE, COMPUTE, REUSE]


def test_sums_of_uneven_shards_give_the_ratio_of_the_whole() -> None:
    now, before = torch.randn(1, 7, 3), torch.randn(1, 7, 3)
    whole = ratio(Signal.relative_l1(now, before).sums)
    parts = sum(Signal.relative_l1(now[:, cut], before[:, cut]).sums for cut in (slice(0, 2), slice(2, 7)))
    assert ratio(parts) == pytest.approx(whole, rel=1e-6)


def test_guards() -> None:
    guards = Guards(first_steps=2, last_steps=1, max_reused_steps=2)
    assert [guards.apply(REUSE, step, 10, run) for step, run in [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (9, 0)]] == [
        COMPUTE,
        COMPUTE,
        REUSE,
        REUSE,
        COMPUTE,
        COMPUTE,
    ]


def test_every_shipped_recipe_loads_and_spells_out_its_defaults() -> None:
    assert {"fbcache", "interval"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.paper
        assert load_recipe(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("fbcahce", "Did you mean 'fbcache'"),
        ("missing.yaml", "no recipe file 'missing.yaml'"),
        ({"trigger": {"name": "intervall", "interval": 2}}, "Did you mean 'interval'"),
        ({"trigger": {"name": "interval", "intervall": 2}}, "Did you mean 'interval'"),
        ({"trigger": {"name": "interval", "interval": "often"}}, "often"),
        ({"trigger": {"name": "interval", "interval": 0}}, "at least 1"),
        ({"trigger": {"name": "relative_change"}}, "threshold"),
        ({"guards": {"first_steps": 0}}, "at least 1"),
    ],
)
def test_bad_recipes_are_refused(recipe: Any, message: str) -> None:
    if isinstance(recipe, dict):
        whole = load_recipe("interval").to_dict()
        recipe = {**whole, **recipe}
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe)


def _threshold(value: float) -> Recipe:
    return load_recipe("fbcache", {"trigger": {"threshold": value}})


def test_stack_keeps_the_models_keys_and_gives_its_blocks_back(tiny_wan: Path) -> None:
    transformer = Renderer(read_card(str(tiny_wan))).family.transformer
    keys, blocks = list(transformer.state_dict()), transformer.blocks
    cached = enable_cache(transformer, "fbcache", num_inference_steps=6)
    assert list(transformer.state_dict()) == keys
    assert transformer.get_submodule("blocks.1.attn1") is blocks[1].attn1
    with pytest.raises(ValueError, match="has a cache already"):
        enable_cache(transformer, "fbcache", num_inference_steps=6)
    with pytest.raises(ValueError, match="outside `with"):
        transformer(torch.zeros(1, 4, 1, 4, 4), torch.zeros(1), torch.zeros(1, 2, 128))
    cached.disable()
    assert transformer.blocks is blocks


def test_recipe_that_leaves_nothing_to_reuse(tiny_wan: Path) -> None:
    transformer = Renderer(read_card(str(tiny_wan))).family.transformer
    with pytest.raises(ValueError, match="leave nothing to reuse in a model of 3 blocks"):
        enable_cache(transformer, load_recipe("fbcache", {"site": {"last_blocks": 2}}), num_inference_steps=6)


def test_a_cache_that_never_reuses_changes_nothing(tiny_wan: Path) -> None:
    renderer = Renderer(read_card(str(tiny_wan)))
    plain = renderer.render(tiny_take(), None)
    computed = renderer.render(tiny_take(), _threshold(0.0))
    assert computed.trace is not None and computed.trace.count(REUSE) == 0
    difference = (computed.latents - plain.latents).abs().max().item()
    assert difference <= 1e-5, f"largest difference {difference:.2e}"


def test_second_take_equals_a_first_one(tiny_wan: Path) -> None:
    renderer, recipe = Renderer(read_card(str(tiny_wan))), _threshold(0.3)
    renderer.render(tiny_take(seed=9), recipe)
    second = renderer.render(tiny_take(), recipe)
    fresh = Renderer(read_card(str(tiny_wan))).render(tiny_take(), recipe)
    assert second.trace is not None and fresh.trace is not None
    assert second.trace.count(REUSE) > 0
    assert second.trace.choices == fresh.trace.choices
    assert torch.equal(second.latents, fresh.latents)


def test_trace_records_value_margin_and_forecast_error(tiny_wan: Path) -> None:
    rendered = Renderer(read_card(str(tiny_wan))).render(tiny_take(), load_recipe("fbcache", {"trigger": {"threshold": 0.0}}))
    assert rendered.trace is not None
    windows, branches = 3, 2
    assert len(rendered.trace.entries) == windows * branches * 6
    first = [entry for entry in rendered.trace.entries if entry.step == 0]
    later = [entry for entry in rendered.trace.entries if entry.step > 0]
    assert all(entry.value is None and entry.forecast_error is None for entry in first)
    assert all(entry.value is not None and entry.margin == entry.value and entry.forecast_error for entry in later)
    assert {entry.segment for entry in later} == set(range(windows))


def test_cache_bytes_are_counted(tiny_wan: Path) -> None:
    rendered = Renderer(read_card(str(tiny_wan))).render(tiny_take(), load_recipe("interval"))
    tokens, dim, windows, branches = 5 * 2 * 2, 72, 3, 2
    assert rendered.cache_bytes == tokens * dim * 4 * windows * branches
