"""Putting a recipe on a diffusers transformer, and the handle to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..model.stack import num_blocks
from ..recipe.read import load_recipe
from ..recipe.recipe import Recipe
from ..sites import Site, SiteRun
from ..state.saving import Alone, Relay, load_state, read_about, save_state
from ..state.state import CacheState
from ..state.storage import PLACES, Storage
from ..trace.replay import Replay
from ..trace.trace import Trace
from ..triggers import Moment
from .call import BRANCH_BY_BRANCH, Call, Cursor
from .clock import Clock
from .forecast_errors import ForecastErrors
from .sampler import velocity_sigmas

Reduce = Callable[[Tensor], Tensor]
_MARK = "_longtake_cache"
_COMPILED = (
    "This transformer was compiled as a whole, with what a cache skips as a part of it; compile its blocks instead, by "
    "transformer.compile_repeated_blocks()."
)


@dataclass(frozen=True)
class Shards:
    """How the shards of a model call reach common sums: each function sums fp64 partial sums in one collective.

    tokens: over the shards of one branch's tokens. branches: over these of both branches, where guidance branches run at once in
    different places; None where one place runs both. is_first: whether this is the first shard of a branch's tokens, whose sums of what all
    shards hold (latents) count for all: unlike machines need not compute the same from the same.
    """

    tokens: Reduce = lambda sums: sums
    branches: Reduce | None = None
    is_first: bool = True


def enable_cache(
    model: Any,
    recipe: str | Path | Recipe,
    *,
    num_inference_steps: int,
    shards: Shards | None = None,
    replay: Replay | None = None,
    place: str = "device",
) -> Cached:
    """Put a cache on a diffusers transformer, on several that take turns (Wan 2.2's experts), or on those of a pipeline.

    Model calls are told apart by their timestep and by diffusers' `cache_context`, as stock pipelines use it, or inside
    `with cached.step(...)`, which says more (segments of a long take).

    model: in a pipeline, each call's own schedule says how many steps it has; num_inference_steps is what a transformer alone is told.
    recipe: a name, a YAML path or a Recipe. shards: for sharded models. replay: make the decisions of a trace again instead of the
    trigger's own. place: where features are kept, `device` or `host`. Raises ValueError, with the mend, for what does not fit: recipes,
    pipelines, schedulers and transformers that the cache cannot work on, other caches that are on already.
    """
    pipeline, transformers = _parts(model)
    if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ValueError(f"num_inference_steps is {num_inference_steps}; it must be a whole number of at least 1.")
    if place not in PLACES:
        raise ValueError(f"place is '{place}'; it must be one of {', '.join(PLACES)}.")
    for transformer in transformers:
        if getattr(transformer, _MARK, None) is not None:
            raise ValueError("This transformer has a cache already; call disable() on it first.")
        _check_others(transformer)
    chosen = load_recipe(recipe).fitted(*_size(transformers[0]))
    chosen.check_steps(num_inference_steps)
    if pipeline is not None and chosen.branches == "joint":
        raise ValueError(BRANCH_BY_BRANCH.format(chosen.name))
    cached = Cached(chosen, num_inference_steps, shards or Shards(), replay, Storage(chosen.dtype, place))
    cached.attach(transformers, pipeline)
    return cached


def _parts(model: Any) -> tuple[Any, list[Any]]:
    """The pipeline, None if a model comes without one, and the transformers."""
    if isinstance(model, (list, tuple)):
        pipeline, found = None, list(model)
    elif isinstance(model, nn.Module):
        pipeline, found = None, [model]
    else:
        pipeline, found = model, [getattr(model, "transformer", None), getattr(model, "transformer_2", None)]
    transformers = [transformer for transformer in found if transformer is not None]
    for transformer in transformers:
        if isinstance(transformer, torch._dynamo.OptimizedModule):
            raise ValueError(_COMPILED)
        if not (isinstance(transformer, nn.Module) and hasattr(transformer, "config")):
            raise ValueError(f"A cache goes on diffusers' transformers, not on a {type(transformer).__name__}; give one, or its pipeline.")
    if not transformers:
        raise ValueError(f"{type(model).__name__} has no transformer to put a cache on; give a diffusers pipeline that has one, or the transformer.")
    return pipeline, transformers


def _check_others(transformer: Any) -> None:
    """Raise ValueError, with the mend, for what a cache cannot work beside: other caches, and compilation of the model as a whole."""
    if transformer._compiled_call_impl is not None:
        raise ValueError(_COMPILED)
    if getattr(transformer, "is_cache_enabled", False):
        raise ValueError("A cache of diffusers is on this transformer; call transformer.disable_cache() first.")
    if getattr(transformer, "_is_cached", False):
        raise ValueError("A cache of cache-dit is on this transformer; call cache_dit.disable_cache(pipe) first.")


def _size(transformer: Any) -> tuple[int, int]:
    """Width and number of blocks, by which recipes know their models; zeros for models whose blocks are not known."""
    try:
        count = num_blocks(transformer)
    except ValueError:
        return 0, 0
    return transformer.config.num_attention_heads * transformer.config.attention_head_dim, count


class _Mark:
    """Says of a transformer that it has a cache. A deep copy of the transformer has none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None


class Cached:
    """A cache at work on a model: tell it the step of each model call, read its trace, reset it between takes."""

    def __init__(self, recipe: Recipe, num_inference_steps: int, shards: Shards, replay: Replay | None, storage: Storage) -> None:
        self.recipe = recipe
        self.num_inference_steps = num_inference_steps
        self.shards = shards
        self.replay = replay
        self.state = CacheState(recipe, storage, span=float(num_inference_steps))
        self.trace, self.errors = Trace(recipe.name, num_inference_steps), ForecastErrors()
        self._transformers: Sequence[nn.Module] = ()
        self._clock: Clock | None = None
        self._cursor: Cursor | None = None
        self._expert = 0
        self._goes_on = False  # from a file
        self._undo: list[Callable[[], None]] = []

    def attach(self, transformers: Sequence[nn.Module], pipeline: Any = None) -> None:
        """pipeline: the stock pipeline that makes the calls; None for loops of one's own. Raises ValueError as `enable_cache` does."""
        self._transformers = transformers
        self._clock = Clock(self.num_inference_steps, pipeline, self._start_take)
        try:
            for expert, transformer in enumerate(transformers):
                for index, part in enumerate(self.recipe.parts):
                    site = part.site.build()
                    self._undo.append(site.attach(transformer, partial(self._begin, expert, index, site)))
                setattr(transformer, _MARK, _Mark())
                self._undo.append(partial(delattr, transformer, _MARK))
        except ValueError:
            self.disable()
            raise
        self._undo.extend(self._clock.attach(transformers))

    @contextmanager
    def step(self, index: int, timestep: Tensor | float, branch: str = "both", segment: int = 0) -> Iterator[None]:
        """Name the model call inside: step `index` of the take (0-based), branch `cond`, `uncond` or `both`, and its segment.

        Raises ValueError for a step that the take does not have.
        """
        if not 0 <= index < self.num_inference_steps:
            last = self.num_inference_steps - 1
            raise ValueError(f"index is {index}, and the take's steps are 0 to {last}; count from 0, and tell enable_cache its num_inference_steps.")
        self._cursor = self._point_at(index, float(timestep), branch, segment)
        try:
            yield
        finally:
            self._cursor = None

    def _point_at(self, index: int, timestep: float, branch: str, segment: int = 0) -> Cursor:
        moment = Moment(index, timestep, self.num_inference_steps)
        # sigma is counted from noise to film in units of an average step, so that forecasts look as far ahead as with steps.
        at = float(index) if self.recipe.abscissa == "step" else self.num_inference_steps * (1 - timestep / 1000)
        return Cursor(segment, moment, branch, at)

    def finish(self) -> Trace:
        """Complete the take's trace (forecast errors are reduced here, in one collective, so call it on every shard)."""
        together = self.recipe.branches == "joint" and self.shards.branches
        self.errors.write_to(self.trace, together or self.shards.tokens)
        return self.trace

    def save(self, path: Path, relay: Relay | None = None) -> None:
        """Write what is kept, and the trace so far, as a safetensors file, between two steps. relay: for sharded models, where every
        shard calls it and the first one writes.
        """
        relay = relay or Alone()
        places = relay.collect(({"trace": self.finish().to_json()}, {}))
        trace = Trace.joined([Trace.from_json(said["trace"]) for said, _ in places])
        about = {"recipe": json.dumps(self.recipe.deciding()), "branches": self._arrangement, "trace": trace.to_json()}
        save_state(self.state, path, relay, about)

    def load(self, path: Path, relay: Relay | None = None, device: torch.device | None = None) -> None:
        """Go on from a file that `save` wrote, on any number of shards. Raises ValueError, with nothing changed, if another recipe wrote
        it, or a gang that called a joint decision's branches in another way. The calls that follow must be made inside `step`: the file is
        of the midst of a take, and calls are counted from its start.
        """
        about = read_about(path)
        if json.loads(about["recipe"]) != self.recipe.deciding():
            raise ValueError(f"The cache in '{path}' was kept by another recipe than '{self.recipe.name}'; go on with the one that it was made with.")
        if about["branches"] != self._arrangement:
            raise ValueError(f"The cache in '{path}' decided {about['branches']}, this gang does {self._arrangement}; keep parallel.cfg_degree.")
        trace = Trace.from_json(about["trace"])
        if trace.num_inference_steps != self.num_inference_steps:
            raise ValueError(
                f"The cache in '{path}' is of a take of {trace.num_inference_steps} steps, this one has {self.num_inference_steps}; make them equal."
            )
        self.reset()
        load_state(self.state, path, relay or Alone(), device or torch.device("cpu"))
        self.trace, self._goes_on = trace, True

    @property
    def _arrangement(self) -> str:
        """How branches that decide together are called: the state of such decisions cannot move between the two."""
        together = self.recipe.branches != "each" and self.shards.branches is not None
        return "with both branches at once" if together else "branch by branch"

    def reset(self) -> None:
        """Forget all; call it before each take of a loop of your own."""
        if self._clock is not None:
            self._clock.reset()
        self._forget()

    def check_sampler(self, scheduler: Any) -> None:
        """Raise ValueError, with the mend, for a diffusers scheduler that the recipe's forecasts do not fit."""
        sigmas = velocity_sigmas(scheduler)
        for part in self.recipe.parts:
            part.predictor.build().check_sampler(sigmas)

    def _start_take(self, num_inference_steps: int, scheduler: Any = None) -> None:
        """A pipeline's next call, or a loop's next take, has begun. Raises ValueError if the recipe was made for other steps or samplers."""
        if self._goes_on:
            raise ValueError(
                "The cache goes on from a file in the midst of a take, and this call does not say its step; make it inside "
                "`with cached.step(index, timestep, branch=...)`, or call cached.reset() if it begins a new take."
            )
        self.recipe.check_steps(num_inference_steps)
        if scheduler is not None:
            self.check_sampler(scheduler)
        if num_inference_steps != self.num_inference_steps or self.trace.entries:
            self.num_inference_steps = num_inference_steps
            self._forget()

    def _forget(self) -> None:
        self.state.reset(span=float(self.num_inference_steps))
        self.trace, self.errors = Trace(self.recipe.name, self.num_inference_steps), ForecastErrors()
        self._goes_on = False

    def disable(self) -> None:
        """Give the model its own calls back; a second time it does nothing."""
        while self._undo:
            self._undo.pop()()
        self.state.reset()

    def _begin(self, expert: int, part: int, site: Site, units: Sequence[range], num_text: int | None) -> SiteRun:
        """What one expert's features say of the other's is nothing: a change of expert starts anew."""
        _check_others(self._transformers[expert])
        if expert != self._expert:
            self.state.reset()
            self._expert = expert
        assert self._clock is not None, "a call before attach()"
        cursor = self._cursor or self._point_at(*self._clock.now())
        return Call(self, cursor, part, site, units, num_text)
