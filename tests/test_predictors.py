"""Predictors against polynomials and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longtake.cache.predictors import Predictor
from longtake.cache.predictors.adams_bashforth import AdamsBashforth, AdamsBashforthConfig
from longtake.cache.predictors.align import Align, AlignConfig
from longtake.cache.predictors.bdf_heun import BdfHeun, BdfHeunConfig
from longtake.cache.predictors.chebyshev import Chebyshev, ChebyshevConfig
from longtake.cache.predictors.dmd import Dmd, DmdConfig
from longtake.cache.predictors.hermite import Hermite, HermiteConfig
from longtake.cache.predictors.mean_velocity import MeanVelocity, MeanVelocityConfig
from longtake.cache.predictors.planned import Planned, PlannedConfig
from longtake.cache.predictors.racer import Racer, RacerConfig
from longtake.cache.predictors.taylor import Taylor, TaylorConfig

pytestmark = pytest.mark.numerical


def _polynomial(coefficients: list[float], at: float) -> torch.Tensor:
    return torch.tensor([sum(c * at**power for power, c in enumerate(coefficients)), at], dtype=torch.float64).view(1, 2, 1)


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
        predictor.receive(predictor.measure(at, _number(probe)).tolist())
        predictor.push(at, _number(feature))
    for probe, expected in ((4.0, 8.0), (9.0, 8.0), (1.5, 6.0)):
        predictor.receive(predictor.measure(3, _number(probe)).tolist())
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
        predictor.receive(predictor.measure(at, waves).tolist())
        predictor.push(at, waves[None, at : at + 1])
    predictor.receive(predictor.measure(8, waves).tolist())
    for at in (8, 10):
        assert torch.allclose(predictor.predict(at)[0, 0], waves[at], atol=1e-6)


def test_racer_believes_a_forecast_as_far_as_two_agree() -> None:
    predictor = Racer(RacerConfig(degree=2, window=3, ridge=0.0, order=1, caution=0.5))
    for at, value in ((0, 0), (1, 1), (2, 4)):
        predictor.push(at, _number(value))
    predictor.receive(predictor.measure(4, _number(0)).tolist())
    # Parabola 16, line 10: r = 6 / 16; kappa = 1 / (1 + 0.5 * 0.375 * 2).
    assert predictor.risk == pytest.approx(0.375)
    assert predictor.predict(4).item() == pytest.approx(4 + 12 / 1.375)


def test_damping_believes_a_share_of_the_change() -> None:
    predictor = Taylor(TaylorConfig(order=1, damping=0.25))
    for at, value in ((0, 0), (2, 4)):
        predictor.push(at, _number(value))
    assert predictor.predict(4).item() == pytest.approx(5.0)


@given(
    strides=st.lists(st.floats(0.01, 1.0).map(lambda stride: -stride), min_size=8, max_size=8),
    computed=st.sets(st.integers(1, 6), min_size=1),
    damping=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    knots=st.lists(st.floats(-2, 2), min_size=8, max_size=8),
)
def test_planned_makes_up_for_its_forecasts(strides: list[float], computed: set[int], damping: list[float], knots: list[float]) -> None:
    """Velocities that run straight from one computed step to the next: after each of these the latents are those of the whole take."""
    steps = sorted({0, 7} | computed)
    velocities = np.interp(range(8), steps, [knots[step] for step in steps])
    predictor = Planned(PlannedConfig(damping_by_step=damping, responses=strides))
    latents = whole = 0.0
    for step, velocity in enumerate(velocities):
        if step in steps:
            used = predictor.amend(step, _number(velocity).double())
            predictor.push(step, _number(velocity).double())
        else:
            used = predictor.predict(step)
            predictor.settle(step, used)
        latents, whole = latents + strides[step] * used.item(), whole + strides[step] * velocity
        if step in steps:
            assert latents == pytest.approx(whole, abs=1e-4)


def test_planned_believes_a_share_of_the_slope_gap_by_gap() -> None:
    predictor = Planned(PlannedConfig(damping_by_step=[1.0, 0.0, 0.25, 1.0]))
    for at, value in ((0, 0), (2, 4)):
        predictor.push(at, _number(value))
    assert predictor.predict(3).item() == pytest.approx(4 + 0.25 * 2)
    predictor.settle(3, predictor.predict(3))
    assert predictor.amend(4, _number(9)).item() == 9  # no responses: nothing is made up for
    with pytest.raises(ValueError, match="responses has 2 entries and damping_by_step 1"):
        PlannedConfig(damping_by_step=[1.0], responses=[-0.5, -0.5])


def test_planned_makes_up_along_a_parabola() -> None:
    """v = s^2, 0, 2 and 5 computed, even strides of -1: of the gap from 2 to 5, as much of the bend as it is told."""
    for bending, missed in ((1.0, 0.0), (0.5, 2.0), (0.0, 4.0)):  # the line is off by (s - 2) (s - 5): -2 at 3 and -2 at 4
        config = PlannedConfig(damping_by_step=[1.0] * 6, responses=[-1.0] * 6, bending_by_step=[0.0, 0.0, bending, 0, 0, 0])
        predictor = Planned(config)
        predictor.push(0, _number(0))
        predictor.push(2, _number(4))
        used = 0.0
        for step in (3, 4):
            forecast = predictor.predict(step)
            predictor.settle(step, forecast)
            used += forecast.item()
        used += predictor.amend(5, _number(25)).item()
        assert used == pytest.approx(9 + 16 + 25 + missed)
