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
from .stack import CachedStack, RunElsewhere, block_lists
from .state import CacheState, Slot
from .trace import Trace, TraceEntry

Reduce = Callable[[Tensor], Tensor]


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
    lists = block_lists(transformer)
    if not lists:
        raise ValueError(f"{type(transformer).__name__} has no block list to put a cache on.")
    if any(isinstance(blocks, CachedStack) for blocks in lists.values()):
        raise ValueError("This transformer has a cache already; call disable() on it first.")
    cached = Cached(load_recipe(recipe), num_inference_steps, reduce)
    cached.attach(transformer, lists)
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

    def attach(self, transformer: nn.Module, lists: dict[str, nn.ModuleList]) -> None:
        self._site.check(sum(map(len, lists.values())))
        first, *further = lists
        setattr(transformer, first, CachedStack(lists[first], [lists[name] for name in further], self._run))
        for name in further:
            setattr(transformer, name, RunElsewhere(lists[name]))

        def detach() -> None:
            for name, original in lists.items():
                setattr(transformer, name, original)

        self._detach = detach

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

    def _run(self, blocks: list[Block], hidden_states: Tensor, num_text: int) -> Tensor:
        if self._cursor is None:
            raise ValueError("The transformer was called outside `with cached.step(index, timestep, branch=...)`, so its cache has no step.")
        slot = self.state.slot(self._cursor.segment, self._cursor.branch)
        call = _Call(self, self._cursor, slot, self._site.layers(len(blocks)), hidden_states.shape[1] - num_text)
        return self._site.run(blocks, hidden_states, call)


class _Call:
    """One model call: what a site asks for (SiteRun). Signals are of the first `num_tokens` tokens, without the text behind them."""

    def __init__(self, cached: Cached, cursor: _Cursor, slot: Slot, layers: str, num_tokens: int) -> None:
        self._cached, self._cursor, self._slot, self._layers, self._num_tokens = cached, cursor, slot, layers, num_tokens

    def decide(self, probe: Tensor) -> Decision:
        """One reduction a decision whatever it will be: a branch that guards a collective is decided from reduced data alone."""
        cached, cursor, slot = self._cached, self._cursor, self._slot
        signal = slot.trigger.signal(probe[:, : self._num_tokens])
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
            video = slice(self._num_tokens)
            self._cached.trace.add_forecast(Signal.relative_l1(forecast[:, video], feature[:, video]).sums)
        self._slot.predictor.push(self._cursor.step, feature)

    def recall(self) -> Tensor:
        return self._slot.predictor.predict(self._cursor.step)
