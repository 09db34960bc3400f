"""The handle to a cache at work on a model: it is told the calls, has the trace, saves and loads what is kept, and takes the cache off."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..model.beside_others import check_others, mark
from ..model.whole import Whole
from ..recipe.calibration import Sampling
from ..recipe.recipe import Recipe
from ..sampler.flow_shift import flow_shift
from ..sampler.linear_map import linear_map
from ..sites import Site, SiteRun
from ..state.saving import Alone, PackedState, Relay, load_state, pack_state, read_about
from ..state.state import CacheState
from ..trace.trace import Trace
from ..triggers import Moment
from .call import Call
from .clock import Clock
from .moving_call import MovingCall
from .session import Cursor, Session


class Cached:
    """A cache at work on a model: tell it the step of each model call, read its trace, reset it between takes."""

    def __init__(self, session: Session) -> None:
        self.session = session  # of the running take
        self._whole = None if session.overlap is None else Whole()
        self._transformers: Sequence[nn.Module] = ()
        self._clock: Clock | None = None
        self._cursor: Cursor | None = None
        self._expert = 0
        self._goes_on = False  # from a file that was loaded in the midst of a take
        self._undo: list[Callable[[], None]] = []

    @property
    def recipe(self) -> Recipe:
        return self.session.recipe

    @property
    def trace(self) -> Trace:
        """What was decided so far; forecast errors are in it from `finish` on."""
        return self.session.trace

    @property
    def state(self) -> CacheState:
        return self.session.state

    def attach(self, transformers: Sequence[nn.Module], pipeline: Any = None) -> None:
        """pipeline: the stock pipeline that makes the calls; None for loops of one's own. Raises ValueError as `enable_cache` does."""
        self._transformers = transformers
        self._clock = Clock(self.session.num_inference_steps, pipeline, self._start_take)
        self._put_on(self._clock)

    def _put_on(self, clock: Clock) -> None:
        transformers = self._transformers
        try:
            for expert, transformer in enumerate(transformers):
                for index, part in enumerate(self.recipe.parts):
                    site = part.site.build()
                    model = transformer if site.sharded or self._whole is None else self._whole
                    self._undo.append(site.attach(model, partial(self._begin, expert, index, site)))
                self._undo.append(mark(transformer))
        except ValueError:
            self.disable()
            raise
        self._undo.extend(clock.attach(transformers))

    @contextmanager
    def step(self, index: int, timestep: Tensor | float, branch: str = "both", segment: int = 0, frames: range | None = None) -> Iterator[None]:
        """Name the model call inside: step `index` of the take (0-based), branch `cond`, `uncond` or `both`, and its segment.

        frames: the latent frames of the take that the call renders, where it does not render all: the segment's features are kept for these
        frames, and reused for no others; where windows shift (`enable_cache`'s overlap), features go on with their frames. Raises ValueError
        for a step that the take does not have, and for a segment whose features are kept for other frames.
        """
        last = self.session.num_inference_steps - 1
        if not 0 <= index <= last:
            raise ValueError(f"index is {index}, and the take's steps are 0 to {last}; count from 0, and tell enable_cache its num_inference_steps.")
        if self.session.overlap is None:
            self.state.check_frames(segment, frames)
        elif frames is None:
            raise ValueError(f"Windows shift here, and segment {segment} does not say its latent frames; give them, as range(first, last + 1).")
        around, self._cursor = self._cursor, replace(self._point_at(index, float(timestep), branch), segment=segment, frames=frames)
        try:
            yield
        finally:
            self._cursor = around

    def fused(self, latents: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """What `predict` makes of the latents of all of a step's calls together, or what is kept or forecast of that: one decision for all of them.
        Called inside `step`, which names the frames of all; `predict` may make the calls inside steps of their own.
        """
        assert self._whole is not None, "fused() of a cache that was not told of it"
        made: Tensor = self._whole(latents, predict)[0]
        return made

    def _point_at(self, index: int, timestep: float, branch: str) -> Cursor:
        steps = self.session.num_inference_steps
        # The abscissa sigma runs from 0 at noise to `steps` at film, so that forecasts look as far ahead as they do with steps.
        at = float(index) if self.recipe.abscissa == "step" else steps * (1 - timestep / 1000)
        return Cursor(0, Moment(index, timestep, steps), branch, at)

    def finish(self) -> Trace:
        """Complete the take's trace (forecast errors are reduced here, in one collective, so call it on every shard)."""
        session = self.session
        together = session.shards.branches if self.recipe.branches == "joint" else None
        session.errors.write_to(session.trace, together or session.shards.tokens)
        return session.trace

    def save(self, path: Path, relay: Relay | None = None) -> None:
        """Write what is kept, and the trace so far, as a safetensors file, between two steps. relay: for sharded models, where every
        shard calls it and the first one writes.
        """
        if (packed := self.pack(relay)) is not None:
            packed.write(path)

    def pack(self, relay: Relay | None = None) -> PackedState | None:
        """What `save` writes, to be written later, in any thread: None on the shards that write nothing."""
        relay = relay or Alone()
        traces = [Trace.from_json(said["trace"]) for said, _ in relay.collect(({"trace": self.finish().to_json()}, {}))]
        trace = Trace.joined(traces).to_json() if traces else ""
        about = {"recipe": json.dumps(self.recipe.deciding()), "branches": self._arrangement, "trace": trace, "expert": str(self._expert)}
        return pack_state(self.state, relay, about)

    def load(self, path: Path, relay: Relay | None = None, device: torch.device | None = None) -> None:
        """Go on from a file that `save` wrote, on any number of shards. Raises ValueError, with nothing changed, as `check_saved` does. The calls
        that follow must be made inside `step`: the file is from the midst of a take, and other calls are counted from its start.
        """
        about = self.check_saved(path)
        self.reset()
        load_state(self.state, path, relay or Alone(), device or torch.device("cpu"))
        self.session, self._goes_on, self._expert = replace(self.session, trace=Trace.from_json(about["trace"])), True, int(about["expert"])

    def check_saved(self, path: Path) -> dict[str, str]:
        """What `save` wrote about the state. Raises ValueError if the file is damaged, if another recipe wrote it, if it is of a take of another
        number of steps, or of a gang that called a joint decision's branches in another way.
        """
        about = read_about(path)
        if json.loads(about["recipe"]) != self.recipe.deciding():
            raise ValueError(f"The cache in '{path}' was kept by another recipe than '{self.recipe.name}'; go on with the one that it was made with.")
        if about["branches"] != self._arrangement:
            raise ValueError(f"The cache in '{path}' decided {about['branches']}, this gang does {self._arrangement}; keep parallel.cfg_degree.")
        made, steps = Trace.from_json(about["trace"]).num_inference_steps, self.session.num_inference_steps
        if made != steps:
            raise ValueError(f"The cache in '{path}' is of a take of {made} steps, this one has {steps}; make them equal.")
        return about

    @property
    def _arrangement(self) -> str:
        """How branches that decide together are called: the state of such decisions cannot move between the two."""
        together = self.recipe.branches != "each" and self.session.shards.branches is not None
        return "with both branches at once" if together else "branch by branch"

    def reset(self) -> None:
        """Forget all; call it before each take of a loop of your own."""
        if self._clock is not None:
            self._clock.reset()
        self._begin_take(self.session.num_inference_steps)

    def next_round(self) -> None:
        """The latent frames that follow are other ones, from their noise on: forget what is kept of those before, but for what the recipe keeps at a
        border, and go on with the same trace. Called on every shard, between two steps.
        """
        self.finish()
        self.state.next_round()

    def check_sampler(self, scheduler: Any) -> None:
        """Raise ValueError, with the mend, for a diffusers scheduler that the recipe's forecasts do not fit."""
        predictors = [part.predictor.build() for part in self.recipe.parts]
        asking = [predictor for predictor in predictors if predictor.needs_sampler]
        if asking:
            sampler = linear_map(scheduler)
            for predictor in asking:
                predictor.check_sampler(sampler)

    def _start_take(self, num_inference_steps: int, pipeline: Any = None) -> None:
        """A pipeline's next call, or a loop's next take, has begun. Raises ValueError if the recipe was made for
        another number of steps, sampler or guidance.
        """
        if self._goes_on:
            raise ValueError(
                "The cache goes on from a file in the midst of a take, and this call does not say its step; make it inside "
                "`with cached.step(index, timestep, branch=...)`, or call cached.reset() if it begins a new take."
            )
        self.recipe.check_steps(num_inference_steps)
        if pipeline is not None:
            if self.recipe.calibration:
                self.recipe.calibration.check_sampling(sampling_of(pipeline), self.recipe.name)
            self.check_sampler(pipeline.scheduler)
        if num_inference_steps != self.session.num_inference_steps or self.trace.entries:
            self._begin_take(num_inference_steps)

    def _begin_take(self, num_inference_steps: int) -> None:
        self.session, self._goes_on = self.session.next_take(num_inference_steps), False

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let the calls inside be the model's own, which are no part of any step and stand for nothing that is kept."""
        assert self._clock is not None, "aside() before attach()"
        self._take_off()
        try:
            yield
        finally:
            self._put_on(self._clock)

    def disable(self) -> None:
        """Give the model its own calls back; a second time it does nothing."""
        self._take_off()
        self.state.reset()

    def _take_off(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _begin(self, expert: int, part: int, site: Site, units: Sequence[range], num_text: int | None) -> SiteRun:
        """Called by a site when a model call begins. One expert's features say nothing of another's: when the experts change, what is kept
        is dropped.
        """
        check_others(self._transformers[expert])
        if expert != self._expert:
            self.state.reset()
            self._expert = expert
        cursor = self._here()  # which may begin another take, and with it another session
        kind = MovingCall if self.session.overlap is not None and site.sharded else Call
        return kind(self.session, cursor, part, site, units, num_text)

    def _here(self) -> Cursor:
        """Of the running call."""
        assert self._clock is not None, "a call before attach()"
        return self._cursor or self._point_at(*self._clock.now())


def sampling_of(pipeline: Any) -> Sampling:
    """Of the call that a stock pipeline is making. Wan 2.2's second expert has a guidance scale of its own, which may be the first one's."""
    scheduler = pipeline.scheduler
    name = type(scheduler).__name__
    scales = (pipeline.guidance_scale, getattr(pipeline, "_guidance_scale_2", None))
    return Sampling(name, flow_shift(name, scheduler.config), tuple(scale for scale in scales if scale is not None))
