"""Where a recipe of ours and a cache of theirs are one method with one set of parameters: both must land on the same point.

cache-dit's TaylorSeer has no slope before its fourth computed step; the pair computes four, where that makes no difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cache_dit

from ....cache import load_recipe
from .contender import Setting, Tuning
from .recipes import our_setting
from .rivals import WAN_MODULES, dbcache_setting, diffusers_setting, first_block, mag, mag_ratios, taylorseer

LEFT_OUT = {
    "cache-dit FoCa": "never divides by the gap between computed steps",
    "cache-dit DMD": "no recipe here has its predictor",
    "diffusers SeaCache, PAB, FasterCache": "no recipe here takes the same parameters",
}

_THRESHOLD, _INTERVAL = 0.1, 4
_MAG_THRESHOLD, _MAX_SKIPS = 0.12, 6


@dataclass(frozen=True)
class Pair:
    name: str
    ours: Setting
    theirs: Setting


def pairs(tuning: Tuning) -> list[Pair]:
    steps = tuning.num_inference_steps
    ratios = mag_ratios(tuning)

    def ours(trigger: dict[str, Any], site: dict[str, Any], predictor: dict[str, Any]) -> Setting:
        guards = {"first_steps": 1, "last_steps": 0}
        return our_setting("same", load_recipe({"trigger": trigger, "site": site, "predictor": predictor, "guards": guards}), steps)

    first_block_cache = ours({"name": "relative_change", "threshold": _THRESHOLD}, {"name": "stack", "first_blocks": 1}, {"name": "reuse"})
    magnitude = {"name": "magnitude", "ratios": ratios, "threshold": _MAG_THRESHOLD, "max_reused_steps": _MAX_SKIPS}
    seer = [step for step in range(steps) if step < 3 or (step - 4) % _INTERVAL == 0]  # where diffusers computes
    even = [step for step in range(steps) if step < 4 or step % _INTERVAL == 0]
    taylor = {"name": "taylor", "order": 1}
    return [
        Pair("first-block cache, diffusers", first_block_cache, diffusers_setting("same", first_block(_THRESHOLD))),
        Pair(
            "first-block cache, cache-dit",
            first_block_cache,
            dbcache_setting("same", steps, None, residual_diff_threshold=_THRESHOLD, max_warmup_steps=1),
        ),
        Pair(
            "MagCache, diffusers",
            ours(magnitude, {"name": "stack", "first_blocks": 0}, {"name": "reuse"}),
            diffusers_setting("same", mag(_MAG_THRESHOLD, ratios, _MAX_SKIPS)),
        ),
        Pair(
            "Taylor at equal intervals, diffusers lite",
            ours({"name": "mask", "computed": seer}, {"name": "output"}, taylor),
            diffusers_setting("same", taylorseer(_INTERVAL, use_lite_mode=True)),
        ),
        Pair(
            "Taylor at equal intervals, diffusers full",
            ours({"name": "mask", "computed": seer}, {"name": "modules"}, taylor),
            diffusers_setting("same", taylorseer(_INTERVAL, cache_identifiers=WAN_MODULES)),
        ),
        Pair(
            "Taylor at equal intervals, cache-dit",
            ours({"name": "mask", "computed": even}, {"name": "stack", "first_blocks": 1}, taylor),
            dbcache_setting(
                "same",
                steps,
                cache_dit.TaylorSeerCalibratorConfig(),
                steps_computation_mask=[int(step in even) for step in range(steps)],
                steps_computation_policy="static",
                max_warmup_steps=4,
            ),
        ),
    ]
