"""What a round, a window and kept context cost, as CPU time of this process on one thread."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ...cache import load_recipe
from ...parallel.groups.mesh import Mesh
from ...pipeline.checkpoint.card import read_card
from ...pipeline.demo.training.dit import DenoiserWithText
from ...pipeline.families import Wan
from ...pipeline.loop.denoise import Denoising, Step
from ...pipeline.loop.render import Renderer
from ...pipeline.loop.rounds import Finished, Rounds
from ...pipeline.take import Take
from .takes import BANDED, ROLLOUT, WINDOW, WINDOWS, long_take, script

EARLY, LATE = range(4, 15), range(30, 41)  # rounds of a long rollout, counted from 1
_ROUND_STEPS = 6
_FEW_WINDOWS, _TIMES_LONGER = 4, 10
_WINDOW_STEPS, _KEPT_STEPS, _TURNS = 4, 12, 5
_BANDED_FRAMES = 61  # latent ones: 14 windows


def live_bytes() -> int:
    """Bytes of all tensors that this process holds, each storage once."""
    gc.collect()
    storages = {}
    for held in gc.get_objects():
        if isinstance(held, Tensor):
            storage = held.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def rounds_of_a_long_rollout(mesh: Mesh) -> dict[str, list[float]]:
    """Seconds of each round, decoding included, and the bytes that are alive after it: a rollout of as many rounds as `LATE` asks, with a cache
    that keeps features of every block, on each rank of a gang.
    """
    card = read_card("demo")
    renderer = Renderer(card, mesh=mesh)
    new = WINDOW - ROLLOUT.overlap
    take = long_take(card, script(0, 1), ROLLOUT, card.frames(range(WINDOW + (LATE.stop - 2) * new)).stop, _ROUND_STEPS)
    decoding = renderer.family.decoding()
    seconds, held = list[float](), list[float]()
    began = time.process_time()
    for one in renderer.steps(take, load_recipe("taylorseer")):
        if isinstance(one, Finished):
            for _ in decoding.frames(one.latents, is_last=one.is_last):
                pass
            seconds.append(time.process_time() - began)
            held.append(live_bytes())
            began = time.process_time()
    return {"seconds": seconds, "bytes": held}


def late_over_early(of_rounds: list[float]) -> float:
    early, late = (median(of_rounds[number - 1] for number in rounds) for rounds in (EARLY, LATE))
    return late / early


def window_steps(mesh: Mesh) -> dict[str, list[float]]:
    """Seconds a window and step of a take of few windows, and of one ten times as long, in turn."""
    card = read_card("demo")
    renderer, hop = Renderer(card, mesh=mesh), WINDOW - WINDOWS.overlap
    seconds: dict[str, list[float]] = {}
    for _ in range(_TURNS):
        for name, num_windows in (("short", _FEW_WINDOWS), ("long", _FEW_WINDOWS * _TIMES_LONGER)):
            take = long_take(card, script(0, 1), WINDOWS, card.frames(range(WINDOW + (num_windows - 1) * hop)).stop, _WINDOW_STEPS)
            began, spent = time.process_time(), list[float]()
            for one in renderer.steps(take, None):
                if isinstance(one, Step):
                    spent.append(time.process_time() - began)
                    began = time.process_time()
            seconds.setdefault(name, []).append(median(spent[1:]) / num_windows)
    return seconds


def banded_beside_windows(mesh: Mesh) -> dict[str, list[float]]:
    """Seconds a step of the same film in bands and in windows that show as many frames, in turn."""
    card = read_card("demo")
    renderer = Renderer(card, mesh=mesh)
    seconds: dict[str, list[float]] = {}
    for _ in range(_TURNS):
        for timeline in (BANDED, WINDOWS):
            take = long_take(card, script(0, 1), timeline, card.frames(range(_BANDED_FRAMES)).stop, _WINDOW_STEPS)
            began, spent = time.process_time(), list[float]()
            for one in renderer.steps(take, None):
                if isinstance(one, Step):
                    spent.append(time.process_time() - began)
                    began = time.process_time()
            seconds.setdefault(timeline.name, []).append(median(spent[1:]))
    return seconds


def halo_bytes(mesh: Mesh, num_latent_frames: int) -> float:
    """What a rank sends in a step of a banded take."""
    card = read_card("demo")
    take = long_take(card, script(0, 1), BANDED, card.frames(range(num_latent_frames)).stop, _WINDOW_STEPS)
    sent = []
    for one in Renderer(card, mesh=mesh).steps(take, None):
        if isinstance(one, Step):
            sent.append(mesh.traffic.sent_bytes)
    return (sent[-1] - sent[0]) / (len(sent) - 1)


def kept_context(overlap: int) -> dict[str, Any]:
    """Seconds a step of a chunk with `overlap` latent frames of isolated context: whose keys and values are kept, and computed anew at every step,
    in turn. difference: the largest one of a velocity with kept keys and values from that of the call that sees context and new frames
    at once, as in training, where a mask keeps the context to itself.
    """
    card = read_card("demo")
    renderer = Renderer(card)
    take = long_take(card, script(1, 1), replace(ROLLOUT, overlap=overlap), card.frames(range(2 * WINDOW - overlap)).stop, _KEPT_STEPS)
    rounds = _second_round(renderer, take)
    seconds: dict[str, list[float]] = {"kept": [], "anew": []}
    for _ in range(_TURNS):
        for name, spent in seconds.items():
            spent.append(median(_step_seconds(rounds.go_to(1), anew=name == "anew")))
    return {"seconds": seconds, "difference": _difference(renderer, rounds, take)}


def _second_round(renderer: Renderer, take: Take) -> Rounds:
    """With the first one done."""
    renderer.bind_for(take)
    rounds = Rounds(renderer.family, take, None, renderer.mesh)
    for _ in rounds.denoising:
        pass
    rounds.advance()
    return rounds


def _step_seconds(denoising: Denoising, *, anew: bool) -> Iterator[float]:
    steps = iter(denoising)
    for _ in denoising.scheduler.timesteps:
        began = time.process_time()
        if anew:
            denoising.write_context()
        next(steps)
        yield time.process_time() - began


@torch.no_grad()
def _difference(renderer: Renderer, rounds: Rounds, take: Take) -> float:
    family, denoising = renderer.family, rounds.go_to(1)
    assert isinstance(family, Wan) and family.context is not None, "a rollout of isolated context keeps it"
    [call] = denoising.round.calls
    clean = torch.cat([rounds.done[frame] for frame in call.context], dim=2)
    prompt = family.encode_prompt(take.prompts[0].text)
    calls, count = [], len(call.context)
    for timestep in denoising.scheduler.timesteps:
        with family.context.read("cond", count):
            calls.append((timestep, family.velocity(denoising.latents, timestep, prompt, take.guidance_scale)))
    masked = DenoiserWithText(family.tokenizer, Renderer(family.card).family.transformer, family.text_encoder, family.card.max_sequence_length)
    tokens = family.card.num_tokens(1, take.height, take.width)
    worst = 0.0
    for timestep, kept in calls:
        by_token = torch.cat((torch.zeros(count * tokens), timestep.expand(len(call.frames) * tokens)))[None]
        whole = masked(torch.cat((clean, denoising.latents), dim=2), by_token, prompt["encoder_hidden_states"], count)
        worst = max(worst, float((whole[:, :, count:] - kept).abs().max()))
    return worst
