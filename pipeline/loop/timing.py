"""How long the stages of a take last, and what the cache saves of that."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Generic, TypeVar

import torch

from ...cache.decision import Decision

Item = TypeVar("Item")


def clock(device: torch.device) -> float:
    """Seconds since some moment, once the device has done all that it was told to: calls of CUDA return long before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Timed(Iterator[Item], Generic[Item]):
    """Passes on the items of an iterator. seconds: how long it took to make each so far; at the end, also to find that there are no more."""

    def __init__(self, items: Iterator[Item], device: torch.device) -> None:
        self.seconds: list[float] = []
        self._items, self._device = items, device

    def __next__(self) -> Item:
        began = clock(self._device)
        try:
            return next(self._items)
        finally:
            self.seconds.append(clock(self._device) - began)


def cache_speedup(step_seconds: Sequence[float], first_step: int, decisions: Iterable[tuple[int, str]]) -> float | None:
    """How many times as fast the steps were as they would have been without the cache, estimated from the steps themselves: without it, a step
    in which something was reused would have lasted as long as the median of those in which every call was computed. The take's first step,
    which is slower, is left out of the median unless it is the only one.

    step_seconds: of each step, from `first_step` of the take on. decisions: the step of each call that was made in them, counted over all rounds,
    and what was decided there. Returns None where there is no step in
    which every call was computed.
    """
    saving = {step for step, decision in decisions if decision != Decision.COMPUTE.value}
    whole = [seconds for step, seconds in enumerate(step_seconds, first_step) if step not in saving]
    if not whole:
        return None
    warm = whole[1:] if first_step not in saving and len(whole) > 1 else whole
    without_cache = sum(whole) + median(warm) * (len(step_seconds) - len(whole))
    return without_cache / sum(step_seconds)
