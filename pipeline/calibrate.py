"""Measuring a model for recipes that need to know it. Runs full takes; what is made of them is worked out in cache.calibration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from ..cache import Recipe
from ..cache.calibration import plan_steps
from .card import ModelCard, model_hash
from .denoise import Step
from .render import Renderer
from .take import Take


def calibration_takes(card: ModelCard, prompts: Iterable[str], num_inference_steps: int, guidance_scale: float) -> list[Take]:
    """One take of the model's own clip length a prompt."""
    settings: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    return [Take.clip(card, f"calibration-{index}", prompt, seed=index, **settings) for index, prompt in enumerate(prompts)]


def calibrate_planned(renderer: Renderer, takes: list[Take], num_computed: int) -> Recipe:
    """The recipe `planned` for takes of so many steps, `num_computed` of them computed."""
    steps = takes[0].num_inference_steps
    gram = np.zeros((steps, steps))
    for take in takes:
        velocities = [step.velocity.flatten().double() for step in renderer.steps(take, None) if isinstance(step, Step)]
        stacked = torch.stack(velocities)
        gram += (stacked @ stacked.T / stacked.shape[1] / len(takes)).cpu().numpy()
    sigmas = renderer.family.scheduler(steps, takes[0].flow_shift).sigmas.double().cpu().numpy()
    plan = plan_steps(gram, sigmas, num_computed)
    values: dict[str, Any] = {
        "name": f"planned-{num_computed}-of-{steps}",
        "category": "predictive",
        "paper": "LeMiCa, arXiv 2511.00090, and MeanCache, arXiv 2601.19961, with the predictor inside; re-derived",
        "trigger": {"name": "mask", "computed": list(plan.computed)},
        "site": {"name": "output"},
        "predictor": {"name": "taylor", "order": 1, "damping_by_step": list(plan.damping)},
        "guards": {"first_steps": 1, "last_steps": 1},
        "calibration": {"model": model_hash(renderer.family.card.path), "num_inference_steps": steps},
    }
    return Recipe.from_mapping(values)
