"""Takes for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from longtake.cache import Recipe, load_recipe
from longtake.cache.sampler.linear_map import linear_map
from longtake.pipeline.take import PromptAt, Take, TimelineSettings
from torch import Tensor

WINDOWS = TimelineSettings("windows", 5, 2)

TINY_TAKE = Take(
    name="tiny",
    prompts=(PromptAt(0, "a red circle moves left"), PromptAt(20, "a blue square stands still")),
    negative_prompt="",
    seed=3,
    num_frames=41,
    height=32,
    width=32,
    num_inference_steps=6,
    guidance_scale=4.0,
    flow_shift=None,
    timeline=WINDOWS,
    noise="frame",
)


def stock_latents(stock: Any, take: Take, max_sequence_length: int) -> Tensor:
    """What a stock diffusers pipeline makes of a take of one prompt with `noise: diffusers`."""
    stock.set_progress_bar_config(disable=True)
    latents: Tensor = stock(
        take.prompts[0].text,
        negative_prompt=take.negative_prompt,
        height=take.height,
        width=take.width,
        num_frames=take.num_frames,
        num_inference_steps=take.num_inference_steps,
        guidance_scale=take.guidance_scale,
        max_sequence_length=max_sequence_length,
        generator=torch.Generator().manual_seed(take.seed),
        output_type="latent",
    ).frames
    return latents


def stock_take(num_frames: int = 17, **changes: Any) -> Take:
    """A take that a stock pipeline can render as well: one window, one prompt, its noise."""
    return tiny_take(num_frames=num_frames, prompts=TINY_TAKE.prompts[:1], noise="diffusers", timeline=TimelineSettings("full", 0, 0), **changes)


REFUSED_BY_HUNYUAN = ("fastercache", "pab", "ra_cfgcache", "smoothcache", "t_gate")  # no cross-attention apart, no second branch

_CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "wan": {
        "dbcache": {"trigger": {"threshold": 0.2}},
        "dicache": {"trigger": {"threshold": 0.08}},
        "fbcache": {"trigger": {"threshold": 0.2}},
        "foresight": {"trigger": {"codebook": [[1.0, 2]]}},
        "racer": {"guards": {"max_risk": 0.2}},
        "seacache": {"trigger": {"threshold": 0.3}},
        "teacache": {"trigger": {"threshold": 0.15}},
    },
    "hunyuan_video": {
        "dbcache": {"trigger": {"threshold": 0.4}},
        "dicache": {"trigger": {"threshold": 0.05}},
        "fbcache": {"trigger": {"threshold": 0.4}},
        "foresight": {"trigger": {"codebook": [[2.0, 2]]}},
        "racer": {"guards": {"max_risk": 0.5}},
        "seacache": {"trigger": {"threshold": 0.4}},
        "teacache": {"trigger": {"threshold": 0.05}},
    },
}
_CHANGES_FOR_BOTH: dict[str, dict[str, dict[str, Any]]] = {
    "adacache": {"trigger": {"codebook": [[0.3, 3], [0.4, 2]]}},
    "bwcache": {"trigger": {"codebook": [[0.1, 3]]}},
    "easycache": {"trigger": {"threshold": 0.5}},
    "planned": {
        "trigger": {"expected_errors": [0, 1e-6, 0, 0, 10, 0, 0, 10], "max_surprise": 2.0},
        "predictor": {"damping_by_step": [0.75] * 8},
    },
    "ra_cfgcache": {"trigger": {"threshold": 0.28, "guidance_scale": 4.0}},
    "speca": {"trigger": {"threshold": 1.0, "unchecked_steps": 0}},
}


def tiny_recipe(name: str, family: str = "wan") -> Recipe:
    """A shipped recipe with numbers at which it computes some of 8 steps of a tiny model and reuses others, none of them a close call."""
    recipe = load_recipe(name, {**_CHANGES_FOR_BOTH, **_CHANGES[family]}.get(name))
    if name == "planned":
        recipe = load_recipe(recipe, {"predictor": {"responses": tiny_responses(family, 8)}})
    if not recipe.calibrated:
        return recipe
    values = {**recipe.to_dict(), "calibrated": False}
    for part in values.get("parts", [values]):
        if part["trigger"]["name"] in ("mask", "plan"):
            part["trigger"]["computed"] = [0, 1, 4, 7]
    return load_recipe(values)


def tiny_responses(family: str, num_inference_steps: int) -> list[float]:
    """Of a tiny model's own sampler."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if family == "wan" else 7.0)
    if family == "wan":
        scheduler.set_timesteps(num_inference_steps)
    else:
        scheduler.set_timesteps(sigmas=[1 - step / num_inference_steps for step in range(num_inference_steps)])
    return linear_map(scheduler).responses


def tiny_take(**changes: Any) -> Take:
    return replace(TINY_TAKE, **changes)
