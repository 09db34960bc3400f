"""Putting a recipe on a diffusers transformer, and the handle to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .clock import Clock
from .decision import Decision, Signal, ratio
from .recipe import Recipe, load_recipe
from .sites import SiteRun
from .state import CacheState, Slot
from .trace import Replay, Trace, TraceEntry
from .triggers import Moment

Reduce = Callable[[Tensor], Tensor]
_MARK = "_longtake_cache"


def enable_cache(
    transformer: Any,
    recipe: str | Path | Recipe,
    *,
    num_inference_steps: int,
    reduce: Reduce = lambda sums: sums,
    replay: Replay | None = None,
) -> Cached:
    """Put a cache on a diffusers transformer, or on that of a pipeline.

    Model calls are told apart by their timestep and by diffusers' `cache_context`, as stock pipelines use it, or inside
    `with cached.step(...)`, which says more (segments of a long take).

    recipe: a name, a YAML path or a Recipe. reduce: sums fp64 partial sums over all shards of the tokens (one collective), for
    sharded models. replay: make the decisions of a trace again instead of the trigger's own. Raises ValueError if the recipe does
    not fit.
    """
    transformer = getattr(transformer, "transformer", transformer)
    if hasattr(transformer, _MARK):
        raise ValueError("This transformer has a cache already; call disable() on it first.")
    cached = Cached(load_recipe(recipe), num_inference_steps, reduce, replay)
    cached.attach(transformer)
    return cached


@dataclass(frozen=True)
class _Cursor:
    """at: the step's place on the recipe's abscissa."""

    segment: int
    moment: Moment
    branch: str
    at: float


class Cached:
    """A cache at work on one transformer: tell it the step of each model call, read its trace, reset it between takes."""

    def __init__(self, recipe: Recipe, num_inference_steps: int, reduce: Reduce, replay: Replay | None = None) -> None:
        self.recipe = recipe
        self.num_inference_steps = num_inference_steps
        self.state = CacheState(recipe)
        self.replay = replay
        self.trace = Trace(recipe.name, num_inference_steps)
        self._reduce = reduce
        self._cursor: _Cursor | None = None
        self._detach: Callable[[], None] = lambda: None

    def attach(self, transformer: nn.Module) -> None:
        detach = self.recipe.site.build().attach(transformer, self._begin)
        setattr(transformer, _MARK, True)
        self._clock = Clock(transformer, self.num_inference_steps, self.reset)

        def detach_all() -> None:
            delattr(transformer, _MARK)
            self._clock.detach()
            detach()

        self._detach = detach_all

    @contextmanager
    def step(self, index: int, timestep: Tensor | float, branch: str = "both", segment: int = 0) -> Iterator[None]:
        """Name the model call inside: step `index` of the take (0-based), branch `cond`, `uncond` or `both`, and its segment."""
        self._cursor = self._point_at(index, float(timestep), branch, segment)
        try:
            yield
        finally:
            self._cursor = None

    def _point_at(self, index: int, timestep: float, branch: str, segment: int = 0) -> _Cursor:
        moment = Moment(index, timestep, self.num_inference_steps)
        # sigma is counted from noise to film in units of an average step, so that forecasts look as far ahead as with steps.
        at = float(index) if self.recipe.abscissa == "step" else self.num_inference_steps * (1 - timestep / 1000)
        return _Cursor(segment, moment, branch, at)

    def finish(self) -> Trace:
        """Complete the take's trace (forecast errors are reduced here, in one collective, so call it on every shard)."""
        self.trace.finish(self._reduce)
        return self.trace

    def reset(self) -> None:
        """Forget all; call it before each take."""
        self.state.reset()
        self.trace = Trace(self.recipe.name, self.num_inference_steps)

    def disable(self) -> None:
        """Give the transformer its own calls back; a second time it does nothing."""
        self._detach()
        self._detach = lambda: None
        self.state.reset()

    def _begin(self, layers: str, num_tokens: int | None) -> SiteRun:
        cursor = self._cursor or self._point_at(*self._clock.now())
        return _Call(self, cursor, self.state.slot(cursor.segment, cursor.branch), layers, slice(num_tokens))


class _Call:
    """One model call: what a site asks for (SiteRun). measured: the part of dim 1 that signals are of."""

    def __init__(self, cached: Cached, cursor: _Cursor, slot: Slot, layers: str, measured: slice) -> None:
        self._cached, self._cursor, self._slot, self._layers, self._measured = cached, cursor, slot, layers, measured

    def decide(self, probe: Tensor) -> Decision:
        """One reduction a decision whatever it will be: a branch that guards a collective is decided from reduced data alone."""
        cached, cursor, slot = self._cached, self._cursor, self._slot
        place = (cursor.segment, cursor.moment.step, cursor.branch, cached.recipe.site.name)
        if cached.replay:
            value, decision = None, cached.replay.decision(*place)
        else:
            value, decision = self._judge(probe)
        slot.reused_run = slot.reused_run + 1 if decision is Decision.REUSE else 0
        threshold = slot.trigger.threshold
        margin = abs(value - threshold) if value is not None and threshold is not None else None
        cached.trace.add(TraceEntry(*place, self._layers, decision.value, value=value, margin=margin))
        return decision

    def _judge(self, probe: Tensor) -> tuple[float | None, Decision]:
        """The trigger's decision, overruled by the guards; and what it was judged by, None where that is nothing or unknown yet."""
        cached, moment, slot = self._cached, self._cursor.moment, self._slot
        signal = slot.trigger.signal(probe[:, self._measured])
        value = None if signal is None else ratio(cached._reduce(signal.sums))
        wish = slot.trigger.decide(moment, value)
        decision = cached.recipe.guards.apply(wish, moment.step, cached.num_inference_steps, slot.reused_run)
        if not slot.predictor.ready:
            decision = Decision.COMPUTE
        slot.trigger.settle(decision)
        return (None if value == float("inf") else value), decision

    def keep(self, feature: Tensor) -> None:
        if self._slot.predictor.ready:
            forecast = self._slot.predictor.predict(self._cursor.at)
            pair = (forecast[:, self._measured], feature[:, self._measured])
            self._cached.trace.add_forecast(Signal.relative_l1(*pair).sums)
        self._slot.predictor.push(self._cursor.at, feature)

    def recall(self) -> Tensor:
        feature = self._slot.predictor.predict(self._cursor.at)
        self._slot.predictor.settle(self._cursor.at, feature)
        return feature
