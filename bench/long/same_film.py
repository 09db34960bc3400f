"""The same film on any gang: the largest difference of latents between 1 rank and 2 or 3, on every timeline, and across a break."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ...parallel.groups.degrees import Degrees
from ...parallel.groups.mesh import Mesh
from ...pipeline.checkpoint.card import read_card
from ...pipeline.loop.denoise import Step
from ...pipeline.loop.render import Renderer, whole_take
from ...pipeline.loop.rounds import Finished, Rounds
from ...pipeline.take import PromptAt, Take
from ..pool import GlooPool
from .takes import TIMELINES, long_take, script

_STEPS, _CHANGE = 6, 40  # of denoising; the frame from which the second prompt holds
_TWO, _RING, _APART = Degrees(ulysses_degree=2), Degrees(ring_degree=3), Degrees(window_degree=3)
_GANGS = {"windows": (_TWO, _RING, _APART), "shifted": (_TWO, _RING, _APART), "banded": (_TWO, _APART), "rollout": (_TWO, _RING)}
_LATENT_FRAMES = 21


def differences(pool: GlooPool) -> Iterator[tuple[str, float]]:
    """What was compared, and by how much one rank's latents differ at most.

    A rollout is compared chunk by chunk, each gone on to from the context of one rank's film, as small differences grow from chunk to chunk.
    """
    card = read_card("demo")
    acts = script(0, 2)
    for name, timeline in TIMELINES.items():
        take = long_take(card, acts, timeline, card.frames(range(_LATENT_FRAMES)).stop, _STEPS)
        take = replace(take, prompts=(acts.prompts[0], PromptAt(_CHANGE, acts.prompts[1].text)))
        alone: Tensor = pool.run(_whole, 1, take)[0]
        for degrees in _GANGS[name]:
            for latents in pool.run(_rounds, degrees, take, alone):
                yield f"{name}, {degrees}", float((latents - alone).abs().max())
        with TemporaryDirectory() as folder:
            undisturbed = pool.run(_break, _TWO, take, Path(folder))[0]
            for latents in pool.run(_go_on, _GANGS[name][-1], take, Path(folder)):
                yield f"{name}, broken on {_TWO} and gone on with on {_GANGS[name][-1]}", float((latents - undisturbed).abs().max())


def _whole(mesh: Mesh, take: Take) -> Tensor:
    return whole_take(Renderer(read_card("demo"), mesh=mesh).steps(take, None)).latents


def _rounds(mesh: Mesh, take: Take, reference: Tensor) -> Tensor:
    """Every round from what the reference has of the ones before."""
    renderer = Renderer(read_card("demo"), mesh=mesh)
    renderer.bind_for(take)
    rounds = Rounds(renderer.family, take, None, mesh)
    rounds.done = {frame: reference[:, :, frame : frame + 1] for frame in range(reference.shape[2])}
    latents = []
    for number in range(len(rounds.timeline.rounds)):
        for _ in (denoising := rounds.go_to(number)):
            pass
        latents.append(denoising.whole())
    return torch.cat(latents, dim=2)


def _break(mesh: Mesh, take: Take, folder: Path) -> Tensor:
    """Save in the midst of the last round; returns what becomes of that round without a break."""
    renderer = Renderer(read_card("demo"), mesh=mesh)
    last_step = len(take.timeline_for(renderer.family.card).rounds) * _STEPS - _STEPS // 2
    steps = 0
    for one in renderer.steps(take, None):
        steps += isinstance(one, Step)
        if isinstance(one, Step) and steps == last_step:
            renderer.save(folder)
        if isinstance(one, Finished) and one.is_last:
            latents = one.latents
    return latents


def _go_on(mesh: Mesh, take: Take, folder: Path) -> Tensor:
    return whole_take(Renderer(read_card("demo"), mesh=mesh).steps(take, None, snapshot=folder)).latents
