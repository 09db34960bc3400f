"""Putting a recipe on a diffusers transformer, and the handle to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from .decision import Decision, Signal, ratio
from .recipe import Recipe, load_recipe
from .sites import Site
from .sites.site import Block
from .stack import CachedStack
from .state import CacheState, Slot
from .trace import Trace, TraceEntry

Reduce = Callable[[Tensor], Tensor]


def enable_cache(
    transformer: nn.Module,
    recipe: str | Path | Recipe,
    *,
    num_inference_steps: int,
    reduce: Reduce = lambda sums: sums,
    blocks: str = "blocks",
) -> Cached:
    """Put a cache on a transformer whose block list is its attribute `blocks`.

    recipe: a name, a YAML path or a Recipe. reduce: sums fp64 partial sums over all shards of the tokens (one collective), for
    sharded models. Raises ValueError if the recipe does not fit. Run each model call inside `with cached.step(...)`.
    """
    original = getattr(transformer, blocks, None)
    if not isinstance(original, nn.ModuleList):
        raise ValueError(f"{type(transformer).__name__} has no block list '{blocks}' to put a cache on.")
    if isinstance(original, CachedStack):
        raise ValueError("This transformer has a cache already; call disable() on it first.")
    cached = Cached(load_recipe(recipe), num_inference_steps, reduce)
    cached.attach(transformer, blocks, original)
    return cached


@dataclass(frozen=True)
class _Cursor:
    segment: int
    step: int
    branch: str


class Cached:
    """A cache at work on one transformer: tell it the step of each model call, read its trace, reset it between takes."""

    def __init__(self, recipe: Recipe, num_inference_steps: int, reduce: Reduce) -> None:
        self.recipe = recipe
        self.num_inference_steps = num_inference_steps
        self.state = CacheState(recipe)
        self.trace = Trace(recipe.name)
        self._reduce = reduce
        self._site: Site = recipe.site.build()
        self._cursor: _Cursor | None = None
        self._detach: Callable[[], None] = lambda: None

    def attach(self, transformer: nn.Module, name: str, original: nn.ModuleList) -> None:
        self._site.check(len(original))
        setattr(transformer, name, CachedStack(original, self._run))
        self._detach = lambda: setattr(transformer, name, original)

    @contextmanager
    def step(self, index: int, timestep: Tensor | float, branch: str = "both", segment: int = 0) -> Iterator[None]:
        """Name the model call inside: step `index` of the take (0-based), branch `cond`, `uncond` or `both`, and its segment."""
        self._cursor = _Cursor(segment, index, branch)
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
        """Give the transformer its own block list back."""
        self._detach()
        self.state.reset()

    def _run(self, blocks: list[Block], hidden_states: Tensor) -> Tensor:
        if self._cursor is None:
            raise ValueError("The transformer was called outside `with cached.step(index, timestep, branch=...)`, so its cache has no step.")
        call = _Call(self, self._cursor, self.state.slot(self._cursor.segment, self._cursor.branch), self._site.layers(len(blocks)))
        return self._site.run(blocks, hidden_states, call)


class _Call:
    """One model call: what a site asks for (SiteRun)."""

    def __init__(self, cached: Cached, cursor: _Cursor, slot: Slot, layers: str) -> None:
        self._cached, self._cursor, self._slot, self._layers = cached, cursor, slot, layers

    def decide(self, probe: Tensor) -> Decision:
        """One reduction a decision whatever it will be: a branch that guards a collective is decided from reduced data alone."""
        cached, cursor, slot = self._cached, self._cursor, self._slot
        signal = slot.trigger.signal(probe)
        value = None if signal is None else ratio(cached._reduce(signal.sums))
        wish = slot.trigger.decide(cursor.step, value)
        decision = cached.recipe.guards.apply(wish, cursor.step, cached.num_inference_steps, slot.reused_run)
        if not slot.predictor.ready:
            decision = Decision.COMPUTE
        slot.trigger.settle(decision)
        slot.reused_run = slot.reused_run + 1 if decision is Decision.REUSE else 0
        known = value is not None and value != float("inf")
        margin = abs(value - slot.trigger.threshold) if known and value is not None and slot.trigger.threshold is not None else None
        choice = (cursor.segment, cursor.step, cursor.branch, cached.recipe.site.name, self._layers, decision.value)
        cached.trace.add(TraceEntry(*choice, value=value if known else None, margin=margin))
        return decision

    def keep(self, feature: Tensor) -> None:
        if self._slot.predictor.ready:
            forecast = self._slot.predictor.predict(self._cursor.step)
            self._cached.trace.add_forecast(Signal.relative_l1(forecast, feature).sums)
        self._slot.predictor.push(self._cursor.step, feature)

    def recall(self) -> Tensor:
        return self._slot.predictor.predict(self._cursor.step)
