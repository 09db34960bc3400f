"""Calibrations: their numbers against brute force and values worked out by hand, their recipes on tiny models from end to end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, islice, pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.cache import Recipe, load_recipe
from longtake.cache.calibration.plan import DAMPINGS, Gaps, PlannedSteps, Weighing, fit_steps, forecast_errors, plan_steps
from longtake.cache.decision import Decision
from longtake.cache.predictors.mean_velocity import MeanVelocity, MeanVelocityConfig
from longtake.cache.predictors.planned import Planned, PlannedConfig
from longtake.cache.recipe.read import recipe_names
from longtake.jobs.cli.app import app
from longtake.jobs.settings.config import load_job
from longtake.jobs.settings.planning import plan_job
from longtake.pipeline.calibration.calibrate import calibration_takes
from longtake.pipeline.calibration.measure import measure_skips, record_steps, record_take
from longtake.pipeline.calibration.methods import CALIBRATIONS
from longtake.pipeline.calibration.methods.ertacache import harmful_steps
from longtake.pipeline.calibration.methods.lemica import plan_minimax
from longtake.pipeline.calibration.methods.magcache import magnitude_ratios
from longtake.pipeline.calibration.methods.meancache import GAMMA, error_weights, plan_mean_velocities
from longtake.pipeline.calibration.methods.ra_cfgcache import fit_gain, guided_changes
from longtake.pipeline.calibration.methods.smoothcache import smooth_steps
from longtake.pipeline.calibration.methods.teacache import rescaling
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.checkpoint.model_hash import model_hash
from longtake.pipeline.loop.denoise import Denoising, Step
from longtake.pipeline.loop.render import Renderer
from longtake.pipeline.recipes.check import check_recipe
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from same import assert_same

pytestmark = pytest.mark.numerical

Floats = NDArray[np.float64]
Past = tuple[int, ...]


def _every_path(num_steps: int, num_computed: int) -> list[Past]:
    return [(0, *middle, num_steps - 1) for middle in combinations(range(1, num_steps - 1), num_computed - 2)]


def _trajectory(seed: int) -> tuple[Floats, Floats]:
    """Velocities [8, 5] and sigmas [9]."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.standard_normal((8, 5)), axis=0), np.sort(rng.random(9))[::-1]


def _plan_cost(velocities: Floats, sigmas: Floats, growth: Floats, computed: Past) -> float:
    """By the formula, gap by gap, each with its best damping; the take's end ends the last one."""
    total = 0.0
    for number, (here, there) in enumerate(pairwise((*computed, len(velocities)))):
        errors = []
        for damping in DAMPINGS:
            error = np.zeros(velocities.shape[1])
            for s in range(here + 1, there):
                forecast = velocities[here]
                if number:
                    before = computed[number - 1]
                    forecast = forecast + damping * (velocities[here] - velocities[before]) * (s - here) / (here - before)
                error += (forecast - velocities[s]) * (sigmas[s + 1] - sigmas[s])
            errors.append(float((error**2).mean()))
        total += growth[there - 1] * min(errors)
    return total


def _plan(gram: Floats, sigmas: Floats, num_computed: int) -> PlannedSteps:
    gaps = Gaps(gram, np.diff(sigmas))
    return fit_steps(gaps, plan_steps(gaps, np.ones(len(gram)), num_computed, Weighing()), lambda here, there: 1.0)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), num_computed=st.integers(3, 6))
def test_planned_steps_are_the_cheapest(seed: int, num_computed: int) -> None:
    velocities, sigmas = _trajectory(seed)
    growth = np.random.default_rng(seed).random(8) + 0.1
    computed = plan_steps(Gaps(velocities @ velocities.T / 5, np.diff(sigmas)), growth, num_computed, Weighing())
    plans = ((0, *others) for others in combinations(range(1, 8), num_computed - 1))
    cheapest = min(_plan_cost(velocities, sigmas, growth, computed) for computed in plans)
    assert len(computed) == num_computed
    assert _plan_cost(velocities, sigmas, growth, computed) == pytest.approx(cheapest, rel=1e-6, abs=1e-12)


def test_too_few_steps_are_no_plan() -> None:
    with pytest.raises(ValueError, match="3 of 50 steps cannot be the computed ones; compute between 5 and 50"):
        plan_steps(Gaps(np.eye(50), np.full(50, -0.02)), np.ones(50), 3, Weighing())


@settings(max_examples=20)
@given(seed=st.integers(0, 999), num_computed=st.integers(3, 6))
def test_expected_errors_are_those_of_the_predictors_own_forecasts(seed: int, num_computed: int) -> None:
    velocities, sigmas = _trajectory(seed)
    grams = np.stack([branch @ branch.T / 5 for branch in (velocities, 2 * velocities)])  # relative errors of both are the same
    plan = _plan(grams[0], sigmas, num_computed)
    predictor, errors = Planned(PlannedConfig(list(plan.damping))), [0.0] * 8
    for step in plan.computed:
        real = torch.from_numpy(velocities[step])
        if predictor.ready:
            errors[step] = float((predictor.predict(step) - real).norm() / real.norm())
        predictor.push(step, real)
    assert forecast_errors(grams, plan) == pytest.approx(errors, rel=1e-4)


@settings(max_examples=20)
@given(seed=st.integers(0, 999), num_computed=st.integers(3, 6))
def test_no_other_bending_makes_better_up_for_a_gap(seed: int, num_computed: int) -> None:
    """With the predictor itself: how far each gap leaves the latents from the uncached take's."""
    velocities, sigmas = _trajectory(seed)
    plan = _plan(velocities @ velocities.T, sigmas, num_computed)

    def missed(bending: list[float]) -> list[float]:
        predictor = Planned(PlannedConfig(list(plan.damping), np.diff(sigmas).tolist(), bending))
        off, gaps = torch.zeros(5, dtype=torch.float64), []
        for step, real in enumerate(torch.from_numpy(velocities)):
            if step in plan.computed:
                used = predictor.amend(step, real)
                predictor.push(step, real)
            else:
                used = predictor.predict(step)
                predictor.settle(step, used)
            off = off + (used - real) * (sigmas[step + 1] - sigmas[step])
            if step in plan.computed:
                gaps.append(float(off.norm()))
                off = torch.zeros_like(off)
        return gaps

    best = missed(list(plan.bending))
    for other in (0.0, 0.5, 1.0, 2.0):
        assert all(ours <= theirs + 1e-5 for ours, theirs in zip(best, missed([other] * 8), strict=True))


@settings(max_examples=20)
@given(seed=st.integers(0, 999), num_computed=st.integers(4, 6))
def test_minimax_sorts_the_worst_gaps_first(seed: int, num_computed: int) -> None:
    """Few different errors, so that ties are broken by the next worst gap."""
    errors = np.triu(np.random.default_rng(seed).integers(0, 5, (8, 8)).astype(float), 2)

    def worst_first(computed: Past) -> list[float]:
        return sorted((errors[edge] for edge in pairwise(computed)), reverse=True)

    reachable = [path for path in _every_path(8, num_computed) if all(there - here <= 4 for here, there in pairwise(path))]
    assert worst_first(plan_minimax(errors, num_computed, max_gap=4)) == min(map(worst_first, reachable))


@settings(max_examples=20)
@given(seed=st.integers(0, 999), num_computed=st.integers(3, 6), states_back=st.integers(2, 3))
def test_mean_velocities_are_planned_with_the_predictors_own_forecasts(seed: int, num_computed: int, states_back: int) -> None:
    """Errors from the Gram matrix are those of the predictor's forecasts along the uncached take; the plan is the cheapest of all."""
    velocities, sigmas = _trajectory(seed)
    latents = np.vstack((np.zeros(5), np.cumsum(velocities * np.diff(sigmas)[:, None], axis=0)))

    def cost(computed: Past) -> float:
        total = 0.0
        for number, (here, there) in enumerate(pairwise(computed)):
            past = computed[number - states_back : number + 1] if number >= states_back else (here,)
            weights = error_weights(past, there, sigmas)
            total += float(np.square(weights @ velocities).mean()) ** (GAMMA / 2)
        return total

    plan = plan_mean_velocities(velocities @ velocities.T / 5, sigmas, num_computed, states_back=states_back)
    assert cost(plan) == pytest.approx(min(map(cost, _every_path(8, num_computed))), rel=1e-6, abs=1e-12)
    predictor = MeanVelocity(MeanVelocityConfig(states_back))
    predictor.span = 8.0
    for number, (here, there) in enumerate(pairwise(plan)):
        error = np.zeros(5)
        for step in range(here, there):
            at = 8 * (1 - sigmas[step])
            predictor.measure(at, torch.from_numpy(latents[step]))
            if step == here:
                predictor.push(at, torch.from_numpy(velocities[step]))
            else:
                error += (predictor.predict(at).numpy() - velocities[step]) * (sigmas[step + 1] - sigmas[step])
        past = plan[number - states_back : number + 1] if number >= states_back else (here,)
        assert np.allclose(error_weights(past, there, sigmas) @ velocities, error, atol=1e-6)


def test_harmful_steps_by_hand() -> None:
    # From 0: 0.1, then 0.3 >= 0.2, computed; from 2: 0.1, 0.2, computed; the last one is computed anyway.
    changes = np.zeros((6, 6))
    changes[0, 1:3], changes[2, 3:5], changes[4, 5] = (0.1, 0.3), (0.1, 0.2), 0.1
    assert harmful_steps(changes, 0.2) == (0, 2, 4, 5)


def test_smooth_steps_by_hand() -> None:
    # From 0, three steps back is too far off at 3 and two is not at 2: skip 1 and 2. From 3, even one is at 4. From 4, the last stays.
    errors = np.zeros((3, 7))
    errors[2, 3], errors[1, 2], errors[:, 4:6] = 0.5, 0.1, 0.9
    errors[0, 5] = 0.2
    assert smooth_steps(errors, 0.2) == (0, 3, 4, 6)


def test_magnitude_ratios_by_hand() -> None:
    # Two takes of three steps and two tokens: 2/1 and 4/4, then 1/2 and 2/4; 1 and 1 throughout.
    norms = np.array([[[1.0, 4.0], [2.0, 4.0], [1.0, 2.0]], [[1.0, 1.0]] * 3])
    assert magnitude_ratios(norms) == [1.0, 1.25, 0.75]


def test_rescaling_finds_a_polynomial() -> None:
    probes = np.linspace(0.01, 0.2, 30, dtype=np.float64)
    coefficients = [300.0, -40.0, 5.0, 2.0, 0.01]
    assert np.allclose(rescaling(probes, np.polyval(coefficients, probes)), coefficients, rtol=1e-6)
    assert np.allclose(rescaling(probes[:2], 3 * probes[:2]), [3.0, 0.0])
    with pytest.raises(ValueError, match="the same at every step"):
        rescaling(np.full(4, 0.1), np.ones(4))


@given(seed=st.integers(0, 99), scale=st.floats(1, 10))
def test_guided_changes_are_lengths_of_guided_drifts(seed: int, scale: float) -> None:
    cond, uncond = np.random.default_rng(seed).standard_normal((2, 6))
    lengths = np.linalg.norm(cond), np.linalg.norm(uncond)
    guided = guided_changes(np.array([lengths[0]]), np.array([lengths[1]]), scale, cond @ uncond / (lengths[0] * lengths[1]))
    assert guided[0] == pytest.approx(np.linalg.norm(uncond + scale * (cond - uncond)), abs=1e-6)


def test_gains_are_fitted() -> None:
    gains = 2 * (1 - np.arange(20) / 20) ** 3 + 0.5
    gains[0] = gains[-1] = np.nan
    assert np.allclose(fit_gain(gains), (2.0, 3.0, 0.5))


def _renderer(folder: Path) -> Renderer:
    return Renderer(read_card(str(folder)))


def test_a_recorder_sees_what_sites_keep_and_changes_nothing(tiny_wan: Path) -> None:
    renderer = _renderer(tiny_wan)
    [take] = calibration_takes(renderer.family.card, ["a red circle"], 6, 4.0)
    plain = [step.velocity for step in renderer.steps(take, None) if isinstance(step, Step)]
    series = record_take(renderer, take, load_recipe("planned"))
    assert set(series) == {(0, "cond", 0, ""), (0, "uncond", 0, "")}
    for cond, uncond, velocity in zip(*series.values(), plain, strict=True):
        assert_same(uncond.feature + 4.0 * (cond.feature - uncond.feature), velocity)
    first = next(record_steps(renderer, take, load_recipe("smoothcache")))
    assert {(part, name) for part, _, _, name in first} == {(0, "attn1"), (1, "attn2"), (2, "ffn")}


@pytest.mark.parametrize("name", ["lemica", "ra_cfgcache"])
def test_skips_are_what_the_recipe_would_do(name: str, tiny_wan: Path) -> None:
    renderer, here, there = _renderer(tiny_wan), 2, 5
    [take] = calibration_takes(renderer.family.card, ["a red circle"], 8, 4.0)
    form = load_recipe(name)
    measured = measure_skips(renderer, take, form, max_gap=3)
    computed = [step for step in range(8) if not here < step < there]
    recipe = load_recipe({**form.to_dict(), "calibrated": False, "trigger": {"name": "mask", "computed": computed}})
    full, cached = (list(islice(renderer.steps(take, used), there + 1)) for used in (None, recipe))
    assert isinstance(full[-1], Step) and isinstance(cached[-1], Step)
    error = (cached[-1].clean - full[-1].clean).abs().mean() / renderer.render(take, None).latents.abs().mean()
    assert measured[here, there] == pytest.approx(float(error), rel=1e-4)
    assert set(zip(*np.nonzero(measured), strict=True)) == {(i, j) for i in range(8) for j in (i + 2, i + 3) if j < 8}


def test_a_fork_leaves_the_take_alone(tiny_wan: Path) -> None:
    renderer = _renderer(tiny_wan)
    [take] = calibration_takes(renderer.family.card, ["a red circle"], 4, 4.0)
    denoising = Denoising(renderer.family, take, None, renderer.mesh)
    list(islice(denoising, 2))
    fork = denoising.fork()
    list(fork)
    assert denoising.index == 2
    list(denoising)
    assert torch.equal(denoising.latents, fork.latents)
    assert torch.equal(denoising.latents, renderer.render(take, None).latents)


_OPTIONS: dict[str, list[str]] = {
    "ertacache": ["--threshold", "0.3"],
    "lemica": ["--computed", "5"],
    "meancache": ["--computed", "5"],
    "planned": ["--computed", "4"],
    "smoothcache": ["--threshold", "0.3"],
}
_THRESHOLDS = {("ra_cfgcache", "tiny_wan"): 0.2, ("teacache", "tiny_wan"): 0.2, ("teacache", "tiny_hunyuan"): 0.5}
_ANY_STEPS = {"magcache", "ra_cfgcache", "teacache"}
_GUIDED = {"lemica", "meancache", "planned", "ra_cfgcache"}


def _calibrate(model: Path, name: str, out: Path, options: Sequence[str] = (), prompts: int = 1) -> Any:
    prompt = [word for text in ("a red circle", "a blue square")[:prompts] for word in ("--prompt", text)]
    return CliRunner().invoke(app, ["calibrate", str(model), "--recipe", name, "--steps", "8", "--out", str(out), *prompt, *options])


def _adjusted(path: Path, name: str, model: str) -> Recipe:
    threshold = _THRESHOLDS.get((name, model))
    return load_recipe(str(path), {"trigger": {"threshold": threshold}} if threshold else None)


def test_every_recipe_that_needs_numbers_has_a_way_to_measure_them() -> None:
    assert {name for name in recipe_names() if load_recipe(name).calibrated} == set(CALIBRATIONS)


# HunyuanVideo embeds its guidance: there is one branch, so that nothing is joint.
_CASES = sorted({*product(("tiny_wan", "tiny_hunyuan"), CALIBRATIONS)} - {("tiny_hunyuan", "ra_cfgcache")})


@pytest.mark.parametrize(("model", "name"), _CASES)
def test_a_calibrated_recipe_serves_its_model_and_steps_alone(name: str, model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder, out = request.getfixturevalue(model), tmp_path / "recipe.yaml"
    done = _calibrate(folder, name, out, _OPTIONS.get(name, []), prompts=2)
    assert done.exit_code == 0, done.output
    recipe, renderer = _adjusted(out, name, model), _renderer(folder)
    [take] = calibration_takes(renderer.family.card, ["a green triangle"], 8, 5.0)
    model_there = model_hash(folder)
    check_recipe(recipe, renderer.family.card, take, model_there)
    with pytest.raises(ValueError, match="calibrated for another model"):
        check_recipe(recipe, renderer.family.card, take, "other")
    weaker, other = replace(take, guidance_scale=4.0), replace(take, scheduler="unipc")
    if name in _GUIDED:
        with pytest.raises(ValueError, match=r"calibrated at guidance_scale 5, .*take .*has 4"):
            check_recipe(recipe, renderer.family.card, weaker, model_there)
    else:
        check_recipe(recipe, renderer.family.card, weaker, model_there)
    if name in _ANY_STEPS:
        check_recipe(recipe, renderer.family.card, other, model_there)
    else:
        with pytest.raises(ValueError, match="calibrated with FlowMatchEulerDiscreteScheduler, the take has UniPCMultistepScheduler"):
            check_recipe(recipe, renderer.family.card, other, model_there)
    longer = replace(take, num_inference_steps=9)
    if name in _ANY_STEPS:
        check_recipe(recipe, renderer.family.card, longer, model_there)
    else:
        with pytest.raises(ValueError, match="calibrated for 8 steps, the take has 9"):
            check_recipe(recipe, renderer.family.card, longer, model_there)
    rendered = renderer.render(take, recipe)
    assert rendered.trace is not None
    assert rendered.trace.count(Decision.REUSE) > 0
    assert rendered.trace.count(Decision.COMPUTE) > 0
    print(name, rendered.trace.summary())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("teacahce", [], "Did you mean 'teacache'"),
        ("fbcache", [], "Recipe 'fbcache' cannot be calibrated"),
        ("teacache", ["--computed", "4"], "--computed is for recipes that choose"),
        ("planned", ["--threshold", "0.1"], "--threshold is for recipes whose steps"),
        ("lemica", ["--computed", "2"], "2 of 8 steps cannot be the computed ones; compute between 3 and 8"),
        ("smoothcache", ["--threshold", "0"], "nothing would be reused"),
        ("smoothcache", ["--threshold", "nan"], "--threshold is nan; give a finite number"),
        ("planned", ["--guidance-scale", "inf"], "guidance_scale is inf; it must be finite"),
        ("planned", ["--flow-shift", "0"], "flow_shift is 0; it must be finite and above 0"),
        ("ra_cfgcache", ["--guidance-scale", "1"], "works on both guidance branches"),
        ("planned", ["--out", "nowhere/recipe.yaml"], "There is no folder 'nowhere'"),
        ("planned", ["--out", "/proc/recipe.yaml"], "Cannot write '/proc/recipe.yaml' (No such file or directory); give another folder by --out"),
        ("planned", ["--out", "."], "--out is '.', which is a folder"),
        ("planned", ["--out", "recipe.json"], "its name must end in .yaml or .yml, recipe.yaml for example"),
        ("teacache", ["--timeline", "rollout"], "--timeline is for planned and schedule, not for teacache"),
        ("planned", ["--timeline", "rolout"], "timeline is 'rolout'; it must be"),
        ("planned", ["--timeline", "{name: rollout"], "--timeline is {name: rollout; write a name"),
        ("planned", ["--timeline", "{name: rollout, anchor: 1}"], "--timeline has no setting 'anchor'"),
        ("planned", ["--timeline", "{name: rollout, overlap: 3}"], "timeline.overlap is 3; it must be a multiple of 4"),
        ("planned", ["--timeline", "{name: windows, shift: bit_reversed}"], "--timeline has shift=bit_reversed, for which no plans are made"),
        ("planned", ["--timeline", "{name: full, overlap: 4}"], "timeline.overlap belongs to timeline windows or rollout, not full"),
    ],
)
def test_calibrations_that_make_no_sense_are_refused(name: str, options: list[str], message: str, tiny_wan: Path, tmp_path: Path) -> None:
    refused = _calibrate(tiny_wan, name, tmp_path / "recipe.yaml", options)
    assert refused.exit_code == 2
    assert message in refused.output
    assert not (tmp_path / "recipe.yaml").exists()


@pytest.mark.parametrize("name", ["lemica", "planned", "teacache"])
def test_takes_that_are_no_numbers_calibrate_nothing(name: str, tiny_wan: Path, tmp_path: Path) -> None:
    failed = _calibrate(tiny_wan, name, tmp_path / "recipe.yaml", ["--guidance-scale", "1e38"])
    assert (failed.exit_code, "failed: the take's latents are not finite" in failed.output) == (1, True), failed.output
    assert not (tmp_path / "recipe.yaml").exists()


def test_a_model_that_cannot_be_loaded_is_not_calibrated(tiny_wan_copy: Path, tmp_path: Path) -> None:
    path = tiny_wan_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: weight for name, weight in load_file(path).items() if name != "proj_out.bias"}, path, {"format": "pt"})
    failed = _calibrate(tiny_wan_copy, "teacache", tmp_path / "recipe.yaml")
    assert (failed.exit_code, "lacks weights (proj_out.bias)" in failed.output) == (2, True), failed.output


def test_calibration_needs_prompts(tiny_wan: Path, tmp_path: Path) -> None:
    assert "give --prompt" in _calibrate(tiny_wan, "planned", tmp_path / "recipe.yaml", prompts=0).output


def test_a_job_finds_what_was_calibrated_beside_its_model(tiny_wan: Path, tmp_path: Path) -> None:
    model, job = shutil.copytree(tiny_wan, tmp_path / "model"), tmp_path / "job.yaml"
    takes = [{"name": "one", "prompt": "a red circle", "num_inference_steps": 8}]
    job.write_text(yaml.safe_dump({"model": str(model), "output": str(tmp_path / "out"), "takes": takes}))

    def recipe_of(*overrides: str) -> Recipe | None:
        return plan_job(load_job(str(job), list(overrides))).recipe

    assert recipe_of() is None
    result = CliRunner().invoke(app, ["calibrate", str(model), "--steps", "8", "--computed", "4", "--prompt", "a red circle"])
    assert result.exit_code == 0, result.output
    made = load_recipe(model / "longtake" / "planned-8-steps.yaml")
    assert recipe_of() == recipe_of("cache=planned") == made
    assert recipe_of("cache.trigger.max_surprise=2") == load_recipe(made, {"trigger": {"max_surprise": 2.0}})
    assert recipe_of("cache=none") is recipe_of("flow_shift=2") is recipe_of("takes.0.num_inference_steps=6") is None
    for overrides, message in (
        (["cache=planned", "flow_shift=2"], "calibrated with flow_shift 3, the take has 2"),
        (["cache=planned", "takes.0.num_inference_steps=6"], r"\(planned-8-steps\), but none for 6 steps"),
        (["cache.trigger.max_surprise=2", "flow_shift=2"], "cache.recipe is none here"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe_of(*overrides)
