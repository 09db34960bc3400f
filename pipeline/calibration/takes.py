"""The calibration takes in longtake's own loop, as plans and schedules are chosen on them (cache/calibration/takes.py).

What is looked at of a take is its last round: its only one, but for rollouts, whose earlier chunks are rendered without a cache to be its context.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ...cache import Cached, Schedule
from ...cache.calibration.takes import Played, listening
from ..loop.denoise import Denoising
from ..loop.render import Renderer
from ..loop.rounds import Rounds
from ..take import Take


def context_of(renderer: Renderer, take: Take) -> dict[int, Tensor]:
    """By latent frame, what the last round of a take shows as context."""
    renderer.bind_for(take)
    rounds = Rounds(renderer.family, take, None, renderer.mesh)
    for _ in rounds.timeline.rounds[1:]:
        for _ in rounds.denoising:
            pass
        rounds.advance()
    return rounds.done


def last_round(renderer: Renderer, take: Take, cached: Cached | None, context: Mapping[int, Tensor]) -> Denoising:
    """context: what `context_of` gave for the take, on any schedule."""
    last = take.timeline_for(renderer.family.card).rounds[-1]
    return Denoising(renderer.family, take, cached, renderer.mesh, last, context)


@dataclass(frozen=True)
class RendererTakes:
    """takes: of one number of steps, sampler, guidance and size."""

    renderer: Renderer
    takes: Sequence[Take]
    _contexts: dict[int, dict[int, Tensor]] = field(default_factory=dict)

    @property
    def num_inference_steps(self) -> int:
        return self.takes[0].num_inference_steps

    def __len__(self) -> int:
        return len(self.takes)

    def render(self, index: int, cached: Cached | None = None, sigmas: Sequence[float] | None = None) -> Played:
        take = self.takes[index]
        if index not in self._contexts:
            self._contexts[index] = context_of(self.renderer, take)
        if sigmas is not None:
            take = replace(take, num_inference_steps=len(sigmas), schedule=Schedule(list(sigmas)))
        if cached is not None:
            cached.attach([self.renderer.family.transformer])
        try:
            denoising = last_round(self.renderer, take, cached, self._contexts[index])
            with listening(denoising.scheduler) as played:
                for _ in denoising:
                    pass
        finally:
            if cached is not None:
                cached.disable()
        return played
