"""Rollouts: chunk after chunk on clean context, against stock calls by hand, on any gang, with every recipe, after a break."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe, load_recipe
from longtake.cache.recipe.read import recipe_names
from longtake.jobs.settings.config import load_job, resolve_takes
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.demo.training.dit import DenoiserWithText
from longtake.pipeline.families import FAMILIES
from longtake.pipeline.film_key import film_key
from longtake.pipeline.loop.denoise import Step
from longtake.pipeline.loop.render import Renderer, WholeTake, whole_take
from longtake.pipeline.loop.rounds import Finished, Rounds
from longtake.pipeline.noise import frame_noise
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.take import Take, TimelineSettings
from torch import Tensor

from same import assert_same, assert_same_film
from takes import tiny_recipe, tiny_take

pytestmark = pytest.mark.numerical

ROLLOUT = TimelineSettings("rollout", window=5, overlap=2, anchors=1)
TAKE = tiny_take(num_inference_steps=8, timeline=ROLLOUT)  # 11 latent frames: 5, and then 2 at a time
ISOLATED = replace(TAKE, timeline=replace(ROLLOUT, context="isolated"), seed=5)  # with which no decision is a close call


@torch.no_grad()
def rollout_by_hand(card: ModelCard, take: Take, earlier: Tensor | None = None) -> Tensor:
    """The same with diffusers' transformer and scheduler alone, and texts as our family encodes them, which test_wan.py holds against the stock
    pipeline's. An isolated context is computed at every step, together with the new frames, which a mask keeps it from seeing: as in training.
    earlier: the anchor and the two last frames of another film.
    """
    family, isolated = Renderer(card).family, take.timeline.context == "isolated"
    transformer = WanTransformer3DModel.from_pretrained(card.path / "transformer")
    model = DenoiserWithText(family.tokenizer, transformer, family.text_encoder, card.max_sequence_length)
    done = torch.empty(1, card.latent_channels, 0, 4, 4) if earlier is None else earlier
    first = done.shape[2]
    for begin, end in ((3, 5), (5, 7), (7, 9)) if first else ((0, 5), (5, 7), (7, 9), (9, 11)):
        context = [0, *range(begin - 2, begin)] if begin else []
        latents = frame_noise(take.seed, range(begin - first, end - first), card.latent_channels, 4, 4)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        scheduler.set_timesteps(take.num_inference_steps)
        texts = (take.prompt_at((begin + end - 1) / 2 - first, card), take.negative_prompt)
        for timestep in scheduler.timesteps:
            shown = torch.cat((done[:, :, context], latents), dim=2)
            by_token = torch.cat((torch.zeros(len(context) * 4), timestep.expand((end - begin) * 4)))[None]
            embeds = (family.encode_prompt(text)["encoder_hidden_states"] for text in texts)
            cond, uncond = (model(shown, by_token, embed, len(context) * isolated)[:, :, len(context) :] for embed in embeds)
            latents = scheduler.step(uncond + take.guidance_scale * (cond - uncond), timestep, latents, return_dict=False)[0]
        done = torch.cat((done, latents), dim=2)
    return done[:, :, first:]


@pytest.mark.parametrize("take", [TAKE, ISOLATED], ids=["joint", "isolated"])
def test_a_rollout_is_what_stock_calls_make_of_it(tiny_wan: Path, take: Take) -> None:
    card = read_card(str(tiny_wan))
    assert_same(Renderer(card).render(take, None).latents, rollout_by_hand(card, take))


def test_a_new_prompt_may_cut_the_context(tiny_wan: Path) -> None:
    """Prompts change at frame 20, latent frame 5: the second chunk has another one than the first."""
    card, long = read_card(str(tiny_wan)), replace(TAKE, timeline=replace(ROLLOUT, overlap=3))
    flushed = replace(long, timeline=replace(long.timeline, on_prompt="flush"))
    contexts = [[one.calls[0].context for one in take.timeline_for(card).rounds] for take in (long, flushed)]
    assert contexts[0][:3] == [(), (0, 2, 3, 4), (0, 3, 4, 5)]
    assert contexts[1] == [(), (0, 3, 4), *contexts[0][2:]]
    keys = {film_key(card, "", take, None, ModelOptions()) for take in (long, flushed)}
    assert len(keys) == 2


def test_takes_after_an_isolated_rollout_are_as_without_it(tiny_wan: Path) -> None:
    """Attention of one rank is diffusers' own, but where context is kept; nothing is kept once another take begins."""
    renderer = Renderer(read_card(str(tiny_wan)))
    before, isolated = renderer.render(TAKE, None).latents, renderer.render(ISOLATED, None).latents
    assert renderer.family.context is not None
    assert renderer.family.context.num_bytes > 0
    assert torch.equal(renderer.render(TAKE, None).latents, before)
    assert renderer.family.context is None
    assert torch.equal(renderer.render(ISOLATED, None).latents, isolated)
    assert (isolated - before).abs().max() > 1e-3


def test_a_rollout_of_one_chunk_is_the_whole_take(tiny_wan: Path) -> None:
    card = read_card(str(tiny_wan))
    whole = tiny_take(num_frames=17, prompts=TAKE.prompts[:1], timeline=TimelineSettings("full", 0, 0))
    one = replace(whole, timeline=ROLLOUT)
    renderer = Renderer(card)
    assert torch.equal(renderer.render(whole, None).latents, renderer.render(one, None).latents)
    assert film_key(card, "", whole, None, ModelOptions()) == film_key(card, "", one, None, ModelOptions())


def _render(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None) -> WholeTake:
    return Renderer(card, mesh=mesh).render(take, recipe)


_GANGS = (Degrees(ulysses_degree=2), Degrees(ring_degree=3), Degrees(cfg_degree=2))


@pytest.mark.parametrize("take", [TAKE, ISOLATED], ids=["joint", "isolated"])
@pytest.mark.parametrize("recipe", ["none", *recipe_names()])
def test_the_same_film_on_any_gang(gloo_pool: GlooPool, tiny_wan: Path, recipe: str, take: Take) -> None:
    """Every recipe on one gang; without a cache, and one that decides from both branches, on all."""
    card, chosen = read_card(str(tiny_wan)), None if recipe == "none" else tiny_recipe(recipe)
    alone = gloo_pool.run(_render, 1, card, take, chosen)[0]
    if alone.trace is not None:
        assert {entry.segment for entry in alone.trace.entries} == {0, 1, 2, 3}
        reused = {entry.segment for entry in alone.trace.entries if entry.decision != "compute"}
        assert reused == {0, 1, 2, 3}, "each chunk begins anew, and reuses its own"
    gangs = _GANGS if recipe in ("none", "ra_cfgcache", "fbcache") else _GANGS[recipe_names().index(recipe) % 2 :][:1]
    for degrees in gangs:
        for rendered in gloo_pool.run(_render, degrees, card, take, chosen):
            assert_same_film(rendered, alone, f"with {degrees}")


def _break(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path, num_steps: int) -> list[Tensor]:
    """Save once so many steps are done; returns the rounds that were finished by then."""
    renderer, finished, steps = Renderer(card, mesh=mesh), list[Tensor](), 0
    rendering = renderer.steps(take, recipe)
    while steps < num_steps:
        one = next(rendering)
        steps += isinstance(one, Step)
        if isinstance(one, Finished):
            finished.append(one.latents)
    renderer.save(folder)
    rendering.close()
    return finished


def _go_on(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path) -> WholeTake:
    return whole_take(Renderer(card, mesh=mesh).steps(take, recipe, snapshot=folder))


@pytest.mark.parametrize(("recipe", "take"), [("none", TAKE), ("planned", ISOLATED), ("fbcache", TAKE), ("ra_cfgcache", ISOLATED)])
@pytest.mark.parametrize("num_steps", [3, 8, 21])
def test_a_rollout_goes_on_after_a_break(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path, recipe: str, take: Take, num_steps: int) -> None:
    """In the first chunk, between the last step of a chunk and its end, and in the third chunk: to the bit on as many ranks, and the same film on
    others.
    """
    card, chosen, two = read_card(str(tiny_wan)), None if recipe == "none" else tiny_recipe(recipe), Degrees(ulysses_degree=2)
    whole = gloo_pool.run(_render, two, card, take, chosen)[0]
    before = gloo_pool.run(_break, two, card, take, chosen, tmp_path, num_steps)[0]
    for degrees in (two, Degrees(ulysses_degree=3)):
        rendered = gloo_pool.run(_go_on, degrees, card, take, chosen, tmp_path)[0]
        latents = torch.cat([*before, rendered.latents], dim=2)
        assert_same_film(replace(rendered, latents=latents), whole, f"on {degrees}")
        if degrees == two:
            assert torch.equal(latents, whole.latents)


LONG_WARM_UP = {
    **tiny_recipe("foresight").to_dict(),
    "trigger": {"name": "layerwise", "measure": "mse", "aggregate": "each", "relative": True, "warmup": 0.5, "codebook": [[1000.0, 2]]},
    "guards": {"first_steps": 2, "last_steps": 1},
}


def test_what_a_trigger_has_learnt_crosses_a_border_if_the_recipe_says_so(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path) -> None:
    """Only the first chunk warms up; all else begins anew in each. So it does on any gang, and after a break just before and behind a border."""
    card = read_card(str(tiny_wan))
    reset, keep = (load_recipe({**LONG_WARM_UP, "border": border}) for border in ("reset", "keep"))
    assert reset == load_recipe(LONG_WARM_UP) and film_key(card, "", TAKE, reset, ModelOptions()) != film_key(card, "", TAKE, keep, ModelOptions())
    forgets, two = Renderer(card).render(TAKE, reset), Degrees(ulysses_degree=2)
    films = gloo_pool.run(_render, two, card, TAKE, keep)
    assert_same_film(films[0], Renderer(card).render(TAKE, keep))
    assert forgets.trace is not None and films[0].trace is not None
    computed = [
        [{entry.step for entry in trace.entries if entry.segment == chunk and entry.decision == "compute"} for chunk in range(4)]
        for trace in (forgets.trace, films[0].trace)
    ]
    assert computed[0] == [{0, 1, 2, 3, 5, 7}] * 4, "four steps of warm-up, and then every second one, and the last"
    assert computed[1] == [{0, 1, 2, 3, 5, 7}, *[{0, 1, 3, 5, 7}] * 3], "two steps that the guards compute"
    for num_steps in (8, 9):
        before = gloo_pool.run(_break, two, card, TAKE, keep, tmp_path, num_steps)[0]
        rendered = gloo_pool.run(_go_on, two, card, TAKE, keep, tmp_path)[0]
        assert torch.equal(torch.cat([*before, rendered.latents], dim=2), films[0].latents)


def test_texts_of_later_rounds_are_timed_once(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(read_card(str(tiny_wan)))
    encode = renderer.family._encode_prompt

    def slowly(prompt: str) -> dict[str, Tensor]:
        time.sleep(0.5)
        return encode(prompt)

    monkeypatch.setattr(renderer.family, "_encode_prompt", slowly)
    began = time.perf_counter()
    rendered = renderer.render(TAKE, tiny_recipe("fbcache"))
    assert rendered.encode_seconds >= 3 * 0.5, "two prompts and the negative one"
    assert rendered.encode_seconds + rendered.denoise_seconds <= time.perf_counter() - began


def test_what_is_held_does_not_grow(tiny_wan: Path) -> None:
    family, held = Renderer(read_card(str(tiny_wan))).family, []
    rounds = Rounds(family, replace(TAKE, num_frames=81, num_inference_steps=1), None, Mesh())
    for one in rounds:
        if isinstance(one, Finished):
            held.append(sorted(rounds.done))
    assert held[2:-1] == [[0, begin - 2, begin - 1] for begin in range(7, 19, 2)]
    assert len(held) == 9


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6), family=st.sampled_from(["wan", "hunyuan_video"]))
def test_rounds_decode_to_the_frames_of_the_whole(request: pytest.FixtureRequest, lengths: list[int], family: str) -> None:
    folder = request.getfixturevalue({"wan": "tiny_wan", "hunyuan_video": "tiny_hunyuan"}[family])
    loaded = FAMILIES[family].load(read_card(str(folder)), torch.float32, torch.device("cpu"), torch.device("cpu"))
    latents = torch.randn(1, loaded.card.latent_channels, sum(lengths), 4, 4, generator=torch.Generator().manual_seed(0))
    whole = torch.cat(list(loaded.decode(latents)))
    decoding, frames = loaded.decoding(), []
    for number, part in enumerate(latents.split(lengths, dim=2)):
        frames += list(decoding.frames(part, is_last=number == len(lengths) - 1))
    assert torch.equal(torch.cat(frames), whole)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"noise": "diffusers"}, "noise is diffusers, which stock pipelines draw for a whole take at once; set noise=frame"),
        ({"timeline": replace(ROLLOUT, on_prompt="forget")}, "timeline.on_prompt is 'forget'; it must be recache or flush"),
        ({"timeline": replace(ROLLOUT, context="alone")}, "timeline.context is 'alone'; it must be joint or isolated"),
        ({"timeline": replace(ROLLOUT, overlap=4)}, "timeline.overlap is 4 latent frames; it must be at least 1 and, with 1 of anchors, below 4"),
    ],
)
def test_refused(tiny_wan: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        replace(TAKE, **changes).check(read_card(str(tiny_wan)))


@pytest.mark.parametrize(
    ("timeline", "match"),
    [
        ({"window": 1}, "timeline.window is 1; a rollout shows clean frames and new ones, 5 at least"),
        ({"window": 17, "anchors": 99}, "timeline.anchors is 99; .* 5 latent frames .* room for 3 at most"),
        (
            {"window": 17, "anchors": 1, "overlap": 16},
            "timeline.overlap is 16; with a window of 17 frames and 1 anchor.s. it must be from 4 to 12 frames",
        ),
        ({"overlap": -4}, "timeline.overlap is -4; with a window of 33 frames it must be from 4 to 32 frames"),
        ({"anchors": -1}, "timeline.anchors is -1; it must be a number of latent frames, 0 for none"),
        ({"name": "windows", "anchors": 1}, "timeline.anchors belongs to timeline rollout or banded, not windows"),
        ({"name": "full", "overlap": 4}, "timeline.overlap belongs to timeline windows or rollout, not full"),
    ],
)
def test_settings_that_make_no_rollout_are_refused_in_frames(timeline: dict[str, Any], match: str) -> None:
    job = load_job({"takes": [{"name": "one", "prompt": "fog", "num_frames": 129, "timeline": {"name": "rollout", **timeline}}]})
    with pytest.raises(ValueError, match=f"Take 'one': {match}"):
        resolve_takes(job, read_card("demo"), Fraction(16))


def test_a_model_that_cannot_take_clean_context_is_refused(tiny_hunyuan: Path, tiny_wan_copy: Path) -> None:
    take = replace(TAKE, negative_prompt="")
    for folder in (tiny_hunyuan, tiny_wan_copy):
        (tiny_wan_copy / "README.md").write_text("---\nlongtake: {trained_frames: 17, height: 32, width: 32, fps: 8}\n---\n")
        with pytest.raises(ValueError, match="timeline is rollout, and this model was not trained to go on from clean frames"):
            take.check(read_card(str(folder)))
    (tiny_wan_copy / "README.md").write_text("---\nlongtake: {clean_context: [both]}\n---\n")
    with pytest.raises(ValueError, match="clean_context names 'both'; it can name joint, isolated"):
        read_card(str(tiny_wan_copy))
    (tiny_wan_copy / "README.md").write_text("---\nlongtake: {height: 32, width: 32, clean_context: [joint]}\n---\n")
    with pytest.raises(ValueError, match=r"timeline.context is isolated, and this model was trained for joint, .*; set timeline.context=joint"):
        ISOLATED.check(read_card(str(tiny_wan_copy)))


def _five_minutes(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe) -> tuple[int, list[int]]:
    """The latent frames that are rendered, and the bytes that the cache and the context hold after each round."""
    renderer, held, frames = Renderer(card, mesh=mesh), list[int](), 0
    for one in renderer.steps(take, recipe):
        if isinstance(one, Finished):
            frames += len(one.frames)
            assert renderer.cached is not None and renderer.family.context is not None
            held.append(renderer.cached.state.num_bytes + renderer.family.context.num_bytes)
    return frames, held


@pytest.mark.slow
def test_five_minutes_on_two_ranks(gloo_pool: GlooPool, tiny_wan: Path) -> None:
    card, rollout = read_card(str(tiny_wan)), TimelineSettings("rollout", window=25, overlap=2, context="isolated")
    take = tiny_take(num_frames=5 * 60 * 16 + 1, height=16, width=16, num_inference_steps=2, timeline=rollout, prompts=TAKE.prompts[:1])
    for frames, held in gloo_pool.run(_five_minutes, Degrees(ulysses_degree=2), card, take, tiny_recipe("fora")):
        assert frames == card.latent_frames(take.num_frames)
        assert len(held) == 53 and held[0] > 0
        assert set(held[1:-1]) == {held[1]}, "what is held does not grow"
