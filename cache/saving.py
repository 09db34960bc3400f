"""A cache's state as a file, apart from how its tokens were sharded: saved on some number of shards, loaded on any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .predictors import Predictor
from .sites import Site
from .state import CacheState, Slot
from .storage import Kept
from .values import pack, restore, unpack

_VERSION = "2"

Packed = tuple[dict[str, Any], dict[str, Tensor]]


class Relay(Protocol):
    """How the shards of a model call's tokens become one and are shared out again. Every shard calls each method alike."""

    def gather(self, local: Tensor) -> Tensor:
        """[batch, local tokens, dim] -> [batch, all tokens, dim], in the order of the shards."""

    def share(self, whole: Tensor) -> Tensor:
        """The inverse, maybe over another number of shards."""

    def sum(self, sums: Tensor) -> Tensor:
        """Partial sums, added up over all shards."""

    def is_first(self) -> bool:
        """Whether this is the first shard, which then holds what was summed."""

    def collect(self, packed: Packed) -> list[Packed]:
        """What all places hold that run different model calls (other branches, other segments)."""

    def runs_here(self, segment: int, branch: str) -> bool:
        """Whether such model calls are this place's."""

    def writes(self) -> bool:
        """Whether it is this place that writes the file."""


class Alone:
    """A relay where nothing is sharded."""

    def gather(self, local: Tensor) -> Tensor:
        return local

    def share(self, whole: Tensor) -> Tensor:
        return whole

    def sum(self, sums: Tensor) -> Tensor:
        return sums

    def is_first(self) -> bool:
        return True

    def collect(self, packed: Packed) -> list[Packed]:
        return [packed]

    def runs_here(self, segment: int, branch: str) -> bool:
        return True

    def writes(self) -> bool:
        return True


def save_state(state: CacheState, path: Path, relay: Relay, about: dict[str, str]) -> None:
    """Write all slots as one safetensors file. about: strings to keep beside them."""
    slots: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for (part, segment, branch), slot in state.slots.items():
        site, name = state.recipe.parts[part].site.build(), f"{part}/{segment}/{branch}"
        slots[name] = _pack_slot(slot, _Saver(tensors, name, site, relay))
    packed = relay.collect((slots, tensors))
    if relay.writes():
        metadata = {"version": _VERSION, "slots": json.dumps({name: plain for part, _ in packed for name, plain in part.items()}), **about}
        temporary = path.with_suffix(".tmp")
        save_file({name: tensor for _, part in packed for name, tensor in part.items()}, temporary, metadata)
        temporary.replace(path)


def read_about(path: Path) -> dict[str, str]:
    """What `save_state` kept beside the slots. Raises ValueError for a file that it did not write, or not in this version."""
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
    except FileNotFoundError:
        raise ValueError(f"There is no cache in '{path}'; render the take from its start.") from None
    except SafetensorError as error:
        raise ValueError(f"The cache in '{path}' is damaged ({error}); render the take from its start.") from None
    if about.get("version") != _VERSION:
        raise ValueError(f"'{path}' holds no cache that this version can read; render the take from its start.")
    return about


def load_state(state: CacheState, path: Path, relay: Relay, device: torch.device) -> None:
    """Fill an empty state from `save_state`'s file."""
    with safe_open(path, "pt", str(device)) as file:
        for name, plain in json.loads(file.metadata()["slots"]).items():
            part, segment, branch = name.split("/")
            if relay.runs_here(int(segment), branch):
                site = state.recipe.parts[int(part)].site.build()
                _unpack_slot(state, (int(part), int(segment), branch), plain, _Loader(file.get_tensor, site, relay))


class _Saver:
    """Takes in tensors, made whole. A tensor's name ends with its kind and, of features, how many of its last tokens are text.

    feature: kept by a predictor; tokens: a probe; sums: partial ones; whole: the same on every shard.
    """

    def __init__(self, tensors: dict[str, Tensor], slot: str, site: Site, relay: Relay) -> None:
        self._tensors, self._slot, self._site, self._relay = tensors, slot, site, relay

    def put(self, num_text: int, value: Tensor | Kept) -> str:
        tensor = value.get() if isinstance(value, Kept) else value
        kind, text = self._kind(value, tensor), num_text if isinstance(value, Kept) else 0
        if kind == "sums":
            tensor = self._relay.sum(tensor)
        elif kind == "tokens" or (kind == "feature" and self._site.sharded):
            tensor = _without_text(tensor, text, self._relay.gather)
        name = f"{self._slot}:{len(self._tensors)}:{kind}:{text}"
        self._tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return name

    def _kind(self, value: Tensor | Kept, tensor: Tensor) -> str:
        if isinstance(value, Kept):
            return "feature"
        if tensor.dtype == torch.float64 and tensor.ndim <= 1:
            return "sums" if self._site.sharded else "whole"
        return "tokens" if tensor.ndim == 3 else "whole"


class _Loader:
    """Finds tensors by the names that `_Saver` gave them, and shares them out."""

    def __init__(self, find: Callable[[str], Tensor], site: Site, relay: Relay) -> None:
        self._find, self._site, self._relay = find, site, relay

    def get(self, predictor: Predictor | None, name: str) -> Tensor | Kept:
        tensor, (kind, text) = self._find(name), name.split(":")[2:]
        if kind == "sums" and not self._relay.is_first():
            tensor = torch.zeros_like(tensor)
        if kind == "tokens" or (kind == "feature" and self._site.sharded):
            tensor = _without_text(tensor, int(text), self._relay.share)
        if kind != "feature":
            return tensor
        assert predictor is not None, "a trigger keeps no features"
        return predictor.storage.put(tensor)


def _without_text(tensor: Tensor, num_text: int, move: Callable[[Tensor], Tensor]) -> Tensor:
    """`move` the tokens of [batch, tokens, dim] and leave the text behind them; what is text alone stays as it is."""
    num_tokens = tensor.shape[1] - num_text
    return torch.cat((move(tensor[:, :num_tokens].contiguous()), tensor[:, num_tokens:]), dim=1) if num_tokens else tensor


def _pack_slot(slot: Slot, saver: _Saver) -> dict[str, Any]:
    predictors = {}
    for name, predictor in slot.predictors.items():
        num_text = -(predictor.measured.stop or 0)
        predictors[name] = pack(_carried(predictor), partial(saver.put, num_text))
    return {"trigger": pack(_carried(slot.trigger), partial(saver.put, 0)), "predictors": predictors, "counts": [slot.reused_run, slot.owed]}


def _carried(target: Any) -> dict[str, Any]:
    """What a trigger or predictor carries from step to step: all but its config."""
    return {name: value for name, value in vars(target).items() if isinstance(value, Kept) or not is_dataclass(value)}


def _unpack_slot(state: CacheState, key: tuple[int, int, str], plain: dict[str, Any], loader: _Loader) -> None:
    trigger = unpack(plain["trigger"], partial(loader.get, None))
    slot = state.slot(*key, num_units=trigger["num_units"])
    restore(slot.trigger, trigger)
    for name, packed in plain["predictors"].items():
        slot.predictors[name] = state.predictor(state.recipe.parts[key[0]])
        restore(slot.predictors[name], unpack(packed, partial(loader.get, slot.predictors[name])))
    slot.reused_run, slot.owed = plain["counts"]
