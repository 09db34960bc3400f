"""Recipes that people write: what goes together is rendered, what does not is refused with the value and the mend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from itertools import product, starmap
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

import pytest
from longtake.cache import Recipe, Trace, load_recipe
from longtake.cache.decision import Decision
from longtake.cache.predictors import PREDICTORS
from longtake.cache.recipe.calibration import Calibration
from longtake.cache.recipe.config import read_config
from longtake.cache.recipe.guards import Guards
from longtake.cache.recipe.part import Choice, Part
from longtake.cache.recipe.recipe import ABSCISSAE, BRANCHES
from longtake.cache.sites import SITES
from longtake.cache.triggers import TRIGGERS
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.render import Renderer

from takes import stock_take, tiny_responses

pytestmark = pytest.mark.numerical

STEPS = 6
Parts = dict[str, list[dict[str, Any]]]

# Of each registered part the smallest config, and those that change what it needs of the others.
TRIGGER_CONFIGS: Parts = {
    "guided_change": [{"threshold": 0.3, "guidance_scale": 4.0, "correlation": 0.9, "gain": 1.0, "exponent": 1.0, "offset": 0.0}],
    "interval": [{"interval": 3}],
    "layerwise": [
        {"codebook": [[0.4, 3], [0.8, 2]], "per_gap": True, "tail": 0.3},
        {"codebook": [[0.5, 2]], "measure": "mse", "aggregate": "each", "relative": True},
    ],
    "magnitude": [{"ratios": [1.0, 0.98, 0.95]}],
    "mask": [{"computed": [0, 1, 4]}],
    "plan": [{"computed": [0, 1, 4]}, {"computed": [0, 1, 4], "expected_errors": [0.1] * STEPS, "max_surprise": 2.0}],
    "ranges": [{"interval": 2}, {"interval": 0, "low": 0.0, "high": 1000.0, "turn": 900.0}],
    "rate": [{"threshold": 0.5}],
    "relative_change": [{"threshold": 0.2}, {"threshold": 0.3, "accumulate": True, "rescale": [1.0, 0.01]}],
    "verify": [{}],
}
SITE_CONFIGS: Parts = {
    "blocks": [{}, {"num_runs": 1, "probe": "evolution", "keep": "value"}],
    "guidance": [{}],
    "modules": [{}, {"modules": ["cross_attention"], "probe": "timestep"}],
    "output": [{}, {"keep": "residual"}],
    "stack": [{}, {"probe": "latents"}, {"last_blocks": 1, "verify": True}],
}
PREDICTOR_CONFIGS: Parts = {
    **{name: [{}] for name in ("adams_bashforth", "align", "bdf_heun", "chebyshev", "dmd", "hermite", "mean_velocity", "racer", "reuse", "taylor")},
    "planned": [{"damping_by_step": [0.5] * STEPS, "responses": tiny_responses("wan", STEPS), "bending_by_step": [0.5] * STEPS}],
}


def _choices(configs: Parts, registry: dict[str, Any]) -> list[Choice[Any]]:
    assert set(configs) == set(registry)
    return [Choice(name, registry[name][0](**config), registry[name][1]) for name, variants in configs.items() for config in variants]


def _accepted() -> Iterator[tuple[Part, str, str]]:
    """All that goes together, with its abscissa and who decides, in a shuffled order. Every refusal must say what to do instead."""
    parts = [_choices(*pair) for pair in ((TRIGGER_CONFIGS, TRIGGERS), (SITE_CONFIGS, SITES), (PREDICTOR_CONFIGS, PREDICTORS))]
    everything = list(product(starmap(Part, product(*parts)), ABSCISSAE, BRANCHES))
    Random(0).shuffle(everything)
    for part, abscissa, branches in everything:
        try:
            part.check(abscissa, branches)
        except ValueError as error:
            assert any(mend in str(error) for mend in ("; set ", "; use ", "; choose ")), error
        else:
            yield part, abscissa, branches


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "-inf"])
def test_no_setting_takes_a_number_that_is_none(number: Any) -> None:
    """Every float of every config, also in lists."""
    registries = ((TRIGGER_CONFIGS, TRIGGERS), (SITE_CONFIGS, SITES), (PREDICTOR_CONFIGS, PREDICTORS))
    configs = [(registry[name][0], variants[0]) for named, registry in registries for name, variants in named.items()]
    tried = 0
    for config_class, valid in [*configs, (Guards, {}), (Calibration, {})]:
        for setting in fields(config_class):
            broken = {"float": number, "float | None": number, "list[float]": [number], "list[list[float]]": [[number, 2]]}.get(str(setting.type))
            if broken is not None:
                tried += 1
                with pytest.raises(ValueError, match=rf"the part: {setting.name}.* is -?(nan|inf); it must be a finite number"):
                    read_config(config_class, {**valid, setting.name: broken}, "the part")
    assert tried > 40


@pytest.mark.parametrize("broken", [{"trigger": "interval"}, {"trigger": None}, {"fits": [1]}, {"fits": "x"}, {"parts": 3}])
@pytest.mark.parametrize("part", ["trigger", "guards"])
def test_what_is_no_mapping_is_refused_where_a_job_changes_it_too(broken: dict[str, Any], part: str) -> None:
    recipe = {"trigger": {"name": "interval", "interval": 2}, "site": {"name": "stack"}, "predictor": {"name": "reuse"}, **broken}
    with pytest.raises(ValueError, match=r"[Rr]ecipe"):
        load_recipe(recipe, {part: {"interval": 3} if part == "trigger" else {"first_steps": 2}})


def _assert_well_formed(trace: Trace) -> None:
    places = [entry.key for entry in trace.entries]
    assert len(set(places)) == len(places)
    for _, branch, site in {(segment, branch, site) for segment, _, branch, site in places}:
        steps = [entry.step for entry in trace.entries if (entry.branch, entry.site) == (branch, site)]
        assert steps == list(range(STEPS)), (branch, site)
    for entry in trace.entries:
        assert entry.decision in {decision.value for decision in Decision}
        assert all(number is None or (isfinite(number) and number >= 0) for number in (entry.margin, entry.forecast_error))
        assert entry.value is None or isfinite(entry.value)
        assert entry.margin is None or entry.value is not None


def test_whatever_is_accepted_renders_a_film(tiny_wan: Path) -> None:
    """Each trigger and each predictor at each site that takes them, and there with each abscissa and branches: whatever else comes with it."""
    renderer, seen, triggers = Renderer(read_card(str(tiny_wan))), set[tuple[str, str]](), set[str]()
    take = stock_take(num_inference_steps=STEPS, num_frames=1)
    for part, abscissa, branches in _accepted():
        pairs = {(str(part.site), str(other)) for other in (part.trigger, part.predictor, abscissa, branches)}
        if pairs <= seen:
            continue
        seen |= pairs
        recipe = Recipe("any", "", "", (part,), Guards(), abscissa=abscissa, branches=branches)
        rendered = renderer.render(take, recipe)
        assert rendered.latents.isfinite().all(), recipe
        assert rendered.trace is not None, recipe
        _assert_well_formed(rendered.trace)
        triggers.add(part.trigger.name)
    assert triggers == set(TRIGGERS)
