"""A recipe at work on one take: what the handle to it and all of its model calls have in common."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..recipe.recipe import Recipe
from ..state.state import CacheState
from ..state.storage import Storage
from ..trace.replay import Replay
from ..trace.trace import Trace
from ..triggers import Moment
from .agreement import Shards
from .forecast_errors import ForecastErrors


@dataclass(frozen=True)
class Cursor:
    """Which of a take's model calls is made. at: where its step lies on the recipe's abscissa. frames: the take's latent frames that the call
    shows to the model; None where the caller did not say.
    """

    segment: int
    moment: Moment
    branch: str
    at: float
    frames: range | None = None


@dataclass(frozen=True)
class Session:
    """A recipe at work on one take. replay: decisions to make again, instead of the triggers'. state: what is kept from step to step. trace:
    what was decided so far; errors: its forecast errors that are not reduced yet. overlap: how many latent frames windows share that begin
    elsewhere at each step; None where calls show the same frames at all steps.
    """

    recipe: Recipe
    shards: Shards
    replay: Replay | None
    state: CacheState
    trace: Trace
    errors: ForecastErrors
    overlap: int | None = None

    @classmethod
    def fresh(cls, recipe: Recipe, num_inference_steps: int, storage: Storage, shards: Shards | None = None, replay: Replay | None = None) -> Session:
        """A session with nothing kept and nothing decided. num_inference_steps: of the take. storage: how features are to be kept."""
        shards = shards or Shards()
        state = CacheState(recipe, storage, span=float(num_inference_steps), segments=shards.segments)
        return cls(recipe, shards, replay, state, Trace(recipe.name, num_inference_steps), ForecastErrors())

    def next_take(self, num_inference_steps: int) -> Session:
        """The same at work on another take, of so many steps."""
        fresh = Session.fresh(self.recipe, num_inference_steps, self.state.storage, self.shards, self.replay)
        return replace(fresh, overlap=self.overlap)

    @property
    def num_inference_steps(self) -> int:
        return self.trace.num_inference_steps
