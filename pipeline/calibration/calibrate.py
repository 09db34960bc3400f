"""Calibrations: for each recipe that needs to know its model, how to measure that and what to write into the recipe.

Takes are run by measure.py; what is made of the measurements is worked out in cache.calibration.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ...cache import Recipe, load_recipe
from ...cache.calibration import meancache, planned
from ...cache.calibration.ertacache import harmful_steps
from ...cache.calibration.lemica import plan_minimax
from ...cache.calibration.magcache import magnitude_ratios
from ...cache.calibration.path import check_budget
from ...cache.calibration.ra_cfgcache import fit_gain, guided_changes
from ...cache.calibration.recorder import Key, Sight
from ...cache.calibration.smoothcache import LOOK_BACK, smooth_steps
from ...cache.calibration.teacache import rescaling
from ...cache.recipe.calibration import Calibration
from ...cache.recipe.config import suggestion
from ...cache.sums import l1_sums, ratio
from ..checkpoint.card import ModelCard
from ..checkpoint.model_hash import model_hash
from ..loop.render import Renderer
from ..recipes.caching import check_recipe
from ..take import Take
from .measure import measure_growth, measure_skips, measure_velocities, record_steps, record_take, steps_by_velocity

LEMICA_MAX_GAP = 5


@dataclass(frozen=True)
class Setting:
    """What a method is told, where it asks for it. computed: how many steps to compute; threshold: how much error to allow."""

    computed: int = 0
    threshold: float = 0.0


Changes = list[dict[str, dict[str, Any]]]  # of a recipe's parts: settings of its trigger, site and predictor
Measured = Callable[[Setting], Changes]


@dataclass(frozen=True)
class Method:
    """measure: from full takes to what they say of the recipe's parts, for one setting after another. max_gap: where a budget of computed
    steps is planned, the longest way between two of them. free_end: the last step need not be one of them. threshold: where one is
    taken, the usual one. any_steps: the numbers serve takes of any number of steps.
    """

    measure: Callable[[Renderer, list[Take], Recipe], Measured]
    max_gap: int | None = None
    free_end: bool = False
    threshold: float | None = None
    any_steps: bool = False

    def setting(self, num_steps: int, computed: int | None, threshold: float | None) -> Setting:
        """With the usual values for what is None: of a budget, two steps in five. Raises ValueError for what makes no sense."""
        if computed is not None and self.max_gap is None:
            raise ValueError("--computed is for recipes that plan which steps to compute; leave it out.")
        if threshold is not None and self.threshold is None:
            raise ValueError("--threshold is for recipes whose steps are chosen by an error to allow; leave it out.")
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"--threshold is {threshold:g}; give a finite number above 0, as at 0 nothing would be reused.")
        if self.max_gap is not None:
            computed = num_steps * 2 // 5 if computed is None else computed
            check_budget(num_steps, computed, self.max_gap, free_end=self.free_end)
        return Setting(computed or 0, threshold or self.threshold or 0.0)


def calibration_takes(
    card: ModelCard, prompts: Iterable[str], num_inference_steps: int, guidance_scale: float, flow_shift: float | None = None
) -> list[Take]:
    """One take of the model's own clip length a prompt."""
    settings: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    clips = [Take.clip(card, f"calibration-{index}", prompt, seed=index, **settings) for index, prompt in enumerate(prompts)]
    return [replace(clip, flow_shift=flow_shift) for clip in clips]


def check_calibration(
    name: str, card: ModelCard, takes: list[Take], *, computed: int | None = None, threshold: float | None = None
) -> tuple[Method, Recipe, Setting]:
    """How the recipe is measured, its shipped form, and what the method is told: the usual values where nothing is given.

    Raises ValueError, with the mend, for recipes that are not calibrated or do not fit the model, and for numbers that make no sense.
    """
    if name not in CALIBRATIONS:
        raise ValueError(f"Recipe '{name}' cannot be calibrated. {suggestion(name, list(CALIBRATIONS))}")
    if not takes:
        raise ValueError("Calibration renders takes; give --prompt '...', two or three times for more of them.")
    for take in takes:
        take.check(card)
    method = CALIBRATIONS[name]
    setting = method.setting(takes[0].num_inference_steps, computed, threshold)
    shipped = load_recipe(name)
    lacks = "cross_attention" if card.num_joint_layers else None  # there, attention to the text is self-attention
    parts = tuple(part for part in shipped.parts if lacks not in getattr(part.site.config, "modules", []))
    form = replace(shipped, parts=parts, fits=())
    check_recipe(form, card, takes[0], model="")
    return method, form, setting


def calibrate(name: str, renderer: Renderer, takes: list[Take], *, computed: int | None = None, threshold: float | None = None) -> Recipe:
    """The recipe with numbers that were measured on this model. Raises ValueError as `check_calibration` does."""
    return calibrate_each(name, renderer, takes, computed=[computed], threshold=[threshold])[0]


def calibrate_each(
    name: str,
    renderer: Renderer,
    takes: list[Take],
    *,
    computed: Sequence[int | None] = (None,),
    threshold: Sequence[float | None] = (None,),
) -> list[Recipe]:
    """One recipe for each pair of a budget and a threshold, from one measurement."""
    card, num_steps = renderer.family.card, takes[0].num_inference_steps
    checked = [check_calibration(name, card, takes, computed=one, threshold=other) for one in computed for other in threshold]
    method, form, _ = checked[0]
    measured = method.measure(renderer, takes, form)
    stamp = asdict(Calibration(model_hash(card.path), 0 if method.any_steps else num_steps, takes[0].flow_shift))
    recipes = []
    for _, _, setting in checked:
        values = {**form.to_dict(), "calibration": stamp}
        for part, changes in zip(values.get("parts", [values]), measured(setting), strict=True):
            for what, settings in changes.items():
                part[what].update(settings)
        if setting.computed:
            values["name"] = f"{name}-{setting.computed}-of-{num_steps}"
        recipes.append(Recipe.from_mapping(values))
    return recipes


def _planned(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    velocities = measure_velocities(renderer, takes, recipe)
    growth = measure_growth(renderer, takes)
    sigmas = velocities.sigmas.tolist() if steps_by_velocity(renderer, takes[0]) else []

    def numbers(setting: Setting) -> Changes:
        plan = planned.plan_steps(velocities.guided, velocities.sigmas, growth, setting.computed)
        errors = planned.forecast_errors(velocities.branches, plan)
        return [
            {
                "trigger": {"computed": list(plan.computed), "expected_errors": errors},
                "predictor": {"damping_by_step": list(plan.damping), "bending_by_step": list(plan.bending), "sigmas": sigmas},
            }
        ]

    return numbers


def _meancache(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    states_back = recipe.parts[0].predictor.config.states_back
    velocities = measure_velocities(renderer, takes, recipe)

    def numbers(setting: Setting) -> Changes:
        computed = meancache.plan_mean_velocities(velocities.guided, velocities.sigmas, setting.computed, states_back=states_back)
        return [{"trigger": {"computed": list(computed)}}]

    return numbers


def _lemica(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    errors = np.mean([measure_skips(renderer, take, recipe, LEMICA_MAX_GAP) for take in takes], axis=0)
    return lambda setting: [{"trigger": {"computed": list(plan_minimax(errors, setting.computed, max_gap=LEMICA_MAX_GAP))}}]


def _teacache(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    pairs = [pair for take in takes for sights in record_take(renderer, take, recipe).values() for pair in pairwise(sights)]
    probes, features = ([_change(before, now, what) for before, now in pairs] for what in ("probe", "feature"))
    coefficients = rescaling(np.array(probes), np.array(features))
    return lambda _: [{"trigger": {"rescale": coefficients}}]


def _change(before: Sight, now: Sight, what: str) -> float:
    return ratio(l1_sums(getattr(now, what), getattr(before, what)))


def _magcache(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    series = [sights for take in takes for sights in record_take(renderer, take, recipe).values()]
    norms = [[sight.feature[0].double().norm(dim=-1).numpy() for sight in sights] for sights in series]
    ratios = magnitude_ratios(np.array(norms))
    return lambda _: [{"trigger": {"ratios": ratios}}]


def _ertacache(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    changes = []
    for take in takes:
        for sights in record_take(renderer, take, recipe).values():
            added = torch.stack([sight.feature.flatten() for sight in sights])
            changes.append((torch.cdist(added, added, p=1) / added.abs().sum(dim=1)).double().numpy())
    mean = np.mean(changes, axis=0)
    return lambda setting: [{"trigger": {"computed": list(harmful_steps(mean, setting.threshold))}}]


def _smoothcache(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    sums = np.zeros((2, len(recipe.parts), LOOK_BACK, takes[0].num_inference_steps))
    for take in takes:
        past: deque[dict[Key, Sight]] = deque(maxlen=LOOK_BACK)
        for step, sights in enumerate(record_steps(renderer, take, recipe)):
            for key, sight in sights.items():
                for back, before in enumerate(reversed(past)):
                    sums[:, key[0], back, step] += (ratio(l1_sums(before[key].feature, sight.feature)), 1)
            past.append(sights)
    errors = sums[0] / np.maximum(sums[1], 1)
    return lambda setting: [{"trigger": {"computed": list(smooth_steps(kind, setting.threshold))}} for kind in errors]


def _ra_cfgcache(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    """Gains are of single skipped steps: what that does to the film, by the guided change that the trigger would have seen."""
    series = [record_take(renderer, take, recipe) for take in takes]
    branches = [tuple(next(sights for key, sights in one.items() if key[1] == branch) for branch in ("cond", "uncond")) for one in series]
    correlation = float(np.mean([_mean_cosine(cond, uncond) for cond, uncond in branches]))
    scale = takes[0].guidance_scale
    gains = []
    for take, pair in zip(takes, branches, strict=True):
        cond, uncond = (np.array([_change(before, now, "probe") for before, now in pairwise(sights)]) for sights in pair)
        skips = measure_skips(renderer, take, recipe, max_gap=2)
        gains.append(np.diagonal(skips, offset=2) / guided_changes(cond, uncond, scale, correlation)[:-1])
    measured = np.full(takes[0].num_inference_steps, np.nan)
    measured[1:-1] = np.mean(gains, axis=0)
    gain, exponent, offset = fit_gain(measured)
    fitted = {"guidance_scale": scale, "correlation": correlation, "gain": gain, "exponent": exponent, "offset": offset}
    return lambda _: [{"trigger": fitted}]


def _mean_cosine(cond: list[Sight], uncond: list[Sight]) -> float:
    """Of what both branches' features change by, from step to step."""
    a, b = (torch.stack([(now.feature - before.feature).flatten() for before, now in pairwise(sights)]) for sights in (cond, uncond))
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1).mean())


CALIBRATIONS: dict[str, Method] = {
    "ertacache": Method(_ertacache, threshold=0.08),
    "lemica": Method(_lemica, max_gap=LEMICA_MAX_GAP),
    "magcache": Method(_magcache, any_steps=True),
    "meancache": Method(_meancache, max_gap=meancache.MAX_GAP),
    "planned": Method(_planned, max_gap=planned.MAX_GAP, free_end=True),
    "ra_cfgcache": Method(_ra_cfgcache, any_steps=True),
    "smoothcache": Method(_smoothcache, threshold=0.15),
    "teacache": Method(_teacache, any_steps=True),
}
