"""The keys of a film. Gang, layout, exact kernels, paths and retries are in neither of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from fractions import Fraction
from typing import Any

from ..cache import Recipe, Trace
from .checkpoint.card import ModelCard
from .options import ModelOptions
from .take import Take, TimelineSettings

_LATER_SETTINGS = ("anchors", "context", "on_prompt", "shift")  # left out of the key where they are as they would be if nobody set them
_VERSION = 2  # raised when a new version gives another film for the same inputs
_DELIVERY_VERSION = 1  # likewise, for the file of the same frames


def film_key(card: ModelCard, model: str, take: Take, recipe: Recipe | None, options: ModelOptions, replayed: Trace | None = None) -> str:
    """The hash of all that may change a film's latents, 64 hex digits. model: its own hash.

    A take's name is not in it: it is where the film is kept, not what it shows; nor is the timeline where one call shows the whole take, nor
    a sampler that is the checkpoint's own. Of a schedule its sigmas are, of a film that is gone on from what its file holds.
    """
    return _hashed(_all_of(card, model, take, recipe, options, replayed))


def round_keys(
    card: ModelCard, model: str, take: Take, recipe: Recipe | None, options: ModelOptions, replayed: Trace | None = None
) -> tuple[str, ...]:
    """Of each round, the hash of all that may change its latents or those of a round before it: of the prompts and seeds those that the rounds
    are given, of the take's length nothing that lies behind them. Under a recipe that goes on with what its cache has learnt, a round's latents are
    not all that the next one needs, and its key is that of this very film.
    """
    shared = _all_of(card, model, take, recipe, options, replayed)
    if not rounds_stand_alone(recipe):
        return tuple(_hashed({"film": shared, "round": number}) for number in range(len(take.timeline_for(card).rounds)))
    content: dict[str, Any] = shared["take"]
    for name in ("num_frames", "prompts", "seed"):
        del content[name]
    content.pop("reseeds", None)
    content["timeline"] = [take.timeline.name, take.timeline.context]
    if take.continue_from is not None:  # of whose frames these are encoded
        content["timeline"] += [take.timeline.overlap, take.timeline.anchors]
    keys = [_hashed(shared)]
    for one in take.timeline_for(card).rounds:
        calls = [[call.segment, list(call.frames), call.weights, call.context, take.prompt_at(call.centre, card)] for call in one.calls]
        keys.append(_hashed({"before": keys[-1], "frames": list(one.frames), "calls": calls, "seed": take.seed_of(one.frames, card)}))
    return tuple(keys[1:])


def rounds_stand_alone(recipe: Recipe | None) -> bool:
    """Whether a take can go on after a round with no more than its latents."""
    return recipe is None or recipe.border == "reset"


def _all_of(card: ModelCard, model: str, take: Take, recipe: Recipe | None, options: ModelOptions, replayed: Trace | None) -> dict[str, Any]:
    content = asdict(take)
    del content["name"]
    if take.scheduler in (None, card.sampler):
        del content["scheduler"]
    if not take.reseeds:
        del content["reseeds"]
    if take.continue_from is None:
        del content["continue_from"]
    else:
        content["continue_from"] = take.continue_from.sha256
    if take.schedule is None:
        del content["schedule"]
    else:
        content["schedule"] = take.schedule.sigmas
    if take.timeline_for(card).is_whole:
        content["timeline"] = "full"
    else:
        for name in _LATER_SETTINGS:
            if content["timeline"][name] == getattr(TimelineSettings, name):
                del content["timeline"][name]
    key = {
        "version": _VERSION,
        "model": model,
        "max_sequence_length": card.max_sequence_length,
        "take": content,
        "recipe": recipe.deciding() if recipe else None,
        "dtype": options.dtype,
        "lossy_attention": options.lossy_attention,
    }
    if replayed is not None:
        key["replayed"] = replayed.choices
    return key


def delivery_key(fps: Fraction) -> str:
    """The hash of all that changes a film's file and none of its pictures, 64 hex digits. fps: frames a second."""
    return _hashed({"version": _DELIVERY_VERSION, "fps": str(fps)})


def _hashed(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
