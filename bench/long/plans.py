"""What a cache saves of a long take, and what of its film it keeps: 30 s without and with a plan, on each timeline.

Windows and bands are compared as films. A rollout's small differences grow from chunk to chunk, whatever made them, so a chunk is compared from
the context of the film without a cache; how far the films are apart when each goes on from its own is said beside it.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ...cache import Recipe, enable_cache
from ...pipeline.loop.render import Renderer, whole_take
from ...pipeline.loop.rounds import Rounds
from ...pipeline.take import Take


def film_with_a_plan(renderer: Renderer, take: Take, recipe: Recipe) -> dict[str, float]:
    """speedup: of denoising, in CPU time. psnr: of decoded frames, against the same take without a cache. reused: share of decisions."""
    return _beside(renderer, take, recipe)[0]


def _beside(renderer: Renderer, take: Take, recipe: Recipe) -> tuple[dict[str, float], Tensor]:
    """Also the latents of the take without a cache."""
    seconds, films = [], []
    for chosen in (None, recipe):
        began = time.process_time()
        films.append(whole_take(renderer.steps(take, chosen)))
        seconds.append(time.process_time() - began)
    plain, cached = films
    assert cached.trace is not None, "a recipe leaves a trace"
    decisions = [entry.decision for entry in cached.trace.entries]
    figures = {
        "speedup": seconds[0] / seconds[1],
        "psnr": psnr(decode(renderer, cached.latents), decode(renderer, plain.latents)),
        "reused": sum(decision != "compute" for decision in decisions) / len(decisions),
    }
    return figures, plain.latents


def chunks_with_a_plan(renderer: Renderer, take: Take, recipe: Recipe) -> dict[str, Any]:
    """psnr: of the worst chunk's frames, of_chunks: of each, gone on to from the context of the take without a cache; free_running: of the film
    that goes on from its own.
    """
    film, whole = _beside(renderer, take, recipe)
    reference, of_chunks, card = decode(renderer, whole), [], renderer.family.card
    for number, one in enumerate(take.timeline_for(card).rounds):
        cached = enable_cache(renderer.family.transformer, recipe, num_inference_steps=take.num_inference_steps)
        try:
            rounds = Rounds(renderer.family, take, cached, renderer.mesh)
            rounds.done = {frame: whole[:, :, frame : frame + 1] for frame in range(whole.shape[2])}
            for _ in (denoising := rounds.go_to(number)):
                pass
        finally:
            cached.disable()
        changed, shown = whole.clone(), card.frames(one.frames)
        changed[:, :, one.frames.start : one.frames.stop] = denoising.latents
        of_chunks.append(psnr(decode(renderer, changed)[shown.start : shown.stop], reference[shown.start : shown.stop]))
    return {"speedup": film["speedup"], "psnr": min(of_chunks), "of_chunks": of_chunks, "free_running": film["psnr"], "reused": film["reused"]}


def decode(renderer: Renderer, latents: Tensor) -> Tensor:
    """[frames, height, width, 3], in 0..1."""
    return torch.cat(list(renderer.family.decode(latents)))


def psnr(frames: Tensor, reference: Tensor) -> float:
    return float(-10 * torch.log10((frames - reference).square().mean()))
