"""Telling the step and branch of a model call where the caller does not name them: from a pipeline's schedule, and from diffusers' cache_context."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..model.wrap import wrap

# The pipelines whose calls can be told apart, by the name of the class in diffusers, and the branches that one calls at each step, in their
# order; empty where it names them itself, in `cache_context`. To add one, write its line here and its test.
_PIPELINES: dict[str, tuple[str, ...]] = {
    "HunyuanVideoPipeline": (),
    "WanImageToVideoPipeline": (),
    "WanPipeline": (),
    "WanVACEPipeline": (),
    "WanVideoToVideoPipeline": ("cond", "uncond"),
}


class Clock:
    """Counts the steps of a take while a stock pipeline, or any loop from high timesteps to low ones, calls one or two transformers.

    With a pipeline, a step's index is that of its timestep in the pipeline's schedule, and a new schedule begins a new take. The schedule of a
    scheduler that calls the model twice a step (Heun) has an entry for each of the two: to a cache each call is a step. Without a pipeline,
    each new timestep below the last one is the next step, and one above it begins a new take. A call's branch is the name of the
    `cache_context` that it is made in, or the next of those that the pipeline is known to call, or else `both`.

    start_take: called when a take begins, with its number of steps and its pipeline, None where there is none.
    """

    def __init__(self, num_inference_steps: int, pipeline: Any, start_take: Callable[[int, Any], None]) -> None:
        """Raises ValueError, with the mend, for pipelines whose calls cannot be told apart."""
        self._told, self._pipeline, self._start_take = num_inference_steps, pipeline, start_take
        self._order = () if pipeline is None else _branches_in_order(pipeline)
        self._branch = "both"
        self._timestep: Tensor | float | None = None
        self._now: tuple[int, float, str] | None = None
        self._schedule: Tensor | None = None
        self._seen: list[float] = []
        self._last: dict[str, int] = {}

    def attach(self, transformers: Sequence[Any]) -> Iterator[Callable[[], None]]:
        """Listen to the transformers' calls; yields functions that end that."""
        for transformer in transformers:
            names = list(inspect.signature(type(transformer).forward).parameters)[1:]
            position = names.index("timestep") if "timestep" in names else len(names)
            yield wrap(transformer, "forward", lambda forward, *args, at=position, **kwargs: self._listen(at, forward, args, kwargs))
            if hasattr(transformer, "cache_context"):
                yield wrap(transformer, "cache_context", self._name_branch)

    def reset(self) -> None:
        """Forget the take: the next call is the first of another one."""
        self._schedule, self._now = None, None
        self._seen.clear()
        self._last.clear()

    def now(self) -> tuple[int, float, str]:
        """Step, timestep and branch of the running call. Raises ValueError, with the mend, where they cannot be told."""
        if self._now is None:
            self._now = self._count()
        return self._now

    def _listen(self, position: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """position: of the timestep among the arguments, where they are given without names."""
        self._timestep = args[position] if position < len(args) else kwargs.get("timestep")
        self._now = None
        return forward(*args, **kwargs)

    @contextmanager
    def _name_branch(self, contexts: Callable[..., Any], name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        before, self._branch = self._branch, name
        try:
            with contexts(name, *args, **kwargs):
                yield
        finally:
            self._branch = before

    def _count(self) -> tuple[int, float, str]:
        if self._timestep is None:
            raise ValueError("The cache cannot tell the step of this call; make it inside `with cached.step(index, timestep, branch=...)`.")
        given = torch.as_tensor(self._timestep)
        timestep = float(given.max())  # Wan 2.2 gives one a token, zeros for what is clean already
        index = self._count_calls(timestep) if self._pipeline is None else self._look_up(timestep, given.dtype)
        branch = self._branch
        if branch == "both" and self._order:
            called = sum(last == index for last in self._last.values())
            branch = self._order[min(called, len(self._order) - 1)]
        if self._last.get(branch) == index:
            raise ValueError(
                f"Two calls at timestep {timestep:g} in branch '{branch}': the cache cannot tell them apart; make them inside "
                f"`with transformer.cache_context(branch)` or `with cached.step(index, timestep, branch=...)`, call cached.reset() if "
                f"the second one begins a new take, or put the cache on the pipeline that makes them, if it is on another one."
            )
        self._last[branch] = index
        return index, timestep, branch

    def _look_up(self, timestep: float, dtype: torch.dtype) -> int:
        """The index of the timestep in the pipeline's schedule, of which the pipeline makes a new one for each take."""
        scheduler = self._pipeline.scheduler
        schedule: Tensor = scheduler.timesteps
        if getattr(scheduler, "num_inference_steps", None) is None:
            schedule = schedule[:0]  # no call has made one yet: these are the thousand timesteps of training
        elif schedule is not self._schedule:
            self.reset()
            self._start_take(len(schedule), self._pipeline)
            self._schedule = schedule
        away = (schedule.double() - timestep).abs()
        index = getattr(scheduler, "step_index", None)
        if index is None:  # this scheduler has none before its first step, or none at all
            index = int(away.argmin()) if len(away) else 0
        room = 1000 * torch.finfo(dtype if dtype.is_floating_point else torch.float32).eps  # what rounding to the call's dtype may do
        if index >= len(schedule) or away[index] > room:
            raise ValueError(
                f"This call's timestep, {timestep:g}, is not step {index + 1} of the pipeline's schedule. Is it another pipeline that makes it? Put "
                f"the cache on that one, or make the call inside `with cached.step(index, timestep, branch=...)`."
            )
        return index

    def _count_calls(self, timestep: float) -> int:
        if not self._seen or timestep > self._seen[-1]:
            self.reset()
            self._start_take(self._told, None)
        if not self._seen or timestep < self._seen[-1]:
            self._seen.append(timestep)
        if len(self._seen) > self._told:
            raise ValueError(f"This is step {len(self._seen)} of a take; enable_cache was told num_inference_steps={self._told}.")
        return len(self._seen) - 1


def _branches_in_order(pipeline: Any) -> tuple[str, ...]:
    known = next((_PIPELINES[base.__name__] for base in type(pipeline).__mro__ if base.__name__ in _PIPELINES), None)
    if known is None:
        raise ValueError(
            f"{type(pipeline).__name__} is no pipeline whose calls the cache can tell apart ({', '.join(_PIPELINES)}); put the cache on its "
            f"transformer, and make the calls in a loop of your own, inside `with cached.step(index, timestep, branch=...)`."
        )
    return known
