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

from .call import Call, Cursor
from .clock import Clock
from .recipe import Recipe, load_recipe
from .saving import Alone, Relay, load_state, save_state
from .sites import Site, SiteRun
from .stack import block_lists
from .state import CacheState
from .storage import Storage
from .trace import Replay, Trace
from .triggers import Moment

Reduce = Callable[[Tensor], Tensor]
_MARK = "_longtake_cache"


@dataclass(frozen=True)
class Shards:
    """How the shards of a model call reach common sums: each function sums fp64 partial sums in one collective.

    tokens: over the shards of one branch's tokens. branches: over these of both branches, where guidance branches run at once in
    different places; None where one place runs both.
    """

    tokens: Reduce = lambda sums: sums
    branches: Reduce | None = None


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

    recipe: a name, a YAML path or a Recipe. shards: for sharded models. replay: make the decisions of a trace again instead of the
    trigger's own. place: where features are kept, `device` or `host`. Raises ValueError if the recipe does not fit.
    """
    found = model if isinstance(model, (list, tuple)) else (getattr(model, "transformer", model), getattr(model, "transformer_2", None))
    transformers = [transformer for transformer in found if transformer is not None]
    if any(hasattr(transformer, _MARK) for transformer in transformers):
        raise ValueError("This transformer has a cache already; call disable() on it first.")
    chosen = load_recipe(recipe).fitted(*_size(transformers[0]))
    cached = Cached(chosen, num_inference_steps, shards or Shards(), replay, Storage(chosen.dtype, place))
    cached.attach(transformers)
    return cached


def _size(transformer: Any) -> tuple[int, int]:
    """Width and number of blocks, by which recipes know their models."""
    config, num_blocks = transformer.config, sum(map(len, block_lists(transformer).values()))
    return config.num_attention_heads * config.attention_head_dim, num_blocks


class Cached:
    """A cache at work on a model: tell it the step of each model call, read its trace, reset it between takes."""

    def __init__(self, recipe: Recipe, num_inference_steps: int, shards: Shards, replay: Replay | None, storage: Storage) -> None:
        self.recipe = recipe
        self.num_inference_steps = num_inference_steps
        self.shards = shards
        self.replay = replay
        self.state = CacheState(recipe, storage, span=float(num_inference_steps))
        self.trace = Trace(recipe.name, num_inference_steps)
        self._cursor: Cursor | None = None
        self._expert = 0
        self._undo: list[Callable[[], None]] = []

    def attach(self, transformers: Sequence[nn.Module]) -> None:
        try:
            for expert, transformer in enumerate(transformers):
                for index, part in enumerate(self.recipe.parts):
                    site = part.site.build()
                    self._undo.append(site.attach(transformer, partial(self._begin, expert, index, site)))
                setattr(transformer, _MARK, True)
                self._undo.append(partial(delattr, transformer, _MARK))
        except ValueError:
            self.disable()
            raise
        self._clock = Clock(transformers, self.num_inference_steps, self.reset)
        self._undo.append(self._clock.detach)

    @contextmanager
    def step(self, index: int, timestep: Tensor | float, branch: str = "both", segment: int = 0) -> Iterator[None]:
        """Name the model call inside: step `index` of the take (0-based), branch `cond`, `uncond` or `both`, and its segment."""
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
        self.trace.finish(self.shards.tokens)
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
        """Go on from a file that `save` wrote, on any number of shards. Raises ValueError if another recipe wrote it, or a gang that
        called a joint decision's branches in another way.
        """
        about = load_state(self.state, path, relay or Alone(), device or torch.device("cpu"))
        if json.loads(about["recipe"]) != self.recipe.deciding():
            raise ValueError(f"The cache in '{path}' was kept by another recipe than '{self.recipe.name}'; go on with the one that it was made with.")
        if about["branches"] != self._arrangement:
            raise ValueError(f"The cache in '{path}' decided {about['branches']}, this gang does {self._arrangement}; keep parallel.cfg_degree.")
        self.trace = Trace.from_json(about["trace"])

    @property
    def _arrangement(self) -> str:
        """How branches that decide together are called: the state of such decisions cannot move between the two."""
        together = self.recipe.branches != "each" and self.shards.branches is not None
        return "with both branches at once" if together else "branch by branch"

    def reset(self) -> None:
        """Forget all; call it before each take."""
        self.state.reset()
        self.trace = Trace(self.recipe.name, self.num_inference_steps)

    def disable(self) -> None:
        """Give the model its own calls back; a second time it does nothing."""
        while self._undo:
            self._undo.pop()()
        self.state.reset()

    def _begin(self, expert: int, part: int, site: Site, units: Sequence[range], num_text: int | None) -> SiteRun:
        """What one expert's features say of the other's is nothing: a change of expert starts anew."""
        if expert != self._expert:
            self.state.reset()
            self._expert = expert
        cursor = self._cursor or self._point_at(*self._clock.now())
        return Call(self, cursor, part, site, units, num_text)
