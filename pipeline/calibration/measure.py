"""Running full takes to learn about a model: its velocities, what a recipe's sites see, what skipped steps do. Knows no method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...cache import Recipe, enable_cache
from ...cache.calibration.path import Floats
from ...cache.calibration.recorder import Key, Recorder, Sight
from ...cache.sums import l1_sums, ratio
from ..loop.denoise import Denoising
from ..loop.render import Renderer
from ..take import Take

Series = dict[Key, list[Sight]]


@dataclass(frozen=True)
class Velocities:
    """guided: [steps, steps], the product of the guided velocities of two steps, its mean over latent values. sigmas: [steps + 1]."""

    guided: Floats
    sigmas: Floats


def measure_velocities(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Velocities:
    """recipe: any that keeps the value of the model's output."""
    steps, scale = takes[0].num_inference_steps, takes[0].guidance_scale
    grams = []
    for take in takes:
        series = record_take(renderer, take, recipe)
        stacked = torch.stack([sight.feature.flatten().double() for sights in series.values() for sight in sights])
        grams.append((stacked @ stacked.T / stacked.shape[1]).cpu().numpy())
    gram = np.mean(grams, axis=0)
    eye = np.eye(steps)
    guide = np.hstack((scale * eye, (1 - scale) * eye)) if len(series) == 2 else eye
    sigmas = renderer.family.scheduler(takes[0]).sigmas.double().cpu().numpy()
    return Velocities(guide @ gram @ guide.T, sigmas)


def record_steps(renderer: Renderer, take: Take, recipe: Recipe) -> Iterator[dict[Key, Sight]]:
    """What the recipe's sites see at each step of an uncached take."""
    recorder = Recorder(recipe, take.num_inference_steps)
    recorder.attach([renderer.family.transformer])
    try:
        for _ in Denoising(renderer.family, take, recorder, renderer.mesh):
            yield recorder.collect()
    finally:
        recorder.disable()


def record_take(renderer: Renderer, take: Take, recipe: Recipe) -> Series:
    """The same for all steps at once, for recipes that keep few features."""
    series: Series = {}
    for sights in record_steps(renderer, take, recipe):
        for key, sight in sights.items():
            series.setdefault(key, []).append(sight)
    return series


def change(before: Sight, now: Sight, what: str) -> float:
    """The relative L1 change of a sight's `probe` or `feature`."""
    return ratio(l1_sums(getattr(now, what), getattr(before, what)))


def measure_skips(renderer: Renderer, take: Take, recipe: Recipe, max_gap: int) -> Floats:
    """[steps, steps], what it does to the film to compute step i and, with the recipe's site and predictor, no other before step j.

    Measured on the clean latents that step j, computed from where the gap has led, points to: mean |x0_skipped - x0_full| by the mean
    size of the film's latents. To render each gap's take to its end would be exacter, and take half a take's steps a gap instead of one;
    later steps mend some of what early gaps do, which this leaves out.
    """
    denoising = Denoising(renderer.family, take, None, renderer.mesh)
    starts, clean = [denoising.fork()], []
    for step in denoising:
        clean.append(step.clean)
        starts.append(denoising.fork())
    size = denoising.latents.abs().mean()
    errors = np.zeros((len(clean), len(clean)))
    for here in range(len(clean) - 2):
        for there, skipped in _skip_ahead(renderer, starts[here], recipe, min(max_gap, len(clean) - 1 - here)):
            errors[here, there] = float((skipped - clean[there]).abs().mean() / size)
    return errors


def _skip_ahead(renderer: Renderer, start: Denoising, recipe: Recipe, max_gap: int) -> Iterator[tuple[int, Tensor]]:
    """Each step within reach of the first, and the clean latents that it points to when all steps between have been skipped."""
    cached = enable_cache(renderer.family.transformer, _computing(recipe, start.index), num_inference_steps=start.take.num_inference_steps)
    reusing, reached = start.fork(cached), []
    try:
        for _ in islice(reusing, max_gap):
            reached.append(reusing.fork())
    finally:
        cached.disable()
    for fork in reached[1:]:
        there = fork.index
        yield there, next(iter(fork)).clean


def _computing(recipe: Recipe, step: int) -> Recipe:
    """The recipe with one step computed, and those that no recipe can skip."""
    values: dict[str, Any] = {**recipe.to_dict(), "calibrated": False, "guards": {}, "trigger": {"name": "mask", "computed": [step]}}
    return Recipe.from_mapping(values)
