"""Triggers and guards against hand-computed sequences."""

from __future__ import annotations

import pytest
import torch
from longtake.cache.decision import Decision
from longtake.cache.recipe.guards import Guards
from longtake.cache.sums import l1_sums, ratio
from longtake.cache.triggers import Moment, Trigger
from longtake.cache.triggers.guided_change import GuidedChange, GuidedChangeConfig
from longtake.cache.triggers.interval import Interval, IntervalConfig
from longtake.cache.triggers.layerwise import Layerwise, LayerwiseConfig
from longtake.cache.triggers.magnitude import Magnitude, MagnitudeConfig
from longtake.cache.triggers.mask import Mask, MaskConfig
from longtake.cache.triggers.plan import Plan, PlanConfig
from longtake.cache.triggers.ranges import Ranges, RangesConfig
from longtake.cache.triggers.rate import Rate, RateConfig
from longtake.cache.triggers.relative_change import RelativeChange, RelativeChangeConfig
from longtake.cache.triggers.verify import Verify, VerifyConfig

pytestmark = pytest.mark.numerical

COMPUTE, REUSE = Decision.COMPUTE, Decision.REUSE


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


def test_a_plan_halves_the_gap_after_a_surprise() -> None:
    """Forecasts of 10 that are off by 1: as expected at step 2, three times as far as expected at step 4."""
    trigger = Plan(PlanConfig([0, 2, 4, 8], expected_errors=[0, 0, 0.1, 0, 1 / 30, 0, 0, 0, 0.1], max_surprise=1.5))
    decisions, values = [], []
    for step in range(9):
        sums = trigger.signal(_number(0))
        assert sums is not None
        decisions.append(trigger.decide(_moment(step), sums.tolist()))
        values.append(trigger.value)
        if decisions[-1] is COMPUTE:
            trigger.learn(0, _number(10), _number(9) if step else None)
    assert [step for step, decision in enumerate(decisions) if decision is COMPUTE] == [0, 2, 4, 6, 8]
    assert [(step, round(value, 6)) for step, value in enumerate(values) if value is not None] == [(3, 1.0), (5, 3.0)]
    with pytest.raises(ValueError, match="end before step 3"):
        PlanConfig([0, 3], expected_errors=[0.1] * 3, max_surprise=2.0)


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


def _number(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1), float(value))


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


def test_layerwise_counts_a_gap_once_for_all_features_of_a_unit() -> None:
    """Three modules a block, computed at steps 0 and 2: each changes by half, over a gap of two steps."""
    trigger = Layerwise(LayerwiseConfig(codebook=[[0.3, 2]], per_gap=True))
    for step, before in ((0, None), (2, _number(2))):
        assert _run(trigger, step, 0.0) is COMPUTE
        for _ in range(3):
            trigger.learn(0, _number(3), before)
    assert _run(trigger, 3, 0.0) is REUSE
    assert (trigger.value, trigger.threshold) == (pytest.approx(0.25), 0.3)


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
    # Reused with 8 of 10 steps to go: the last 4 are computed, and nothing is judged there.
    assert [(_run(trigger, step, 0.0), trigger.value) for step in range(2, 10)] == [(REUSE, 0.0)] * 4 + [(COMPUTE, None)] * 4


def test_verify_allows_less_and_less_error() -> None:
    trigger = Verify(VerifyConfig(threshold=1.0, decay=0.1, floor=0.2, unchecked_steps=1))
    decisions = []
    for step, draft in enumerate((1.5, 1.5, 1.5, 1.4, 1.25, 1.25, 1.25)):
        decisions.append(_run(trigger, step, 0.0))
        trigger.learn(0, _number(1.0), _number(draft))
    assert (trigger.value, trigger.threshold) == (pytest.approx(0.25), None), "one error after a computed step ends nothing"
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


def test_sums_of_uneven_shards_give_the_ratio_of_the_whole() -> None:
    now, before = torch.randn(1, 7, 3), torch.randn(1, 7, 3)
    whole = ratio(l1_sums(now, before))
    parts = torch.stack([l1_sums(now[:, cut], before[:, cut]) for cut in (slice(0, 2), slice(2, 7))]).sum(0)
    assert ratio(parts) == pytest.approx(whole, rel=1e-6)


def test_guards() -> None:
    guards = Guards(first_steps=2, last_steps=0.05, max_reused_steps=2)
    compelled = [guards.compel(_moment(step), run) for step, run in [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (9, 0)]]
    assert compelled == [True, True, False, False, True, True]
