"""How long the parts of a take take, and what the cache saves of that."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Generic, TypeVar

import torch

from ...cache import TraceEntry
from ...cache.decision import Decision

Item = TypeVar("Item")


def clock(device: torch.device) -> float:
    """Seconds since some moment, once the device has done all that it was told to: calls of CUDA return long before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Timed(Iterator[Item], Generic[Item]):
    """Passes on what an iterator makes. seconds: what making each item took so far; finding that there are no more is the last."""

    def __init__(self, items: Iterator[Item], device: torch.device) -> None:
        self.seconds: list[float] = []
        self._items, self._device = items, device

    def __next__(self) -> Item:
        began = clock(self._device)
        try:
            return next(self._items)
        finally:
            self.seconds.append(clock(self._device) - began)


def cache_speedup(step_seconds: Sequence[float], first_step: int, decisions: Iterable[TraceEntry]) -> float | None:
    """How many times as fast the steps were as they would have been without the cache, measured on themselves: each step of which something
    was reused had taken the median of those in which every call was computed. For that median the first of all steps counts only if it is
    alone, as it warms up.

    step_seconds: of each step, from `first_step` of the take on. decisions: of the calls made in them. None where no step was computed
    whole.
    """
    saving = {entry.step for entry in decisions if entry.decision != Decision.COMPUTE.value}
    whole = [seconds for step, seconds in enumerate(step_seconds, first_step) if step not in saving]
    if not whole:
        return None
    warm = whole[1:] if first_step not in saving and len(whole) > 1 else whole
    without_cache = sum(whole) + median(warm) * (len(step_seconds) - len(whole))
    return without_cache / sum(step_seconds)
