"""What a cache saves of a long take, and what of its film it keeps: 30 s without and with a plan, on each timeline.

Windows and bands are compared as films. A rollout's small differences grow from chunk to chunk, whatever made them, so a chunk is compared from
the context of the film without a cache; how far the films are apart when each goes on from its own is said beside it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...cache import Recipe, Trace, enable_cache
from ...pipeline.loop.render import Renderer, whole_take
from ...pipeline.loop.rounds import Rounds
from ...pipeline.take import Take

_DECODED_BEFORE = 4  # latent frames before a chunk, whose frames the decoder looks back at


class Uncached:
    """A take without a cache, which others are put beside. latents: its film; seconds: of denoising it, in CPU time."""

    def __init__(self, renderer: Renderer, take: Take) -> None:
        self._renderer, self._take = renderer, take
        self.latents, self.seconds, _ = self._film(None)
        self._frames = decode(renderer, self.latents)

    def _film(self, recipe: Recipe | None) -> tuple[Tensor, float, Trace | None]:
        began = time.process_time()
        film = whole_take(self._renderer.steps(self._take, recipe))
        return film.latents, time.process_time() - began, film.trace

    def beside(self, recipe: Recipe) -> dict[str, Any]:
        """speedup: of denoising. psnr: of decoded frames; of a rollout, of the worst chunk's, and of each as of_chunks, gone on to from this take's
        context, and of the film that goes on from its own as free_running. reused: share of decisions.
        """
        latents, seconds, trace = self._film(recipe)
        assert trace is not None, "a recipe leaves a trace"
        decisions = [entry.decision for entry in trace.entries]
        reused = sum(decision != "compute" for decision in decisions) / len(decisions)
        film = psnr(decode(self._renderer, latents), self._frames)
        figures = {"speedup": self.seconds / seconds, "reused": reused}
        if self._take.timeline.name != "rollout":
            return {**figures, "psnr": film}
        chunks = list(self._chunks(recipe))
        return {**figures, "psnr": min(chunks), "of_chunks": chunks, "free_running": film}

    def _chunks(self, recipe: Recipe) -> Iterator[float]:
        renderer, take, card = self._renderer, self._take, self._renderer.family.card
        renderer.bind_for(take)
        for number, one in enumerate(take.timeline_for(card).rounds):
            cached = enable_cache(renderer.family.transformer, recipe, num_inference_steps=take.num_inference_steps)
            try:
                rounds = Rounds(renderer.family, take, cached, renderer.mesh)
                rounds.done = dict(enumerate(self.latents.split(1, dim=2)))
                for _ in (denoising := rounds.go_to(number)):
                    pass
            finally:
                cached.disable()
            before = self.latents[:, :, max(0, one.frames.start - _DECODED_BEFORE) : one.frames.start]
            reference = self.latents[:, :, one.frames.start : one.frames.stop]
            films = [decode(renderer, torch.cat((before, chunk), dim=2)) for chunk in (denoising.latents, reference)]
            shown = len(card.frames(one.frames))
            yield psnr(films[0][-shown:], films[1][-shown:])


def decode(renderer: Renderer, latents: Tensor) -> Tensor:
    """[frames, height, width, 3], in 0..1."""
    return torch.cat(list(renderer.family.decode(latents)))


def psnr(frames: Tensor, reference: Tensor) -> float:
    return float(-10 * torch.log10((frames - reference).square().mean()))
