"""Windows that begin elsewhere at each step: what they cover, and what a cache keeps of latent frames that move."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe, Replay, Trace, enable_cache, load_recipe
from longtake.cache.decision import Decision
from longtake.cache.run.moving_call import MovingCall
from longtake.cache.run.session import Cursor, Session
from longtake.cache.state.storage import Storage
from longtake.cache.triggers import Moment
from longtake.jobs.settings.config import load_job, resolve_takes
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.parallel.tokens.by_frame import ByFrame
from longtake.parallel.tokens.layout import Layout
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.loop.render import Renderer, WholeTake, whole_take
from longtake.pipeline.noise import frame_noise
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.recipes.check import check_recipe
from longtake.pipeline.recipes.memory import cache_bytes
from longtake.pipeline.take import Take, TimelineSettings
from longtake.pipeline.timelines.windows import bit_reversed, windows
from torch import Tensor

from same import assert_same, assert_same_film
from takes import tiny_recipe, tiny_take

pytestmark = pytest.mark.numerical

SHIFTED = TimelineSettings("windows", 5, 3, shift="bit_reversed")
TAKE = tiny_take(num_inference_steps=8, timeline=SHIFTED, seed=6)  # 11 latent frames


@given(length=st.integers(1, 120), window=st.integers(1, 30), num_steps=st.integers(1, 40), data=st.data())
def test_every_step_covers_the_take(length: int, window: int, num_steps: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, window - 1))
    [only] = windows(length, window, overlap, "bit_reversed", num_steps).rounds
    plain = windows(length, window, overlap).rounds[0].calls
    for step in range(num_steps):
        calls = only.calls_at(step)
        weight = [sum(call.weights[frame - call.frames.start] for call in calls if frame in call.frames) for frame in range(length)]
        assert min(weight) > 0 and all(min(call.weights) > 0 for call in calls)
        assert {len(call.frames) for call in calls} == {min(window, length)}
        assert len(plain) <= len(calls) <= len(plain) + 1
        starts = [call.frames.start for call in calls]
        assert starts == sorted(set(starts)) and starts[0] == 0, "the first latent frame, which is special, is in the first window alone"
        assert [call.segment for call in calls] == list(range(len(calls)))
        assert all(after - before <= window - overlap for before, after in pairwise(starts))
        assert set(calls) <= set(only.calls)
    assert only.calls_at(0) == plain
    assert only.most_calls == max(len(only.calls_at(step)) for step in range(num_steps))


def test_windows_begin_at_bit_reversed_shares_of_a_hop() -> None:
    assert [bit_reversed(step) for step in range(9)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8, 1 / 16]
    [only] = windows(33, 9, 1, "bit_reversed", 8).rounds
    starts = [[call.frames.start for call in only.calls_at(step)] for step in range(8)]
    assert starts[:5] == [[0, 8, 16, 24], [0, 4, 12, 20, 24], [0, 2, 10, 18, 24], [0, 6, 14, 22, 24], [0, 1, 9, 17, 24]]
    assert [at[1] for at in starts] == [8, 4, 2, 6, 1, 5, 3, 7]


PLAIN = "planned without corrections"
OF_OUTPUTS = load_recipe(
    {
        "name": PLAIN,
        "trigger": {"name": "mask", "computed": [0, 1, 4, 7]},
        "site": {"name": "output"},
        "predictor": {"name": "planned", "damping_by_step": [0.75] * 8},
        "guards": {"first_steps": 1, "last_steps": 0},
    }
)


@torch.no_grad()
def _by_hand(card: ModelCard, take: Take, computed: set[int]) -> Tensor:
    """Windows, weights, guidance and forecasts written down; where nothing is computed, each branch follows three quarters of the line through its
    last two fused velocities.
    """
    family = Renderer(card).family
    latents = frame_noise(take.seed, range(11), card.latent_channels, 4, 4)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    starts = {0: [0, 2, 4, 6], 1: [0, 1, 3, 5, 6]}  # round(2 x 0, 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, 7/8), and 2 frames later is no shift
    kept: dict[str, list[tuple[int, Tensor]]] = {"cond": [], "uncond": []}
    for step, offset in enumerate([0, 1, 0, 2, 0, 1, 1, 2]):
        velocities = {}
        for branch, history in kept.items():
            if step in computed:
                total, weight = torch.zeros_like(latents), torch.zeros(11)
                for start in starts[offset % 2]:
                    text = take.prompt_at(start + 2, card) if branch == "cond" else take.negative_prompt
                    shown = latents[:, :, start : start + 5]
                    out = family.velocity(shown, scheduler.timesteps[step], family.encode_prompt(text), take.guidance_scale)
                    counts = [min(1.0, (i + 1) / 4 if start else 1.0, (5 - i) / 4 if start < 6 else 1.0) for i in range(5)]
                    total[:, :, start : start + 5] += out * torch.tensor(counts)[:, None, None]
                    weight[start : start + 5] += torch.tensor(counts)
                history.append((step, total / weight[:, None, None]))
            (before, older), (last, newer) = history[-2:] if len(history) > 1 else [(-1, history[-1][1]), history[-1]]
            velocities[branch] = newer if step in computed else newer + 0.75 * (newer - older) * (step - last) / (last - before)
        guided = velocities["uncond"] + take.guidance_scale * (velocities["cond"] - velocities["uncond"])
        latents = scheduler.step(guided, scheduler.timesteps[step], latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize("recipe", [None, OF_OUTPUTS], ids=["none", PLAIN])
def test_shifted_windows_are_fused_and_forecast_as_by_hand(tiny_wan: Path, recipe: Recipe | None) -> None:
    card = read_card(str(tiny_wan))
    film = Renderer(card).render(TAKE, recipe)
    computed = {0, 1, 4, 7} if recipe else set(range(8))
    assert_same(film.latents, _by_hand(card, TAKE, computed))
    if film.trace is not None:
        assert len(film.trace.entries) == 16, "one decision a step and branch, for all windows"
        assert {entry.step for entry in film.trace.entries if entry.decision == "compute"} == computed


@settings(deadline=None, max_examples=40)
@given(window=st.integers(2, 9), num_steps=st.integers(2, 12), interval=st.integers(2, 4), data=st.data())
def test_tokens_go_with_their_frames(window: int, num_steps: int, interval: int, data: st.DataObject) -> None:
    """Without a model: each token says of which frame, step and place it is. A window reuses where all of its frames were kept near enough by some
    window of the step before, and then gets of each of them the nearest.
    """
    overlap, length = data.draw(st.integers(1, window - 1)), data.draw(st.integers(window + 1, 25))
    parts = {"site": {"name": "stack", "first_blocks": 0}, "predictor": {"name": "reuse"}, "guards": {"first_steps": 1, "last_steps": 0}}
    recipe = load_recipe({"name": "moving", "trigger": {"name": "interval", "interval": interval}, **parts})
    session = replace(Session.fresh(recipe, num_steps, Storage()), overlap=overlap)
    [only] = windows(length, window, overlap, "bit_reversed", num_steps).rounds
    before: dict[int, dict[int, tuple[int, int]]] = {}  # by segment and frame: step and place of what is kept
    for step in range(num_steps):
        now: dict[int, dict[int, tuple[int, int]]] = {}
        for call in only.calls_at(step):
            near = [
                min(
                    (abs(kept[frame][1] - place), segment, kept[frame])
                    for segment, kept in [*sorted(before.items()), (99, {frame: (-1, 99)})]
                    if frame in kept
                )
                for place, frame in enumerate(call.frames)
            ]
            reuses = step % interval > 0 and all(distance <= overlap for distance, _, _ in near)
            run = MovingCall(
                session,
                Cursor(call.segment, Moment(step, 1000.0, num_steps), "cond", float(step), call.frames),
                0,
                recipe.parts[0].site.build(),
                [range(2)],
                0,
            )
            own = torch.tensor([[frame, step, place] for place, frame in enumerate(call.frames)], dtype=torch.float32)
            wanted_before = session.state.slots[(0, call.segment, "cond")].reused_run
            decision = run.decide(torch.zeros(1, 2 * window, 3)).decision
            if reuses and wanted_before < interval - 1:
                assert decision is Decision.REUSE
            if decision is Decision.REUSE:
                assert all(distance <= overlap for distance, _, _ in near)
                wanted = torch.tensor([[frame, *kept] for frame, (_, _, kept) in zip(call.frames, near, strict=True)], dtype=torch.float32)
                assert torch.equal(run.recall()[0], wanted.repeat_interleave(2, dim=0))
                now[call.segment] = {frame: kept for frame, (_, _, kept) in zip(call.frames, near, strict=True)}
            else:
                run.keep(own.repeat_interleave(2, dim=0)[None])
                now[call.segment] = {frame: (step, place) for place, frame in enumerate(call.frames)}
        before = now


def _deal_out(mesh: Mesh, tokens: Tensor, each: int, whole_frames: bool) -> tuple[list[Tensor], bool]:
    num_frames, dealt = tokens.shape[1] // each, ByFrame(mesh.sequence, each, whole_frames=whole_frames)
    layout = Layout.frames(num_frames, each, mesh.size) if whole_frames else Layout.even(num_frames * each, mesh.size)
    local = layout.shard(tokens, mesh.sequence.rank, dim=1)
    shares = dealt.split(local, num_frames)
    return shares, torch.equal(dealt.join(shares), local)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_frames_are_dealt_out_evenly_wherever_the_window_begins(gloo_pool: GlooPool, num_ranks: int) -> None:
    for num_frames, each, whole_frames in ((5, 4, False), (4, 7, True), (2, 1, False), (5, 2, True)):
        tokens = torch.randn(2, num_frames * each, 3)
        for rank, (shares, is_back) in enumerate(gloo_pool.run(_deal_out, num_ranks, tokens, each, whole_frames)):
            wanted = [Layout.even(each, num_ranks).shard(frame, rank, dim=1) for frame in tokens.chunk(num_frames, dim=1)]
            assert is_back and all(torch.equal(*pair) for pair in zip(shares, wanted, strict=True))


def _render(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, layout: str = "even") -> WholeTake:
    return Renderer(card, ModelOptions(layout=layout), mesh=mesh).render(take, recipe)


ANY = [(Degrees(window_degree=3), "even"), (Degrees(cfg_degree=2, window_degree=2), "even"), (Degrees(ring_degree=3), "frames")]
ONE_WINDOW_AT_A_TIME = [(Degrees(ulysses_degree=2), "even"), (Degrees(ring_degree=3), "frames")]
BOTH_BRANCHES = [(Degrees(cfg_degree=2), "even"), *ONE_WINDOW_AT_A_TIME[:1]]


@pytest.mark.parametrize(
    ("recipe", "gangs"),
    [
        ("none", ANY),
        ("planned", ANY),
        ("easycache", ANY),
        ("meancache", ANY[1:2]),
        ("fbcache", ONE_WINDOW_AT_A_TIME),
        ("teacache", ONE_WINDOW_AT_A_TIME[:1]),
        ("dicache", ONE_WINDOW_AT_A_TIME),
        ("dmd", ONE_WINDOW_AT_A_TIME[:1]),
        ("foresight", ONE_WINDOW_AT_A_TIME[:1]),
        ("taylorseer", ONE_WINDOW_AT_A_TIME[1:]),
        ("fastercache", ONE_WINDOW_AT_A_TIME[:1]),
        ("speca", ONE_WINDOW_AT_A_TIME[1:]),
        ("ra_cfgcache", BOTH_BRANCHES),
    ],
)
def test_the_same_film_on_any_gang(gloo_pool: GlooPool, tiny_wan: Path, recipe: str, gangs: list[tuple[Degrees, str]]) -> None:
    """A recipe of every site, and of every predictor and trigger that measures. Its decisions made again give the same bits."""
    card, chosen = read_card(str(tiny_wan)), None if recipe == "none" else tiny_recipe(recipe)
    alone = gloo_pool.run(_render, 1, card, TAKE, chosen)[0]
    for degrees, layout in gangs:
        for rendered in gloo_pool.run(_render, degrees, card, TAKE, chosen, layout):
            assert_same_film(rendered, alone, f"with {degrees}")
    if alone.trace is not None:
        again = Renderer(card).render(TAKE, chosen, Replay(Trace.from_json(alone.trace.to_json())))
        assert again.trace is not None and again.trace.choices == alone.trace.choices
        assert_same(again.latents, alone.latents)


@pytest.mark.parametrize("recipe", ["fbcache", "teacache", "seacache", "taylorseer", "foresight", "speca", "fastercache"])
def test_windows_that_stay_where_they_are_keep_what_they_keep_without_shift(tiny_wan: Path, recipe: str) -> None:
    """A frame apart, windows have nowhere to go: what is kept frame by frame is then what is kept window by window."""
    renderer, apart = Renderer(read_card(str(tiny_wan))), replace(SHIFTED, overlap=4)
    shifted, plain = (
        renderer.render(replace(TAKE, num_frames=29, timeline=replace(apart, shift=shift)), tiny_recipe(recipe)) for shift in ("bit_reversed", "none")
    )
    assert shifted.trace is not None and plain.trace is not None
    of_tokens = [[entry.choice for entry in film.trace.entries if entry.site != "guidance"] for film in (shifted, plain) if film.trace]
    assert of_tokens[0] == of_tokens[1] and {choice[-1] for choice in of_tokens[0]} > {"compute"}
    assert_same(shifted.latents, plain.latents)


@pytest.mark.parametrize("recipe", ["planned", "easycache", "interval", "fbcache"])
def test_a_cache_hits_as_often_under_shift(tiny_wan: Path, recipe: str) -> None:
    renderer = Renderer(read_card(str(tiny_wan)))
    hits = []
    for shift in ("bit_reversed", "none"):
        trace = renderer.render(replace(TAKE, timeline=replace(SHIFTED, shift=shift)), tiny_recipe(recipe)).trace
        assert trace is not None
        hits.append(1 - trace.count(Decision.COMPUTE) / len(trace.entries))
    assert hits[0] >= 0.95 * hits[1] > 0.3


def _break(mesh: Mesh, card: ModelCard, recipe: Recipe | None, folder: Path) -> None:
    renderer = Renderer(card, mesh=mesh)
    rendering = renderer.steps(TAKE, recipe)
    for _ in range(5):
        next(rendering)
    renderer.save(folder)
    rendering.close()


def _go_on(mesh: Mesh, card: ModelCard, recipe: Recipe | None, folder: Path) -> WholeTake:
    return whole_take(Renderer(card, mesh=mesh).steps(TAKE, recipe, snapshot=folder))


@pytest.mark.parametrize("recipe", ["planned", "easycache", "fbcache", "dicache", "fastercache"])
def test_a_shifted_take_goes_on_after_a_break(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path, recipe: str) -> None:
    """On as many ranks to the bit."""
    card, chosen = read_card(str(tiny_wan)), tiny_recipe(recipe)
    two = Degrees(window_degree=2) if recipe in ("planned", "easycache") else Degrees(ulysses_degree=2)
    [whole, _] = gloo_pool.run(_render, two, card, TAKE, chosen)
    gloo_pool.run(_break, two, card, chosen, tmp_path)
    for rendered in gloo_pool.run(_go_on, two, card, chosen, tmp_path):
        assert torch.equal(rendered.latents, whole.latents)
        assert rendered.trace is not None and whole.trace is not None and rendered.trace.choices == whole.trace.choices
    for rendered in gloo_pool.run(_go_on, Degrees(ring_degree=3), card, chosen, tmp_path):
        assert_same_film(rendered, whole)


@pytest.mark.parametrize("recipe", ["planned", "fbcache", "dicache", "taylorseer", "fastercache"])
def test_what_is_held_is_no_more_than_was_said(tiny_wan: Path, recipe: str) -> None:
    card, chosen = read_card(str(tiny_wan)), tiny_recipe(recipe)
    renderer, held = Renderer(card), []
    for _ in renderer.steps(TAKE, chosen):
        held.append(renderer.cached.state.num_bytes if renderer.cached else 0)
    said = cache_bytes(chosen, card, TAKE, Degrees(), renderer.options)
    assert said / 4 < max(held) <= 1.02 * said, "but for sums that wait to be reduced"


def test_windows_that_shift_must_name_their_frames(tiny_wan: Path) -> None:
    cached = enable_cache(Renderer(read_card(str(tiny_wan))).family.transformer, "interval", num_inference_steps=4, overlap=2)
    with pytest.raises(ValueError, match="segment 1 does not say its latent frames"), cached.step(0, 900.0, "cond", 1):
        pass
    cached.disable()
    with pytest.raises(ValueError, match="overlap is 2, and stock pipelines have no windows that shift"):
        enable_cache(WanPipeline.from_pretrained(tiny_wan), "interval", num_inference_steps=4, overlap=2)


def test_what_cannot_shift_is_refused(tiny_wan: Path, tiny_hunyuan: Path) -> None:
    card, tokens, outputs = read_card(str(tiny_wan)), tiny_recipe("fbcache"), tiny_recipe("easycache")
    with pytest.raises(ValueError, match=r"timeline.shift is 'sideways'; it must be none or bit_reversed"):
        replace(TAKE, timeline=replace(SHIFTED, shift="sideways")).check(card)
    job = load_job({"takes": [{"name": "one", "prompt": "fog", "timeline": {"name": "full", "shift": "none"}}]})
    with pytest.raises(ValueError, match=r"timeline.shift belongs to timeline windows, not full"):
        resolve_takes(job, read_card("demo"), Fraction(16))
    check_recipe(outputs, card, TAKE, "", Degrees(window_degree=2))
    check_recipe(tokens, card, TAKE, "", Degrees(ulysses_degree=2))
    with pytest.raises(ValueError, match=r"take over from each other, .* set parallel.window_degree to 1, or timeline.shift=none"):
        check_recipe(tokens, card, TAKE, "", Degrees(window_degree=2))
    apart = replace(TAKE, timeline=replace(SHIFTED, overlap=1))
    check_recipe(outputs, card, apart, "")
    with pytest.raises(ValueError, match=r"share 1 latent frames and are 4 apart, .* raise timeline.overlap to half of timeline.window"):
        check_recipe(tokens, card, apart, "")
    beside = replace(TAKE, negative_prompt="", timeline=SHIFTED)
    with pytest.raises(ValueError, match="this model's blocks carry the text beside them; use a recipe that keeps the model's output"):
        check_recipe(tiny_recipe("fbcache", "hunyuan_video"), read_card(str(tiny_hunyuan)), beside, "")
