"""Recipes and their errors, caches on real transformers and in stock pipelines, memory, traces."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from longtake.cache import Recipe, Replay, Shards, Trace, enable_cache, load_recipe
from longtake.cache.decision import Decision
from longtake.cache.model.cached_stack import CachedStack
from longtake.cache.recipe.budget import describe_collectives
from longtake.cache.recipe.read import recipe_names
from longtake.cache.state.storage import Storage
from longtake.jobs.cli.app import app
from longtake.parallel.groups.degrees import Degrees
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.render import Renderer
from longtake.pipeline.recipes.check import check_recipe
from longtake.pipeline.recipes.memory import cache_bytes
from typer.testing import CliRunner

from same import MARGIN, assert_same, assert_same_decisions
from takes import REFUSED_BY_HUNYUAN, stock_latents, stock_take, tiny_recipe, tiny_take

pytestmark = pytest.mark.numerical

COMPUTE, REUSE = Decision.COMPUTE, Decision.REUSE
ONE_PROMPT = tiny_take().prompts[:1]


def test_doubt_brings_a_computed_step_forward(tiny_wan: Path) -> None:
    """A step in doubt is computed, and a later one of the schedule is not."""
    renderer = Renderer(read_card(str(tiny_wan)))
    take = tiny_take(num_inference_steps=12, num_frames=13, prompts=ONE_PROMPT)
    scheduled, in_doubt = [0, 1, 2, 3, 6, 9, 11], [0, 1, 2, 3, 5, 7, 10, 11]
    for max_risk, expected in ((0.0, scheduled), (0.1, in_doubt)):
        trace = renderer.render(take, load_recipe("racer", {"guards": {"max_risk": max_risk}})).trace
        assert trace is not None and trace.smallest_margin > MARGIN
        assert [entry.step for entry in trace.entries if entry.branch == "cond" and entry.decision == "compute"] == expected


def test_every_shipped_recipe_loads_and_spells_out_its_defaults() -> None:
    assert {"fbcache", "interval"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.paper and recipe.category
        assert load_recipe(recipe.to_dict()) == recipe


GUIDED = {"name": "guided_change", "threshold": 0.1, "guidance_scale": 5, "correlation": 0.9, "gain": 1, "exponent": 1, "offset": 0}
OUTPUT = {"site": {"name": "output"}}
STACK = {"trigger": {"name": "interval", "interval": 2}, "site": {"name": "stack"}, "predictor": {"name": "reuse"}}


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
        ({"guards": {"first_steps": 0}}, "must be above 0, as the first step can only be computed"),
        ({"guards": {"max_risk": 0.1}, "branches": "cond"}, "doubts each branch's own forecast, but branches is cond"),
        ({"branches": "both"}, "branches is 'both'; it must be one of each, cond, joint"),
        ({"abscissa": "time"}, "abscissa is 'time'; it must be one of step, sigma"),
        ({"predictor": {"name": "taylor", "order": -1}}, "order is -1"),
        ({"predictor": {"name": "chebyshev", "degree": 5}}, "the window must be larger than the degree"),
        ({"trigger": {"name": "magnitude"}}, "ratios"),
        ({"trigger": {"name": "ranges", "interval": 2, "low": 900}}, "low is 900 and high 850"),
        # Parts that do not go together.
        ({"site": {"name": "guidance"}, "branches": "cond"}, "'guidance' needs branches 'each', and branches is 'cond'; set it to each"),
        ({"trigger": GUIDED}, "'guided_change' needs branches 'joint', and branches is 'each'; set it to joint"),
        ({"trigger": GUIDED, "site": {"name": "guidance"}}, "site 'guidance' need different branches"),
        ({**OUTPUT, "predictor": {"name": "planned"}, "abscissa": "sigma"}, "'planned' works along step, and abscissa is 'sigma'; set it to step"),
        ({**OUTPUT, "predictor": {"name": "mean_velocity"}}, "'mean_velocity' works along sigma, and abscissa is 'step'; set it to sigma"),
        ({"site": {"name": "output", "keep": "residual"}, "predictor": {"name": "planned"}}, "forecasts the model's output, which site 'output'"),
        ({"predictor": {"name": "planned"}}, "forecasts the model's output, which site 'stack' does not keep"),
        ({"trigger": {"name": "rate", "threshold": 0.1}}, "compares the model's input and output, which site 'stack' does not see"),
        ({"trigger": {"name": "verify"}}, "judges checked forecasts, and site 'stack' checks none"),
        ({"site": {"name": "stack", "last_blocks": 1, "verify": True}}, "checks forecasts, which trigger 'interval' does not judge"),
        ({"trigger": {"name": "ranges", "interval": 2, "turn": 500}}, "reuses half of the units, and site 'stack' keeps one"),
        ({"guards": {"max_risk": 0.1}}, "predictor reuse never doubts its forecasts"),
        ({"border": "forget"}, "border is 'forget'; it must be one of reset, keep"),
        ({"border": "keep"}, "border is keep, and trigger '[a-z_]+', as it is set, learns nothing .* set border to reset, or use trigger plan"),
        ({"trigger": {}, "site": {}, "predictor": {}, "parts": [STACK, STACK]}, "sites 'stack' and 'stack' of two parts both keep blocks"),
        # Numbers that are none, and lists that are out of order.
        ({"trigger": {"name": "relative_change", "threshold": float("nan")}}, "threshold is nan; it must be a finite number"),
        ({"trigger": {"name": "relative_change", "threshold": "inf"}}, "threshold is inf"),
        ({"trigger": {"name": "relative_change", "threshold": 0.1, "rescale": [1.0, float("nan")]}}, r"rescale\[1\] is nan"),
        ({"trigger": {"name": "layerwise", "codebook": [[0.1, float("inf")]]}}, r"codebook\[0\]\[1\] is inf"),
        ({"trigger": {"name": "layerwise", "codebook": []}}, r"codebook is \[\]"),
        ({"trigger": {"name": "layerwise", "codebook": [[]]}}, r"codebook is \[\[\]\]"),
        ({"trigger": {"name": "layerwise", "codebook": [[0.2, 2], [0.1, 1]]}}, "with ascending bounds"),
        ({"trigger": {"name": "layerwise", "codebook": [[0.2, 1.5]]}}, "whole intervals"),
        ({"trigger": {"name": "mask", "computed": [0, 4, 2]}}, "in ascending order"),
        ({"trigger": {"name": "mask", "computed": [0, 2, 2]}}, "in ascending order"),
        ({"guards": {"max_risk": float("nan")}}, r"guards\.max_risk is nan"),
        ({"guards": {"first_steps": 2.5}}, "first_steps is 2.5; it must be a whole number"),
        ({"site": {"name": "stack", "last_blocks": 1.5}}, "last_blocks is 1.5; it must be a whole number"),
        ({"trigger": {**GUIDED, "exponent": -2.0}, "branches": "joint"}, "exponent is -2"),
        ({"predictor": {"name": "taylor", "damping": float("nan")}}, "damping is nan"),
    ],
)
def test_bad_recipes_are_refused(recipe: Any, message: str) -> None:
    if isinstance(recipe, dict):
        whole = load_recipe("interval").to_dict()
        recipe = {**whole, **recipe}
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe)


@pytest.mark.parametrize("content", [b"trigger: {name: interval", b"\xff\xfe\x00", b"name: \x80", b"trigger: !red x"])
def test_a_recipe_file_that_is_no_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Recipe '.*recipe\.yaml' is not valid YAML: .*; mend it, or name another recipe\."):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lemica", {}, "computes step 7, counted from 0, and the take has 7 steps"),
        ("meancache", {}, "computes step 7"),
        ("planned", {"trigger": {"computed": [0, 4]}}, "expected_errors are of 8 steps, and the take has 7"),
        (
            "planned",
            {"trigger": {"computed": [0, 4], "expected_errors": [], "max_surprise": 0.0}},
            "damping_by_step is of 8 steps, and the take has 7",
        ),
    ],
)
def test_numbers_for_other_steps_are_refused(tiny_wan: Path, name: str, changes: Any, message: str) -> None:
    """Where a recipe was made for 8 steps, whoever enables it."""
    transformer, recipe = Renderer(read_card(str(tiny_wan))).family.transformer, load_recipe(tiny_recipe(name), changes)
    with pytest.raises(ValueError, match=message):
        enable_cache(transformer, recipe, num_inference_steps=7)
    enable_cache(transformer, recipe, num_inference_steps=8).disable()


def test_a_timestep_a_token_is_no_timestep_to_decide_from(tiny_wan: Path) -> None:
    """Shards of the tokens hold different ones; what they make of the tokens tells as much."""
    transformer = Renderer(read_card(str(tiny_wan))).family.transformer
    inputs = (torch.zeros(1, 4, 1, 4, 4), torch.full((1, 4), 500.0), torch.zeros(1, 2, 128))
    for probe in ("timestep", "modulated"):
        recipe = load_recipe("teacache", {"site": {"probe": probe}}).fitted("Wan2.1-T2V-1.3B", 1536, 30)
        cached = enable_cache(transformer, recipe, num_inference_steps=6)
        with cached.step(0, 500.0), nullcontext() if probe == "modulated" else pytest.raises(ValueError, match="has a timestep a token"):
            transformer(*inputs)
        cached.disable()


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
    inputs = (torch.zeros(1, 4, 1, 4, 4), torch.full((1,), 500.0), torch.zeros(1, 2, 128))
    transformer(*inputs)
    with pytest.raises(ValueError, match="Two calls at timestep 500 in branch 'both'"):
        transformer(*inputs)
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
    assert_same(computed.latents, plain.latents)


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


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan"])
def test_bytes_and_collectives_are_what_was_predicted(model: str, request: pytest.FixtureRequest) -> None:
    """Of every recipe, bytes when it holds most, also in other dtypes; and no sum over the shards where none was announced."""
    renderer = Renderer(read_card(str(request.getfixturevalue(model))))
    card, take = renderer.family.card, tiny_take(num_inference_steps=8, num_frames=33 if model == "tiny_wan" else 13, prompts=ONE_PROMPT)
    cases = [(name, "model") for name in recipe_names()]
    cases += [("fbcache", "bfloat16"), ("dbcache", "float16"), ("taylorseer", "float8"), ("easycache", "float8")]
    refused = set()
    for name, dtype in cases:
        recipe = load_recipe(tiny_recipe(name, card.family), dtype=dtype)
        try:
            check_recipe(recipe, card, take, "")
        except ValueError:
            refused.add(name)
            continue
        held, reduced = [], list[torch.Tensor]()
        for _ in renderer.steps(take, recipe):
            cached = renderer.cached
            assert cached is not None
            held.append(cached.state.num_bytes)
            cached.session = replace(cached.session, shards=Shards(lambda sums, reduced=reduced: reduced.append(sums) or sums))  # type: ignore[misc]
        decisions = sum(entry.step > 0 for entry in cached.trace.entries)
        announced = {"none": {0}, "1 a decision": range(1, decisions + 1)}[describe_collectives(recipe)]
        assert len(reduced) - 1 in announced, "at the end forecast errors take one as well"
        predicted = cache_bytes(recipe, card, take, Degrees(), renderer.options)
        assert predicted == pytest.approx(max(held), rel=0.02), name
    assert refused == (set(REFUSED_BY_HUNYUAN) if model == "tiny_hunyuan" else set())


def test_fewer_bits_change_little(tiny_wan: Path) -> None:
    renderer, take = Renderer(read_card(str(tiny_wan))), tiny_take(num_inference_steps=8)
    exact = renderer.render(take, load_recipe("interval")).latents
    for dtype, bound in (("bfloat16", 1e-2), ("float16", 1e-2), ("float8", 0.1)):
        difference = (renderer.render(take, load_recipe("interval", dtype=dtype)).latents - exact).abs().max().item()
        assert 0 < difference < bound, dtype


def test_output_site_skips_the_model_and_gives_it_back(tiny_wan: Path) -> None:
    transformer = Renderer(read_card(str(tiny_wan))).family.transformer
    calls = []
    transformer.patch_embedding.register_forward_hook(lambda *_: calls.append(1))
    recipe = load_recipe({**load_recipe("interval").to_dict(), "site": {"name": "output"}})
    cached = enable_cache(transformer, recipe, num_inference_steps=5)
    inputs = (torch.randn(1, 4, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 2, 128))
    outputs = []
    with torch.no_grad():
        for step in range(4):
            with cached.step(step, 500.0):
                outputs.append(transformer(*inputs, return_dict=step == 1))
    assert len(calls) == 2
    assert torch.equal(outputs[0][0], outputs[1].sample)
    cached.disable()
    transformer(*inputs)
    assert len(calls) == 3


def test_recipes_are_listed_and_shown() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["recipes"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in recipe_names())
    shown = runner.invoke(app, ["recipes", "fbcache"])
    assert Recipe.from_mapping(yaml.safe_load(shown.output)) == load_recipe("fbcache")
    assert runner.invoke(app, ["recipes", "fbcahce"]).exit_code == 2


def test_traces_are_shown_compared_and_replayed(tiny_wan: Path, tmp_path: Path) -> None:
    renderer = Renderer(read_card(str(tiny_wan)))
    recorded = renderer.render(tiny_take(), _threshold(0.3))
    assert recorded.trace is not None
    paths = [tmp_path / f"{name}.json" for name in ("recorded", "replayed", "other")]
    paths[0].write_text(recorded.trace.to_json())
    # The threshold says something else, the trace decides.
    replayed = renderer.render(tiny_take(), _threshold(0.0), Replay(Trace.load(paths[0])))
    assert torch.equal(replayed.latents, recorded.latents)
    assert replayed.trace is not None
    paths[1].write_text(replayed.trace.to_json())
    other = renderer.render(tiny_take(), _threshold(0.0)).trace
    assert other is not None
    paths[2].write_text(other.to_json())

    runner = CliRunner()
    shown = runner.invoke(app, ["trace", "show", str(paths[0]), "--png", str(tmp_path / "trace.png")])
    assert shown.exit_code == 0
    assert shown.output.startswith("segment 0 cond stack    ##")
    assert (tmp_path / "trace.png").stat().st_size > 0
    for place, message in (("nowhere/trace.png", "There is no folder"), ("trace.txt", "its name must end in .png"), ("", "which is a folder")):
        refused = runner.invoke(app, ["trace", "show", str(paths[0]), "--png", str(tmp_path / place)])
        assert (refused.exit_code, message in refused.output) == (2, True), refused.output
    equal, parted = (runner.invoke(app, ["trace", "diff", str(paths[0]), str(path)]) for path in paths[1:])
    assert (equal.exit_code, equal.output) == (0, "equal: 36 decisions\n")
    assert parted.exit_code == 1
    assert parted.output.startswith("they differ first at step 2, segment")
    assert "reuse" in parted.output
    assert runner.invoke(app, ["trace", "show", str(tmp_path / "none.json")]).exit_code == 2
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match="is no trace that this version can read"):
        Trace.load(tmp_path / "broken.json")


STOCK = ("fbcache", "taylorseer_lite", "adacache", "taylorseer", "easycache", "meancache")  # every site, and who may decide


@pytest.mark.parametrize(("model", "recipe"), [*product(("tiny_wan", "tiny_hunyuan"), STOCK), ("tiny_wan", "fastercache"), ("tiny_wan", "pab")])
def test_stock_pipelines_are_cached_as_our_own_loop_is(model: str, recipe: str, request: pytest.FixtureRequest) -> None:
    """Two takes in a row, the second with one seed more."""
    folder = request.getfixturevalue(model)
    renderer, stock = Renderer(read_card(str(folder))), DiffusionPipeline.from_pretrained(folder)
    chosen = tiny_recipe(recipe, renderer.family.card.family)
    cached = enable_cache(stock, chosen, num_inference_steps=8)
    for seed in (3, 4):
        take = stock_take(seed=seed, num_inference_steps=8)
        ours = renderer.render(take, chosen)
        theirs = stock_latents(stock, take, renderer.family.card.max_sequence_length)
        assert ours.trace is not None and ours.trace.count(REUSE) > 0
        assert_same_decisions(cached.finish(), ours.trace)
        assert_same(ours.latents, theirs)
    cached.disable()
    plain = renderer.render(take, None).latents
    assert_same(stock_latents(stock, take, renderer.family.card.max_sequence_length), plain)


def test_a_joint_decision_is_refused_where_branches_come_one_by_one(tiny_wan: Path) -> None:
    """By a pipeline, which always does that; by a transformer alone as soon as it is seen."""
    stock = DiffusionPipeline.from_pretrained(tiny_wan)
    with pytest.raises(ValueError, match="decides from both branches before either runs"):
        enable_cache(stock, tiny_recipe("ra_cfgcache"), num_inference_steps=8)
    cached = enable_cache(stock.transformer, tiny_recipe("ra_cfgcache"), num_inference_steps=8)
    with pytest.raises(ValueError, match="decides from both branches before either runs"):
        stock_latents(stock, stock_take(num_inference_steps=8), 32)
    cached.disable()


def test_experts_take_turns(tiny_wan: Path) -> None:
    """Wan 2.2's two transformers: the second starts with a computed step, whatever the first one kept."""
    stock = DiffusionPipeline.from_pretrained(tiny_wan)
    stock.register_modules(transformer_2=DiffusionPipeline.from_pretrained(tiny_wan).transformer)
    stock.register_to_config(boundary_ratio=0.85)
    cached = enable_cache(stock, "interval", num_inference_steps=8)
    stock_latents(stock, stock_take(num_inference_steps=8), 32)
    decisions = [entry.decision for entry in cached.finish().entries if entry.branch == "cond"]
    switch = sum(timestep >= 850 for timestep in stock.scheduler.timesteps.tolist())
    assert switch % 2 == 1 and 0 < switch < 8
    assert decisions[switch] == "compute"
    assert decisions[1] == decisions[switch + 2] == "reuse"
    cached.disable()
    assert not isinstance(stock.transformer_2.blocks, CachedStack)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fbcache", "taylorseer", "foresight"])
def test_compiled_blocks_are_cached(tiny_wan: Path, recipe: str) -> None:
    take, chosen = stock_take(num_inference_steps=8), tiny_recipe(recipe)
    plain, compiled = (DiffusionPipeline.from_pretrained(tiny_wan) for _ in range(2))
    compiled.transformer.compile_repeated_blocks(backend="aot_eager")
    films, traces = [], []
    for stock in (plain, compiled):
        cached = enable_cache(stock, chosen, num_inference_steps=8)
        films.append(stock_latents(stock, take, 32))
        traces.append(cached.finish())
    assert_same_decisions(traces[1], traces[0])
    assert_same(films[1], films[0])


@pytest.mark.gpu
def test_features_come_back_from_the_host() -> None:
    storage, features = Storage("model", "host"), [torch.randn(1, 4096, 512, device="cuda") for _ in range(8)]
    kept = [storage.put(feature * 1.0) for feature in features]
    assert all(one.stored.is_pinned() and one.stored.device.type == "cpu" for one in kept)
    assert all(torch.equal(one.get(), feature) for one, feature in zip(kept, features, strict=True))
