"""Triggers against hand-computed sequences, recipes and their errors, the cached stack on a real transformer."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.cache import Recipe, Replay, Trace, enable_cache, load_recipe
from longtake.cache.decision import Decision, l1_sums, ratio
from longtake.cache.predictors import Predictor
from longtake.cache.predictors.adams_bashforth import AdamsBashforth, AdamsBashforthConfig
from longtake.cache.predictors.align import Align, AlignConfig
from longtake.cache.predictors.bdf_heun import BdfHeun, BdfHeunConfig
from longtake.cache.predictors.chebyshev import Chebyshev, ChebyshevConfig
from longtake.cache.predictors.dmd import Dmd, DmdConfig
from longtake.cache.predictors.hermite import Hermite, HermiteConfig
from longtake.cache.predictors.mean_velocity import MeanVelocity, MeanVelocityConfig
from longtake.cache.predictors.racer import Racer, RacerConfig
from longtake.cache.predictors.taylor import Taylor, TaylorConfig
from longtake.cache.recipe import Guards, recipe_names
from longtake.cache.stack import CachedStack
from longtake.cache.triggers import Moment, Trigger
from longtake.cache.triggers.guided_change import GuidedChange, GuidedChangeConfig
from longtake.cache.triggers.interval import Interval, IntervalConfig
from longtake.cache.triggers.layerwise import Layerwise, LayerwiseConfig
from longtake.cache.triggers.magnitude import Magnitude, MagnitudeConfig
from longtake.cache.triggers.mask import Mask, MaskConfig
from longtake.cache.triggers.ranges import Ranges, RangesConfig
from longtake.cache.triggers.rate import Rate, RateConfig
from longtake.cache.triggers.relative_change import RelativeChange, RelativeChangeConfig
from longtake.cache.triggers.verify import Verify, VerifyConfig
from longtake.jobs.cli import app
from longtake.parallel import Degrees
from longtake.pipeline.caching import cache_bytes, check_recipe
from longtake.pipeline.card import read_card
from longtake.pipeline.render import Renderer
from typer.testing import CliRunner

from takes import REFUSED_BY_HUNYUAN, stock_latents, stock_take, tiny_recipe, tiny_take

COMPUTE, REUSE = Decision.COMPUTE, Decision.REUSE
ONE_PROMPT = tiny_take().prompts[:1]


def _moment(step: int, timestep: float = 500.0, num_inference_steps: int = 10) -> Moment:
    return Moment(step, timestep, num_inference_steps)


def _decisions(trigger: RelativeChange, values: list[float]) -> list[Decision]:
    decisions = []
    for step, value in enumerate(values):
        signal = trigger.signal(torch.full((1, 2, 2), value))
        decision = trigger.decide(_moment(step), signal.tolist())
        trigger.settle(decision)
        decisions.append(decision)
    return decisions


def test_interval_computes_every_nth_step() -> None:
    trigger = Interval(IntervalConfig(3))
    assert [trigger.decide(_moment(step), []) for step in range(7)] == [COMPUTE, REUSE, REUSE, COMPUTE, REUSE, REUSE, COMPUTE]


def test_mask_computes_the_listed_steps() -> None:
    trigger = Mask(MaskConfig([0, 3, 4]))
    assert [trigger.decide(_moment(step), []) for step in range(6)] == [COMPUTE, REUSE, REUSE, COMPUTE, COMPUTE, REUSE]


def test_ranges_reuse_between_two_timesteps() -> None:
    trigger = Ranges(RangesConfig(interval=2, low=100, high=850))
    timesteps = [1000.0, 900.0, 850.0, 800.0, 500.0, 400.0, 100.0, 50.0]
    decisions = [trigger.decide(_moment(step, timestep), []) for step, timestep in enumerate(timesteps)]
    assert decisions == [COMPUTE, COMPUTE, COMPUTE, REUSE, COMPUTE, REUSE, COMPUTE, COMPUTE]


def test_magnitude_adds_up_calibrated_drift() -> None:
    # Two steps of ten are retained. Each ratio is 0.95: |1 - 0.95| = 0.05, + |1 - 0.9025| = 0.1475 >= 0.12, computed; and again.
    trigger = Magnitude(MagnitudeConfig([0.95] * 5, threshold=0.12, max_reused_steps=4, retention=0.2))
    decisions = []
    for step in range(8):
        decisions.append(trigger.decide(_moment(step), []))
        trigger.settle(decisions[-1])
    assert decisions == [COMPUTE, COMPUTE, REUSE, COMPUTE, REUSE, COMPUTE, REUSE, COMPUTE]
    trigger = Magnitude(MagnitudeConfig([1.0], max_reused_steps=2, retention=0.0))
    assert [trigger.decide(_moment(step), []) for step in range(3)] == [REUSE, REUSE, COMPUTE]


def _polynomial(coefficients: list[float], at: float) -> torch.Tensor:
    return torch.tensor([sum(c * at**power for power, c in enumerate(coefficients)), at], dtype=torch.float64).view(1, 2, 1)


@settings(deadline=None)
@given(
    coefficients=st.lists(st.floats(-2, 2), min_size=1, max_size=4),
    gaps=st.lists(st.integers(1, 4), min_size=5, max_size=5),
    ahead=st.integers(1, 3),
)
def test_predictors_follow_polynomials_of_their_order_at_unequal_gaps(coefficients: list[float], gaps: list[int], ahead: int) -> None:
    order = len(coefficients) - 1
    predictors: list[Predictor] = [
        Taylor(TaylorConfig(order)),
        AdamsBashforth(AdamsBashforthConfig(order + 1)),
        Chebyshev(ChebyshevConfig(degree=order, window=5, ridge=0.0)),
    ]
    places = [sum(gaps[: i + 1]) / 4 for i in range(5)]
    for predictor in predictors:
        for place in places:
            predictor.push(place, _polynomial(coefficients, place))
        at = places[-1] + ahead / 4
        assert torch.allclose(predictor.predict(at)[0, 0], _polynomial(coefficients, at)[0, 0], rtol=1e-4, atol=1e-3), type(predictor).__name__


def _number(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1), float(value))


def test_hermite_by_hand() -> None:
    # Values 1, 5, 4 at 0, 2, 3: divided differences -1 and -1. Two ahead with sigma 0.5: H_1(1) = 2, H_2(1) = 2.
    predictor = Hermite(HermiteConfig(order=2, sigma=0.5))
    for at, value in ((0, 1), (2, 5), (3, 4)):
        predictor.push(at, _number(value))
    assert predictor.predict(5.0).item() == pytest.approx(4 + 0.5 * 2 * -1 + 0.25 * 2 * -1)


def test_bdf_heun_by_hand() -> None:
    predictor = BdfHeun(BdfHeunConfig())
    predictor.push(0, _number(1))
    assert predictor.predict(1).item() == 1
    predictor.push(2, _number(5))
    # Both slopes are 2: 5 + 1/2 (2 + 2), then 5 + 2/2 (2 + 2).
    for at, value in ((3, 7.0), (4, 9.0)):
        feature = predictor.predict(at)
        predictor.settle(at, feature)
        assert feature.item() == pytest.approx(value)
    # Computed 8 at 5: slopes (8 - 5) / 3 and (8 - 9) / 1; 8 + 2/2 (1 - 1).
    predictor.push(5, _number(8))
    assert predictor.predict(7).item() == pytest.approx(8.0)


def test_adams_bashforth_looks_at_its_own_predictions() -> None:
    predictor = AdamsBashforth(AdamsBashforthConfig(2))
    for at in (0, 1):
        predictor.push(at, _number(at))
    predictor.settle(3, predictor.predict(3))
    predictor.push(4, _number(8))
    assert predictor.predict(5).item() == pytest.approx(13.0)  # on from 3 at 3 and 8 at 4


def test_align_goes_on_as_far_as_the_probe_has() -> None:
    # Probes 1, 3 at the computed steps, now 4: gamma = |4 - 1| / |3 - 1| = 1.5, and 2 + 1.5 (6 - 2); clipped, and not beyond.
    predictor = Align(AlignConfig())
    for at, probe, feature in ((0, 1, 2), (2, 3, 6)):
        predictor.take(predictor.measure(at, _number(probe)).tolist())
        predictor.push(at, _number(feature))
    for probe, expected in ((4.0, 8.0), (9.0, 8.0), (1.5, 6.0)):
        predictor.take(predictor.measure(3, _number(probe)).tolist())
        assert predictor.predict(3).item() == pytest.approx(expected)


def test_mean_velocity_by_hand() -> None:
    # A span of 8: sigma falls by 1 / 8 a step. Computed at 0, 2 and 4: the velocities 1 and 2 move the latents for two steps each. From 0 to
    # 4, JVP is (-6/8 - 4 * -1/8) / 16.
    predictor = MeanVelocity(MeanVelocityConfig(states_back=2))
    predictor.span = 8.0
    for at, latents, velocity in ((0, 0.0, 1.0), (1, -1 / 8, None), (2, -2 / 8, 2.0), (3, -4 / 8, None), (4, -6 / 8, 3.0)):
        predictor.measure(at, _number(latents))
        if velocity is not None:
            predictor.push(at, _number(velocity))
        else:  # nothing is known of a change yet
            assert predictor.predict(at).item() == pytest.approx((at + 1) / 2)
            predictor.settle(at, predictor.predict(at))
    predictor.measure(6, _number(-12 / 8))
    assert predictor.predict(6).item() == pytest.approx(3 + 8 * 2 * 2 * (2 / 8) / 16)


def test_dmd_follows_oscillations_that_polynomials_miss() -> None:
    predictor, steps = Dmd(DmdConfig()), torch.arange(12, dtype=torch.float64)
    waves = torch.stack((torch.cos(0.7 * steps) * 0.95**steps, torch.sin(0.7 * steps) * 0.95**steps, 0.9**steps), dim=-1)
    for at in range(8):
        predictor.take(predictor.measure(at, waves).tolist())
        predictor.push(at, waves[None, at : at + 1])
    predictor.take(predictor.measure(8, waves).tolist())
    for at in (8, 10):
        assert torch.allclose(predictor.predict(at)[0, 0], waves[at], atol=1e-6)


def test_racer_believes_a_forecast_as_far_as_two_agree() -> None:
    predictor = Racer(RacerConfig(degree=2, window=3, ridge=0.0, order=1, caution=0.5))
    for at, value in ((0, 0), (1, 1), (2, 4)):
        predictor.push(at, _number(value))
    predictor.take(predictor.measure(4, _number(0)).tolist())
    # Parabola 16, line 10: r = 6 / 16; kappa = 1 / (1 + 0.5 * 0.375 * 2).
    assert predictor.risk == pytest.approx(0.375)
    assert predictor.predict(4).item() == pytest.approx(4 + 12 / 1.375)


def test_damping_believes_a_share_of_the_change() -> None:
    predictor = Taylor(TaylorConfig(order=1, damping=0.25))
    for at, value in ((0, 0), (2, 4)):
        predictor.push(at, _number(value))
    assert predictor.predict(4).item() == pytest.approx(5.0)


def test_relative_change_compares_with_the_last_computed_step() -> None:
    # Against 1.0: 1.05 -> 0.05, 1.09 -> 0.09, 1.11 -> 0.11, computed; against 1.11: 1.2 -> 0.081.
    decisions = _decisions(RelativeChange(RelativeChangeConfig(0.1)), [1.0, 1.05, 1.09, 1.11, 1.2])
    assert decisions == [COMPUTE, REUSE, REUSE, COMPUTE, REUSE]


def test_relative_change_accumulates_rescaled_changes() -> None:
    # Steps change by 0.1, rescaled 2x - 0.05 = 0.15 each: 0.15, 0.3 >= 0.25 computed, 0.15.
    config = RelativeChangeConfig(0.25, accumulate=True, rescale=[2.0, -0.05])
    assert _decisions(RelativeChange(config), [1.0, 1.1, 1.21, 1.331]) == [COMPUTE, REUSE, COMPUTE, REUSE]


def _run(trigger: Trigger, step: int, probe: float, num_inference_steps: int = 10) -> Decision:
    signal = trigger.signal(_number(probe))
    assert signal is not None
    decision = trigger.decide(_moment(step, num_inference_steps=num_inference_steps), signal.tolist())
    trigger.settle(decision)
    return decision


def test_rate_expects_changes_of_the_output_from_the_latents() -> None:
    trigger = Rate(RateConfig(threshold=0.2))
    assert _run(trigger, 0, 10.0) is COMPUTE
    trigger.learn(0, _number(4), None)
    assert _run(trigger, 1, 9.0) is COMPUTE  # no rate yet
    trigger.learn(0, _number(5), None)  # k = |5 - 4| / |9 - 10| = 1
    assert _run(trigger, 2, 8.5) is REUSE  # E = 1 * 0.5 / 5
    assert trigger.value == pytest.approx(0.1)
    assert _run(trigger, 3, 8.0) is COMPUTE  # 0.2 is not below 0.2
    trigger.learn(0, _number(7), None)  # k = |7 - 5| / |8 - 9| = 2
    assert _run(trigger, 4, 7.5) is REUSE
    assert trigger.value == pytest.approx(2 * 0.5 / 7)


def test_layerwise_looks_each_units_change_up_in_the_codebook() -> None:
    trigger = Layerwise(LayerwiseConfig(codebook=[[0.1, 3], [0.3, 2]], aggregate="each", per_gap=True))
    trigger.num_units = 2
    for step, now, before in ((0, (10.0, 10.0), None), (1, (10.5, 14.0), (10.0, 10.0))):
        assert _run(trigger, step, 0.0) is COMPUTE
        for unit in range(2):
            trigger.learn(unit, _number(now[unit]), _number(before[unit]) if before else None)
    # Changes 0.05 and 0.4 in one step: due after 3 and at once.
    assert _run(trigger, 2, 0.0) is Decision.PARTIAL
    assert trigger.reused_units() == {0}
    assert (trigger.value, trigger.threshold) == (pytest.approx(0.05), 0.1)
    trigger.learn(1, _number(16.8), _number(14.0))  # 0.2: due after 2
    assert _run(trigger, 3, 0.0) is REUSE
    assert _run(trigger, 4, 0.0) is COMPUTE


def test_layerwise_takes_the_warm_up_for_a_measure() -> None:
    trigger = Layerwise(LayerwiseConfig(codebook=[[0.5, 2]], measure="mse", aggregate="each", relative=True, warmup=0.4))
    for step, now, before in ((0, 0.0, None), (1, 1.0, 0.0), (2, 3.0, 1.0), (3, 5.0, 3.0)):
        assert _run(trigger, step, 0.0) is COMPUTE
        trigger.learn(0, _number(now), None if before is None else _number(before))
    # Changes 1, 4, 4: lambda = 1 / 100 + 4 / 10 + 4, of which the last is more than half.
    assert _run(trigger, 4, 0.0) is COMPUTE
    assert trigger.value == pytest.approx(4 / 4.41)
    trigger.learn(0, _number(6.0), _number(5.0))
    assert _run(trigger, 5, 0.0) is REUSE
    assert trigger.value == pytest.approx(1 / 4.41)


def test_layerwise_computes_the_tail() -> None:
    trigger = Layerwise(LayerwiseConfig(codebook=[[0.5, 9]], tail=0.5))
    for step in range(2):
        assert _run(trigger, step, 0.0) is COMPUTE
        trigger.learn(0, _number(1.0), _number(1.0) if step else None)
    # Reused with 8 of 10 steps to go: the last 4 are computed.
    assert [_run(trigger, step, 0.0) for step in range(2, 10)] == [REUSE] * 4 + [COMPUTE] * 4


def test_verify_allows_less_and_less_error() -> None:
    trigger = Verify(VerifyConfig(threshold=1.0, decay=0.1, floor=0.2, unchecked_steps=1))
    decisions = []
    for step, draft in enumerate((1.5, 1.5, 1.5, 1.4, 1.25, 1.25, 1.25)):
        decisions.append(_run(trigger, step, 0.0))
        trigger.learn(0, _number(1.0), _number(draft))
    # Errors lag a step: 0.5, 0.5, 0.5, 0.4, 0.25, 0.25 against 0.79, 0.63, 0.50, 0.40, 0.32, 0.25.
    assert decisions == [REUSE, REUSE, REUSE, REUSE, COMPUTE, REUSE, REUSE]


def test_guided_change_weighs_the_branches_by_the_guidance() -> None:
    config = GuidedChangeConfig(threshold=0.5, guidance_scale=3.0, correlation=0.5, gain=1.0, exponent=1.0, offset=0.0)
    trigger = GuidedChange(config)
    for step, (cond, uncond) in enumerate(((1.0, 1.0), (1.1, 1.2), (1.1, 1.2))):
        signal = trigger.signal(torch.tensor([cond, uncond]).view(2, 1, 1))
        decision = trigger.decide(_moment(step), signal.tolist())
        trigger.settle(decision)
        assert decision is (COMPUTE if step == 0 else REUSE)
    # r^2 = 4 * 0.04 + 9 * 0.01 - 2 * 3 * 2 * 0.5 * 0.2 * 0.1, times a gain of 0.9; then nothing changed.
    assert trigger.value == pytest.approx(0.9 * 0.13**0.5)


def test_ranges_keep_one_end_of_the_model_above_a_turn() -> None:
    trigger = Ranges(RangesConfig(interval=2, low=0, high=1000, turn=500))
    trigger.num_units = 2
    assert trigger.decide(_moment(1, 800.0), []) is Decision.PARTIAL
    assert trigger.reused_units() == {1}
    assert trigger.decide(_moment(3, 400.0), []) is Decision.PARTIAL
    assert trigger.reused_units() == {0}


def test_doubt_brings_a_computed_step_forward(tiny_wan: Path) -> None:
    """A step in doubt is computed, and a later one of the schedule is not."""
    renderer = Renderer(read_card(str(tiny_wan)))
    take = tiny_take(num_inference_steps=12, num_frames=13, prompts=ONE_PROMPT)
    scheduled, in_doubt = [0, 1, 2, 3, 6, 9, 11], [0, 1, 2, 3, 5, 7, 10, 11]
    for max_risk, expected in ((0.0, scheduled), (0.1, in_doubt)):
        trace = renderer.render(take, load_recipe("racer", {"guards": {"max_risk": max_risk}})).trace
        assert trace is not None
        assert [entry.step for entry in trace.entries if entry.branch == "cond" and entry.decision == "compute"] == expected


def test_sums_of_uneven_shards_give_the_ratio_of_the_whole() -> None:
    now, before = torch.randn(1, 7, 3), torch.randn(1, 7, 3)
    whole = ratio(l1_sums(now, before))
    parts = torch.stack([l1_sums(now[:, cut], before[:, cut]) for cut in (slice(0, 2), slice(2, 7))]).sum(0)
    assert ratio(parts) == pytest.approx(whole, rel=1e-6)


def test_guards() -> None:
    guards = Guards(first_steps=2, last_steps=0.05, max_reused_steps=2)
    compelled = [guards.compel(_moment(step), run) for step, run in [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (9, 0)]]
    assert compelled == [True, True, False, False, True, True]


def test_every_shipped_recipe_loads_and_spells_out_its_defaults() -> None:
    assert {"fbcache", "interval"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name and recipe.paper and recipe.category
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
        ({"abscissa": "time"}, "abscissa is 'time'; it must be one of step, sigma"),
        ({"predictor": {"name": "taylor", "order": -1}}, "order is -1"),
        ({"predictor": {"name": "chebyshev", "degree": 5}}, "the window must be larger than the degree"),
        ({"trigger": {"name": "magnitude"}}, "ratios"),
        ({"trigger": {"name": "ranges", "interval": 2, "low": 900}}, "low is 900 and high 850"),
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


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan"])
def test_bytes_are_what_was_predicted(model: str, request: pytest.FixtureRequest) -> None:
    """Of every recipe, when it holds most; also in other dtypes."""
    renderer = Renderer(read_card(str(request.getfixturevalue(model))))
    card, take = renderer.family.card, tiny_take(num_inference_steps=8, num_frames=33 if model == "tiny_wan" else 13, prompts=ONE_PROMPT)
    cases = [(name, "model") for name in recipe_names()] + [("fbcache", "bfloat16"), ("taylorseer", "float8")]
    refused = set()
    for name, dtype in cases:
        recipe = load_recipe(tiny_recipe(name, card.family), dtype=dtype)
        try:
            check_recipe(recipe, card, take, "")
        except ValueError:
            refused.add(name)
            continue
        held = []
        for _ in renderer.steps(take, recipe):
            assert renderer.cached is not None
            held.append(renderer.cached.state.num_bytes)
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
    equal, parted = (runner.invoke(app, ["trace", "diff", str(paths[0]), str(path)]) for path in paths[1:])
    assert (equal.exit_code, equal.output) == (0, "equal: 36 decisions\n")
    assert parted.exit_code == 1
    assert parted.output.startswith("they part at step 2, segment")
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
        assert cached.finish().choices == ours.trace.choices
        assert (ours.latents - theirs).abs().max() <= 1e-4
    with pytest.raises(ValueError, match="This is step 9 of a take"):
        stock("a circle", height=32, width=32, num_frames=5, num_inference_steps=9, max_sequence_length=700, output_type="latent")
    cached.disable()
    plain = renderer.render(take, None).latents
    assert (stock_latents(stock, take, renderer.family.card.max_sequence_length) - plain).abs().max() <= 1e-4


def test_a_joint_decision_is_refused_where_branches_come_one_by_one(tiny_wan: Path) -> None:
    stock = DiffusionPipeline.from_pretrained(tiny_wan)
    cached = enable_cache(stock, tiny_recipe("ra_cfgcache"), num_inference_steps=8)
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
    films, choices = [], []
    for stock in (plain, compiled):
        cached = enable_cache(stock, chosen, num_inference_steps=8)
        films.append(stock_latents(stock, take, 32))
        choices.append(cached.finish().choices)
    assert choices[0] == choices[1]
    assert (films[0] - films[1]).abs().max() <= 1e-4
