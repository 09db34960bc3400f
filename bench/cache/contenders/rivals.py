"""The caches of diffusers 0.42.1 and cache-dit 1.5.3, each as its users would put it on a stock Wan pipeline.

What is not as it comes out of the box is to their good: TaylorSeer keeps its factors in fp32 (bf16 by default); its full mode is told
Wan's modules, as its own pattern matches none; DBCache warms up over 3 steps of 50 (8 by default), so that its films reach the compared
speeds; SeaCache and MagCache may reuse more steps in a row; PAB and FasterCache get both guidance branches in one batch, and ranges of
timesteps that fit Wan's shifted schedule.
"""

from __future__ import annotations

import os
import re
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from copy import deepcopy
from functools import partial
from io import StringIO
from typing import Any

import numpy as np
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.utils import logging
from torch import Tensor

from .contender import INTERVALS, Contender, Setting, Tuning, geometric, longer

os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # read at import; every cache put on or taken off is reported otherwise
import cache_dit

logging.set_verbosity_error()  # FasterCache warns before every film that it is experimental

DIFFUSERS, CACHE_DIT = "diffusers", "cache-dit"
WAN_MODULES = [r"blocks\.\d+\.(attn1|attn2|ffn)"]

LEFT_OUT = {
    "diffusers PAB and FasterCache as a stock Wan pipeline calls them": "with the branches in separate calls, PAB hands one branch's attention "
    "to the other and FasterCache stops with an IndexError; both are measured with the branches in one batch, which they are made for",
    "diffusers TaylorSeer, full mode with its default patterns": "they match no module of Wan (1.00x); measured with the modules named",
}

ConfigOf = Callable[[Any], Any]  # from the pipeline, as some read its current timestep


def contenders(tuning: Tuning) -> list[Contender]:
    return [*_diffusers(tuning), *_cache_dit(tuning)]


def _diffusers(tuning: Tuning) -> Iterator[Contender]:
    steps, count = tuning.num_inference_steps, tuning.num_settings
    ratios = mag_ratios(tuning)
    thresholds = {name: geometric(low * longer(steps), high * longer(steps), count) for name, (low, high) in _THRESHOLDS.items()}
    sweeps: dict[str, list[tuple[str, ConfigOf]]] = {
        "FirstBlockCache": [(f"threshold={value:g}", first_block(value)) for value in thresholds["FirstBlockCache"]],
        "MagCache": [(f"threshold={value:g}", mag(value, ratios)) for value in thresholds["MagCache"]],
        "TaylorSeer": [(f"interval={value}", taylorseer(value, cache_identifiers=WAN_MODULES)) for value in INTERVALS[:count]],
        "TaylorSeer lite": [(f"interval={value}", taylorseer(value, use_lite_mode=True)) for value in INTERVALS[:count]],
        "SeaCache": [(f"threshold={value:g}", _sea(value)) for value in thresholds["SeaCache"]],
        "PAB": [(f"ranges={value}, {2 * value}", _pab(value)) for value in INTERVALS[:count]],
        "FasterCache": [(f"uncond range={value}", _faster(value)) for value in INTERVALS[:count]],
    }
    for method, configs in sweeps.items():
        negative = tuning.studio.prompt("")["negative_prompt_embeds"] if method in ("PAB", "FasterCache") else None
        yield Contender(DIFFUSERS, method, tuple(diffusers_setting(label, config, negative) for label, config in configs))


def _cache_dit(tuning: Tuning) -> Iterator[Contender]:
    steps, count = tuning.num_inference_steps, tuning.num_settings
    calibrators = {
        "DBCache": None,
        "DBCache with TaylorSeer": cache_dit.TaylorSeerCalibratorConfig(),
        "DBCache with FoCa": cache_dit.FoCaCalibratorConfig(),
        "DBCache with DMD": cache_dit.DMDCalibratorConfig(),
    }
    low, high = _DBCACHE_THRESHOLDS
    for method, calibrator in calibrators.items():
        settings = [
            dbcache_setting(f"threshold={value:g}", steps, calibrator, residual_diff_threshold=value, max_warmup_steps=max(1, round(3 * steps / 50)))
            for value in geometric(low * longer(steps), high * longer(steps), count)
        ]
        yield Contender(CACHE_DIT, method, tuple(settings))


# At 50 steps, see `longer`.
_THRESHOLDS = {"FirstBlockCache": (0.03, 0.18), "MagCache": (0.03, 1.0), "SeaCache": (0.15, 1.2)}
_DBCACHE_THRESHOLDS = (0.03, 0.2)


def first_block(threshold: float) -> ConfigOf:
    return lambda pipe: FirstBlockCacheConfig(threshold=threshold)


def mag(threshold: float, ratios: list[float], max_skip_steps: int = 8) -> ConfigOf:
    return lambda pipe: MagCacheConfig(
        threshold=threshold, max_skip_steps=max_skip_steps, num_inference_steps=len(ratios), mag_ratios=torch.tensor(ratios)
    )


def taylorseer(interval: int, **changes: Any) -> ConfigOf:
    return lambda pipe: TaylorSeerCacheConfig(cache_interval=interval, max_order=1, taylor_factors_dtype=torch.float32, **changes)


def _sea(threshold: float) -> ConfigOf:
    return lambda pipe: SeaCacheConfig(threshold=threshold, max_consecutive_cached=6)


def _pab(block_range: int) -> ConfigOf:
    return lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=block_range,
        cross_attention_block_skip_range=2 * block_range,
        spatial_attention_timestep_skip_range=(100, 950),
        cross_attention_timestep_skip_range=(100, 950),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def _faster(uncond_range: int) -> ConfigOf:
    return lambda pipe: FasterCacheConfig(
        unconditional_batch_skip_range=uncond_range,
        unconditional_batch_timestep_skip_range=(-1, 900),
        spatial_attention_timestep_skip_range=(-1, 900),
        attention_weight_callback=lambda module: 0.3,  # as its documentation has it
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def diffusers_setting(label: str, config_of: ConfigOf, negative: Tensor | None = None) -> Setting:
    """negative: the negative prompt's embeddings, for caches that need both guidance branches in one batch."""
    return Setting(label, partial(_put_diffusers, config_of, negative))


@contextmanager
def _put_diffusers(config_of: ConfigOf, negative: Tensor | None, pipe: Any) -> Iterator[None]:
    pipe.transformer.enable_cache(config_of(pipe))
    try:
        with nullcontext() if negative is None else _branches_together(pipe.transformer, negative):
            yield
    finally:
        pipe.transformer.disable_cache()


@contextmanager
def _branches_together(transformer: Any, negative: Tensor) -> Iterator[None]:
    """Compute both branches, uncond first, when the pipeline asks for cond, and hand out the other half when it asks for uncond."""
    hooked = transformer.forward
    held: list[Tensor] = []

    def forward(hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor]:
        if held:
            return (held.pop(),)
        text = torch.cat((negative, encoder_hidden_states))
        output = hooked(hidden_states=hidden_states.repeat(2, 1, 1, 1, 1), timestep=timestep.repeat(2), encoder_hidden_states=text, return_dict=False)
        uncond, cond = output[0].chunk(2)
        held.append(uncond)
        return (cond,)

    transformer.forward = forward
    try:
        yield
    finally:
        transformer.forward = hooked


def mag_ratios(tuning: Tuning) -> list[float]:
    """What diffusers' calibration prints for the prompt's branch, averaged over the tuning clips."""
    steps = tuning.num_inference_steps
    setting = diffusers_setting("calibration", lambda pipe: MagCacheConfig(calibrate=True, num_inference_steps=steps))
    measured = []
    for clip in tuning.clips:
        printed = StringIO()
        with setting.put(tuning.studio.pipe), redirect_stdout(printed):
            tuning.studio.film(clip, steps)
        cond, _ = re.findall(r"^\[[-\d., e]+\]$", printed.getvalue(), re.MULTILINE)
        measured.append(literal_eval(cond))
    return [float(ratio) for ratio in np.mean(measured, axis=0)]


def dbcache_setting(label: str, num_inference_steps: int, calibrator: Any, **changes: Any) -> Setting:
    config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, num_inference_steps=num_inference_steps, **changes)
    return Setting(label, partial(_put_dbcache, config, calibrator))


@contextmanager
def _put_dbcache(config: Any, calibrator: Any, pipe: Any) -> Iterator[None]:
    cache_dit.enable_cache(pipe, cache_config=deepcopy(config), calibrator_config=deepcopy(calibrator))
    try:
        yield
    finally:
        cache_dit.disable_cache(pipe)
