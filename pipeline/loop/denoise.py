"""The denoising loop of one round of a take on one rank. Knows families, timelines and caches; knows nothing of files or Ray."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from ...cache import Cached
from ...parallel.groups.errors import CollectiveError
from ...parallel.groups.mesh import Mesh
from ..checkpoint.card import ModelCard
from ..families import Family
from ..families.family import Prompt
from ..noise import NOISES
from ..take import Take
from ..timelines.timeline import Call, Round, centre
from .fuse import fuse
from .timing import clock

BRANCHES = ("cond", "uncond")


@dataclass(frozen=True)
class Step:
    """One finished step of a round, of as many as the scheduler has timesteps (a second-order one has two a step).

    velocity: the guided and fused one, [1, channels, latent frames of the round, height, width]; clean: the clean latents that it points to. Of a
    banded take: those frames that this rank denoises.
    """

    index: int
    num_inference_steps: int
    velocity: Tensor
    clean: Tensor


class Denoising:
    """Iterate to run a round's steps; `latents` [1, channels, latent frames, height, width] (fp32) are then final. They are those of the round, on
    every rank alike; of a banded take, whose ranks denoise its segments apart, those of `frames`. Raises FloatingPointError after the last step, on
    every rank, if they are not finite.

    index: of the next step; a snapshot may set it, `latents` and `scheduler` to where another gang stopped. frames: of the take, whose latents these
    are. encode_seconds: spent on encoding the texts. cached: the cache on this family's transformer, with nothing of another round; None where there
    is none. mesh: the gang; calls and guidance branches are spread over its axes here, tokens inside the family. of: the round, the take's only one
    if left out; done: the latents of those frames that its calls show as context, each [1, channels, 1, height, width].
    """

    def __init__(
        self, family: Family, take: Take, cached: Cached | None, mesh: Mesh, of: Round | None = None, done: Mapping[int, Tensor] | None = None
    ) -> None:
        card, stride = family.card, family.card.spatial_stride
        self.family, self.take, self.cached, self.mesh = family, take, cached, mesh
        self.round = of or _only_round(take, card)
        self.frames = self._lay_out()
        began = clock(family.device)
        self._texts = {call: self._read(call) for call in self.round.calls}
        self._prompts = {texts: self._encode(texts) for texts in dict.fromkeys(self._texts.values())}
        self._is_guided = take.is_guided(card)
        self._negative = family.encode_prompt(take.negative_prompt) if self._is_guided else {}
        self.encode_seconds = clock(family.device) - began
        self._both = {
            texts: {name: torch.cat((prompt[name], torch.cat([rest] * len(texts.distinct), dim=1))) for name, rest in self._negative.items()}
            for texts, prompt in self._prompts.items()
        }
        self._context = {call: torch.cat([done[frame] for frame in call.context], dim=2) for call in self.round.calls if call.context and done}
        self.scheduler = family.scheduler(take)
        if cached is not None:
            cached.check_sampler(self.scheduler)
        self.write_context()
        draw = NOISES[take.noise]
        noise = draw(take.seed_of(self.round.frames, card), self.frames, card.latent_channels, take.height // stride, take.width // stride)
        self.latents = noise.to(family.device)
        self.index = 0

    def _lay_out(self) -> range:
        """The frames that this rank denoises: all of the round, or those of its segments."""
        banded = [call.bands for call in self.round.calls if call.bands]
        if not banded:
            return self.round.frames
        assert self.family.bands is not None, "a banded take on a model that is not bound to attend by bands"
        self.family.bands.lay_out(*banded)
        return self.family.bands.frames

    def _read(self, call: Call) -> _Texts:
        """The texts of a call: of a banded one, those of this rank's segments."""
        own = self.family.bands.own if call.bands and self.family.bands else ()
        spans = [band.frames for band in own] or [call.frames]
        texts = [self.take.prompt_at(centre(span), self.family.card) for span in spans]
        distinct = tuple(dict.fromkeys(texts))
        return _Texts(distinct, tuple(distinct.index(text) for text in texts) if len(distinct) > 1 else ())

    def _encode(self, texts: _Texts) -> Prompt:
        encoded = [self.family.encode_prompt(text) for text in texts.distinct]
        return {name: torch.cat([prompt[name] for prompt in encoded], dim=1) for name in encoded[0]}

    def whole(self) -> Tensor:
        """The latents of all of the round, on every rank alike."""
        bands = self.family.bands if self.round.is_banded else None
        return self.latents if bands is None else bands.gather_frames(self.latents)

    @torch.no_grad()
    def write_context(self) -> None:
        """Compute what the round's tokens will attend to of an isolated context: by calls that no cache ever stands in for. Once is enough."""
        store = self.family.context
        if store is None:
            return
        store.drop()
        zero = self.scheduler.timesteps.new_zeros(())
        with self.cached.aside() if self.cached and self._context else nullcontext():
            for call, clean in self._context.items():
                for branch in self._branches:
                    shown = clean.expand(2 if branch == "both" else 1, -1, -1, -1, -1)
                    with store.write(branch):
                        self.family.velocity(shown, zero, self._prompt(branch, call), self.take.guidance_scale)

    @property
    def _branches(self) -> tuple[str, ...]:
        """Those that this rank calls, one after the other."""
        if not self._is_guided:
            return BRANCHES[:1]
        if self.mesh.cfg.size == 2:
            return (BRANCHES[self.mesh.cfg.rank],)
        return ("both",) if self.cached and self.cached.recipe.branches == "joint" else BRANCHES

    def fork(self, cached: Cached | None = None) -> Denoising:
        """A copy, made between two steps, whose steps leave this one as it is. cached: the copy's own cache."""
        other = copy(self)
        other.scheduler, other.cached = deepcopy(self.scheduler), cached
        return other

    def __iter__(self) -> Iterator[Step]:
        while self.index < len(self.scheduler.timesteps):
            index, timestep = self.index, self.scheduler.timesteps[self.index]
            try:
                velocity, clean = self._advance(index, timestep)
            except CollectiveError as error:
                raise error.at(f"step {index + 1}") from error
            self.index += 1
            yield Step(index, len(self.scheduler.timesteps), velocity, clean)
        self._check_finite()

    def _check_finite(self) -> None:
        """Raise FloatingPointError if a rank's latents are not finite. Summed over the gang, so that all ranks raise or none."""
        if self.mesh.gang.sum((~self.latents.isfinite()).sum(dtype=torch.float64)) > 0:
            raise FloatingPointError(
                "the take's latents are not finite (nan or inf); lower guidance_scale, check flow_shift, or set model.dtype to bfloat16 or "
                "float32 where it is float16"
            )

    @torch.no_grad()
    def _advance(self, index: int, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Move `latents` one step further; returns the step's velocity and the clean latents that it points to."""
        velocity = self._guided(index, timestep)
        clean = self.latents - self.scheduler.sigmas[index].to(self.latents.device) * velocity
        self.latents = self.scheduler.step(velocity, timestep, self.latents, return_dict=False)[0]
        return velocity, clean

    def _guided(self, index: int, timestep: Tensor) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598): one branch after the other, cond first as diffusers does; or, at cfg_degree 2,
        one branch on each half of the gang and one exchange of latents; or both in a batch, where the cache decides from both before either runs.
        """
        computed = [self._fused(branch, index, timestep) for branch in self._branches]
        if not self._is_guided:
            return computed[0]
        if self.mesh.cfg.size == 2:
            cond, uncond = self.mesh.cfg.all_gather(computed[0], (1, 1), dim=0).chunk(2)
        else:
            cond, uncond = computed if len(computed) == 2 else computed[0].chunk(2)
        return uncond + self.take.guidance_scale * (cond - uncond)

    def _fused(self, branch: str, index: int, timestep: Tensor) -> Tensor:
        """One branch's velocity for the whole round, fused over its calls; a batch of both for branch `both`."""

        def predict(latents: Tensor, call: Call) -> Tensor:
            prompt, scale = self._prompt(branch, call), self.take.guidance_scale
            reading = () if branch == "uncond" else self._texts[call].by_segment
            with (
                self.cached.step(index, timestep, branch, call.segment, call.frames) if self.cached else nullcontext(),
                self.family.bands.reading(reading) if self.family.bands else nullcontext(),
            ):
                if not call.context:
                    return self.family.velocity(latents, timestep, prompt, scale)
                if self.family.context is not None:
                    with self.family.context.read(branch, len(call.context)):
                        return self.family.velocity(latents, timestep, prompt, scale)
                shown = torch.cat((self._context[call].expand(len(latents), -1, -1, -1, -1), latents), dim=2)
                return self.family.velocity(shown, timestep, prompt, scale, len(call.context))[:, :, len(call.context) :]

        def fused(latents: Tensor) -> Tensor:
            return fuse(self.round, latents, predict, self.mesh.window, index)

        latents = self.latents.expand(2 if branch == "both" else 1, -1, -1, -1, -1)
        if self.cached is None or not self.round.by_step:
            return fused(latents)
        with self.cached.step(index, timestep, branch, frames=self.round.frames):
            return self.cached.fused(latents, fused)

    def _prompt(self, branch: str, call: Call) -> Prompt:
        """The encoded text of a call; for branch `both`, those of both branches in a batch."""
        if branch == "both":
            return self._both[self._texts[call]]
        return self._prompts[self._texts[call]] if branch == "cond" else self._negative


@dataclass(frozen=True)
class _Texts:
    """What calls are given to read. distinct: texts, one after the other. by_segment: where there are several, which of them each segment of this
    rank attends to.
    """

    distinct: tuple[str, ...]
    by_segment: tuple[int, ...] = ()


def _only_round(take: Take, card: ModelCard) -> Round:
    [only] = take.timeline_for(card).rounds
    return only
