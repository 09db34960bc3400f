"""A cache's state as a file that does not depend on how its tokens were sharded: saved on some number of shards, loaded on any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...files import written_whole
from ..predictors import Predictor
from ..sites import Site
from ..triggers import Trigger
from .frames import Frame, Frames
from .holds import declared
from .state import CacheState, Slot
from .storage import Kept, Storage
from .values import Plain, pack, restore, unpack

_VERSION = "4"
_LATENTS = 5  # dims of latents; what is no tokens and has others is of no frame

Packed = tuple[dict[str, Any], dict[str, Tensor]]


class Relay(Protocol):
    """How shards of a model call's tokens are joined and shared out again. All shards call each of its methods, in the same order.

    Where shards hold the latents of a take's segments apart as well, `segment` is the number of the one that all of a tensor is of, None for the
    whole take.
    """

    def gather(self, local: Tensor) -> Tensor:
        """[batch, local tokens, dim] -> [batch, all tokens, dim], in the order of the shards."""

    def share(self, whole: Tensor, segment: int | None) -> Tensor:
        """The inverse, maybe over another number of shards."""

    def gather_frames(self, local: Tensor) -> Tensor:
        """[batch, channels, frames, height, width] of what shards hold apart -> the same of all; as it is where all hold the same."""

    def share_frames(self, whole: Tensor, segment: int | None) -> Tensor:
        """The inverse."""

    def sum(self, sums: Tensor) -> Tensor:
        """Partial sums, added up over all shards."""

    def is_first(self) -> bool:
        """Whether this is the first shard, which then holds what was summed."""

    def sum_frames(self, sums: Tensor) -> Tensor:
        """Partial sums of latents, added up over the shards that hold them apart; as they are where all hold the same."""

    def is_first_of_frames(self) -> bool:
        """Whether this shard then holds what was summed."""

    def collect(self, packed: Packed) -> list[Packed]:
        """On the shard that writes the file, what was packed wherever model calls run: here, and by the shards that run those of other branches or
        segments. Nothing elsewhere.
        """

    def runs_here(self, segment: int, branch: str) -> bool:
        """Whether this shard is one of those that run such model calls."""

    def writes(self) -> bool:
        """Whether it is this shard that writes the file."""


class Alone:
    """The relay where nothing is sharded."""

    def gather(self, local: Tensor) -> Tensor:
        return local

    def share(self, whole: Tensor, segment: int | None) -> Tensor:
        return whole

    def gather_frames(self, local: Tensor) -> Tensor:
        return local

    def share_frames(self, whole: Tensor, segment: int | None) -> Tensor:
        return whole

    def sum(self, sums: Tensor) -> Tensor:
        return sums

    def is_first(self) -> bool:
        return True

    def sum_frames(self, sums: Tensor) -> Tensor:
        return sums

    def is_first_of_frames(self) -> bool:
        return True

    def collect(self, packed: Packed) -> list[Packed]:
        return [packed]

    def runs_here(self, segment: int, branch: str) -> bool:
        return True

    def writes(self) -> bool:
        return True


@dataclass(frozen=True)
class PackedState:
    """A cache's state, apart from the cache that goes on: tensors of the CPU by name, and texts about them."""

    tensors: dict[str, Tensor]
    about: dict[str, str]

    def write(self, path: Path) -> None:
        """As one safetensors file."""
        with written_whole(path) as temporary:
            save_file(self.tensors, temporary, self.about)


def pack_state(state: CacheState, relay: Relay, about: dict[str, str]) -> PackedState | None:
    """All slots, gathered where the file is written, None elsewhere. about: texts to keep beside them."""
    slots: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for (part, segment, branch), slot in state.slots.items():
        site, name = state.recipe.parts[part].site.build(), f"{part}/{segment}/{branch}"
        slots[name] = _pack_slot(slot, _Saver(tensors, name, site, relay))
    for (part, branch), frames in state.frames.items():
        site, name = state.recipe.parts[part].site.build(), f"{part}/{branch}"
        slots[name] = _pack_frames(frames, _Saver(tensors, name, site, relay))
    slots.update({f"{part}/{branch}/": pack(carried, _refuse) for (part, branch), carried in state.carried.items()})
    packed = relay.collect((slots, tensors))
    if not relay.writes():
        return None
    all_slots = {name: plain for part, _ in packed for name, plain in part.items()}
    all_tensors = {name: tensor for _, part in packed for name, tensor in part.items()}
    return PackedState(all_tensors, {"version": _VERSION, "slots": json.dumps(all_slots), **about})


def read_about(path: Path) -> dict[str, str]:
    """What `pack_state` kept beside the slots. Raises ValueError for a file that it did not write, or not in this version."""
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
    """Fill an empty state from the file of a `PackedState`."""
    with safe_open(path, "pt", str(device)) as file:
        for name, plain in json.loads(file.metadata()["slots"]).items():
            loader, names = _Loader(lambda name: file.get_tensor(name).clone(), relay), name.split("/")
            part, branch = int(names[0]), names[1] if names[-1] == "" else names[-1]
            if len(names) == 3 and names[-1] and relay.runs_here(int(names[1]), branch):
                _unpack_slot(state, (part, int(names[1]), branch), plain, loader)
            elif len(names) == 2 and relay.runs_here(0, branch):
                _unpack_frames(state, (part, branch), plain, loader)
            elif names[-1] == "":
                state.carried[(part, branch)] = unpack(plain, _refuse)


class _Saver:
    """Collects the tensors of a slot's trigger and predictors, gathered from all shards. How a tensor is sharded follows from its owner's
    declaration and the site: `tokens` and `sums` (partial ones) are spread over the shards; `whole` and `whole_sums` are the same on all that hold
    the same latents. A tensor's name ends with that word, with how many of its last tokens are text, and with the segment that all of it is of.
    """

    def __init__(self, tensors: dict[str, Tensor], slot: str, site: Site, relay: Relay) -> None:
        self._tensors, self._slot, self._site, self._relay = tensors, slot, site, relay
        self._segment = ""

    def pack_trigger(self, trigger: Trigger) -> Plain:
        """The triggers that it decides by, of a segment each where there are several."""
        probes = "tokens" if self._site.watches_tokens else "whole"
        packed = []
        for segment, part in enumerate(trigger.parts):
            self._segment = str(segment) if len(trigger.parts) > 1 else ""
            packed.append(self._pack(part, probes, "sums" if self._site.shards_signal(trigger) else "whole_sums", 0))
        self._segment = ""
        return packed

    def pack_predictor(self, predictor: Predictor) -> Plain:
        probes = "tokens" if self._site.measures_tokens else "whole"
        return self._pack(predictor, probes, "sums" if self._site.shards_measure(predictor) else "whole_sums", predictor.num_text)

    def _pack(self, owner: Trigger | Predictor, probes: str, sums: str, num_text: int) -> Plain:
        holds = declared(type(owner))
        undeclared = vars(owner).keys() - {*holds.settings, *holds.state}
        assert not undeclared, f"{type(owner).__name__} does not say in `holds` what lies in {', '.join(sorted(undeclared))}"
        puts: dict[str, Callable[[Any], Plain]] = {
            **dict.fromkeys(holds.numbers, _refuse),
            **dict.fromkeys(holds.probes, partial(self._put, probes, 0)),
            **dict.fromkeys(holds.sums, partial(self._put, sums, 0)),
            **dict.fromkeys(holds.features, partial(self._put_feature, num_text)),
        }
        return {name: pack(getattr(owner, name), put) for name, put in puts.items()}

    def _put_feature(self, num_text: int, feature: Kept) -> Plain:
        scope = "tokens" if self._site.sharded else "whole"
        stored = feature.stored.view(torch.uint8) if feature.stored.dtype.itemsize == 1 else feature.stored
        names = [None if one is None else self._put(scope, num_text, one) for one in (stored, feature.scale)]
        return [*names, str(feature.stored.dtype).removeprefix("torch."), str(feature.dtype).removeprefix("torch.")]

    def _put(self, scope: str, num_text: int, tensor: Tensor) -> str:
        if scope == "sums":
            tensor = self._relay.sum(tensor)
        elif scope == "whole_sums":
            tensor = self._relay.sum_frames(tensor)
        elif scope == "tokens":
            tensor = _without_text(tensor, num_text, self._relay.gather)
        elif tensor.ndim == _LATENTS:
            tensor = self._relay.gather_frames(tensor)
        name = f"{self._slot}:{len(self._tensors)}:{scope}:{num_text}:{self._segment}"
        if self._relay.is_first():  # the others' copies would be dropped
            self._tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return name


def _refuse(value: Any) -> Plain:
    raise TypeError(f"a {type(value).__name__} is declared to be numbers")


class _Loader:
    """Finds tensors by the names that `_Saver` gave them, and shares them out."""

    def __init__(self, find: Callable[[str], Tensor], relay: Relay) -> None:
        self._find, self._relay = find, relay

    def restore(self, owner: Trigger | Predictor, plain: Plain, storage: Storage) -> None:
        """storage: of the features among what is restored."""
        features = declared(type(owner)).features
        get_feature = partial(self._feature, storage)
        restore(owner, {name: unpack(value, get_feature if name in features else self._tensor) for name, value in plain.items()})

    def _tensor(self, name: str) -> Tensor:
        tensor, (scope, num_text, number) = self._find(name), name.split(":")[2:]
        segment = int(number) if number else None
        if (scope == "sums" and not self._relay.is_first()) or (scope == "whole_sums" and not self._relay.is_first_of_frames()):
            return torch.zeros_like(tensor)
        if scope == "tokens":
            return _without_text(tensor, int(num_text), partial(self._relay.share, segment=segment))
        return self._relay.share_frames(tensor, segment) if tensor.ndim == _LATENTS else tensor

    def _feature(self, storage: Storage, said: Plain) -> Kept:
        """The feature as it was stored, bit for bit."""
        stored, scale, stored_dtype, dtype = said
        bits = self._tensor(stored).view(getattr(torch, stored_dtype))
        return storage.adopt(bits, None if scale is None else self._tensor(scale), getattr(torch, dtype))


def _without_text(tensor: Tensor, num_text: int, move: Callable[[Tensor], Tensor]) -> Tensor:
    """`move` the tokens of [batch, tokens, dim] but for the text, and put that after them again; a tensor of text alone stays as it is."""
    num_tokens = tensor.shape[1] - num_text
    has_tokens = num_tokens or not num_text  # a shard may hold none of them where others do
    return torch.cat((move(tensor[:, :num_tokens].contiguous()), tensor[:, num_tokens:]), dim=1) if has_tokens else tensor


def _pack_slot(slot: Slot, saver: _Saver) -> Plain:
    predictors = {name: saver.pack_predictor(predictor) for name, predictor in slot.predictors.items()}
    frames = None if slot.frames is None else [slot.frames.start, slot.frames.stop]
    triggers, num_units = saver.pack_trigger(slot.trigger), slot.trigger.num_units
    counts = [slot.reused_run, slot.owed]
    return {"frames": frames, "num_units": num_units, "triggers": triggers, "predictors": predictors, "counts": counts}


def _unpack_slot(state: CacheState, key: tuple[int, int, str], plain: Plain, loader: _Loader) -> None:
    frames = None if plain["frames"] is None else range(*plain["frames"])
    slot = state.slot(*key, plain["num_units"], frames)
    for trigger, packed in zip(slot.trigger.parts, plain["triggers"], strict=True):
        loader.restore(trigger, packed, state.storage)
    for name, packed in plain["predictors"].items():
        slot.predictors[name] = predictor = state.predictor(key[0])
        loader.restore(predictor, packed, state.storage)
    slot.reused_run, slot.owed = plain["counts"]


def _pack_frames(frames: Frames, saver: _Saver) -> Plain:
    """What the step at hand left, which the next one takes over."""
    windows = []
    for segment, window in frames.now.items():
        for number, frame in window.items():
            trigger = None if frame.trigger is None else saver.pack_trigger(frame.trigger)
            predictors = {name: saver.pack_predictor(predictor) for name, predictor in frame.predictors.items()}
            windows.append([segment, number, trigger, predictors, frame.places])
    return {"step": frames.step, "frames": windows}


def _unpack_frames(state: CacheState, key: tuple[int, str], plain: Plain, loader: _Loader) -> None:
    frames = state.frames_of(*key)
    frames.step = plain["step"]
    for segment, number, packed, predictors, places in plain["frames"]:
        frame = frames.now.setdefault(segment, {})[number] = Frame(places=places)
        if packed is not None:
            [probes] = packed
            frame.trigger = state.trigger(key[0], probes["num_units"])
            loader.restore(frame.trigger, probes, state.storage)
        for name, predictor in predictors.items():
            frame.predictors[name] = state.predictor(key[0])
            loader.restore(frame.predictors[name], predictor, state.storage)
