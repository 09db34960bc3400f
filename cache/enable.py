"""Putting a recipe on a diffusers transformer, and the handle to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .decision import Decision, Signal, ratio
from .recipe import Recipe, load_recipe
from .sites import SiteRun
from .state import CacheState, Slot
from .trace import Trace, TraceEntry
from .triggers import Moment

Reduce = Callable[[Tensor], Tensor]
_MARK = "_longtake_cache"


def enable_cache(
    transformer: nn.Module,
    recipe: str | Path | Recipe,
    *,
    num_inference_steps: int,
    reduce: Reduce = lambda sums: sums,
) -> Cached:
    """Put a cache on a diffusers transformer; one stack over all of its block lists.

    recipe: a name, a YAML path or a Recipe. reduce: sums fp64 partial sums over all shards of the tokens (one collective), for
    sharded models. Raises ValueError if the recipe does not fit. Run each model call inside `with cached.step(...)`.
    """
    if hasattr(transformer, _MARK):
        raise ValueError("This transformer has a cache already; call disable() on it first.")
    cached = Cached(load_recipe(recipe), num_inference_steps, reduce)
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

    def __init__(self, recipe: Recipe, num_inference_steps: int, reduce: Reduce) -> None:
        self.recipe = recipe
        self.num_inference_steps = num_inference_steps
        self.state = CacheState(recipe)
        self.trace = Trace(recipe.name)
        self._reduce = reduce
        self._cursor: _Cursor | None = None
        self._detach: Callable[[], None] = lambda: None

    def attach(self, transformer: nn.Module) -> None:
        detach = self.recipe.site.build().attach(transformer, self._begin)
        setattr(transformer, _MARK, True)

        def detach_all() -> None:
            delattr(transformer, _MARK)
            detach()

        self._detach = detach_all

    @contextmanager
    def step(self, index: int, timestep: Tensor | float, branch: str = "both", segment: int = 0) -> Iterator[None]:
        """Name the model call inside: step `index` of the take (0-based), branch `cond`, `uncond` or `both`, and its segment."""
        moment = Moment(index, float(timestep), self.num_inference_steps)
        # sigma is counted from noise to film in units of an average step, so that forecasts look as far ahead as with steps.
        at = float(index) if self.recipe.abscissa == "step" else self.num_inference_steps * (1 - moment.timestep / 1000)
        self._cursor = _Cursor(segment, moment, branch, at)
        try:
            yield
        finally:
            self._cursor = None

    def finish(self) -> Trace:
        """Complete the take's trace (forecast errors are reduced here, in one collective, so call it on every shard)."""
        self.trace.finish(self._reduce)
        return self.trace

    def reset(self) -> None:
        """Forget all; call it before each take."""
        self.state.reset()
        self.trace = Trace(self.recipe.name)

    def disable(self) -> None:
        """Give the transformer its own calls back; a second time it does nothing."""
        self._detach()
        self._detach = lambda: None
        self.state.reset()

    def _begin(self, layers: str, num_tokens: int | None) -> SiteRun:
        if self._cursor is None:
            raise ValueError("The transformer was called outside `with cached.step(index, timestep, branch=...)`, so its cache has no step.")
        return _Call(self, self._cursor, self.state.slot(self._cursor.segment, self._cursor.branch), layers, slice(num_tokens))


class _Call:
    """One model call: what a site asks for (SiteRun). measured: the part of dim 1 that signals are of."""

    def __init__(self, cached: Cached, cursor: _Cursor, slot: Slot, layers: str, measured: slice) -> None:
        self._cached, self._cursor, self._slot, self._layers, self._measured = cached, cursor, slot, layers, measured

    def decide(self, probe: Tensor) -> Decision:
        """One reduction a decision whatever it will be: a branch that guards a collective is decided from reduced data alone."""
        cached, cursor, slot = self._cached, self._cursor, self._slot
        signal = slot.trigger.signal(probe[:, self._measured])
        value = None if signal is None else ratio(cached._reduce(signal.sums))
        wish = slot.trigger.decide(cursor.moment, value)
        decision = cached.recipe.guards.apply(wish, cursor.moment.step, cached.num_inference_steps, slot.reused_run)
        if not slot.predictor.ready:
            decision = Decision.COMPUTE
        slot.trigger.settle(decision)
        slot.reused_run = slot.reused_run + 1 if decision is Decision.REUSE else 0
        known = value is not None and value != float("inf")
        margin = abs(value - slot.trigger.threshold) if known and value is not None and slot.trigger.threshold is not None else None
        choice = (cursor.segment, cursor.moment.step, cursor.branch, cached.recipe.site.name, self._layers, decision.value)
        cached.trace.add(TraceEntry(*choice, value=value if known else None, margin=margin))
        return decision

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
