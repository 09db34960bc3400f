"""The diffusers scheduler that moves a take's latents: the checkpoint's own, or another one made from its config."""

from __future__ import annotations

import json
from typing import Any

import diffusers

from ...cache.sampler.flow_shift import flow_shift, shift_setting
from ..checkpoint.card import ModelCard
from ..checkpoint.support import SAMPLERS
from ..take import Take

_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2}
# What a sampler needs that the config of another class does not say.
_SETTINGS: dict[str, dict[str, Any]] = {
    SAMPLERS["euler"]: {},
    SAMPLERS["unipc"]: _FLOW,
    SAMPLERS["dpm++"]: {**_FLOW, "algorithm_type": "dpmsolver++"},
}


def make_scheduler(card: ModelCard, take: Take) -> Any:
    """A fresh scheduler without timesteps. One of the checkpoint's own class keeps all of its settings; another one those that both know, and
    its flow shift.
    """
    config = json.loads((card.path / "scheduler" / "scheduler_config.json").read_text())
    wanted = card.sampled_by(take.scheduler).scheduler
    changes: dict[str, Any] = {}
    if wanted != config["_class_name"]:
        changes = {**_SETTINGS[wanted], shift_setting(wanted): flow_shift(config["_class_name"], config)}
    if take.flow_shift is not None:
        changes[shift_setting(wanted)] = take.flow_shift
    return getattr(diffusers, wanted).from_config(config, **changes)
