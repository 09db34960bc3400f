"""Banded takes: against the whole take's attention and stock calls with attention by hand, on any gang, with every recipe, after a break."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe, load_recipe
from longtake.cache.decision import Decision
from longtake.cache.recipe.read import recipe_names
from longtake.cache.state.state import CacheState
from longtake.cache.state.storage import Storage
from longtake.cache.triggers import Moment
from longtake.jobs.settings.checks import check_degrees, demand
from longtake.jobs.settings.config import load_job, resolve_takes
from longtake.parallel.groups.degrees import Degrees, Demand, choose_degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.families import Family
from longtake.pipeline.families.wan import TakePositions
from longtake.pipeline.loop.render import Renderer, WholeTake, whole_take
from longtake.pipeline.noise import frame_noise
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.recipes.check import check_recipe
from longtake.pipeline.recipes.memory import cache_bytes
from longtake.pipeline.take import Take, TimelineSettings
from torch import Tensor
from torch.nn import functional as F

from same import assert_same, assert_same_film
from takes import tiny_recipe, tiny_take

pytestmark = pytest.mark.numerical

ANCHORED = TimelineSettings("banded", window=7, overlap=0, anchors=1)
TAKE = tiny_take(num_inference_steps=8, timeline=ANCHORED)  # 11 latent frames in segments of 2, each with a band of 6
PLAIN = replace(TAKE, timeline=TimelineSettings("banded", window=5, overlap=0))  # in segments of 1, each with a band of 5
# What each segment attends to, by hand: its own first frame, its band's, and the one that the anchor, frame 0, is shown as.
BANDS = {
    "anchored": [(0, 0, None), (2, 0, None), (4, 2, 1), (6, 4, 3), (8, 5, 4), (10, 5, 4)],
    "plain": [(0, 0, None), (1, 0, None), *((frame, frame - 2, None) for frame in range(2, 9)), (9, 6, None), (10, 6, None)],
}


@pytest.fixture(scope="module")
def renderer(tiny_wan: Path) -> Renderer:
    """One rank."""
    return Renderer(read_card(str(tiny_wan)))


def _turn(tensor: Tensor, frames: list[int], side: int = 2) -> Tensor:
    """Rotary positions by hand, as complex numbers: [1, tokens, heads, 12], 4 dims each for frame, row and column."""
    grid = torch.cartesian_prod(torch.tensor(frames), torch.arange(side), torch.arange(side)).double()
    angles = (grid[:, :, None] / torch.tensor([1.0, 100.0])).flatten(1)[:, None]  # 10000 ** (2 i / 4)
    turned = torch.view_as_complex(tensor.double().unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2).float()


class _ByHand:
    """Attention of a stock Wan block, segment by segment. texts: which of two each segment attends to."""

    def __init__(self, bands: list[tuple[int, int, int | None]], width: int, texts: list[int]) -> None:
        ends = [*(begin for begin, _, _ in bands[1:]), 11]
        self.segments = [(list(range(begin, end)), seen, anchor) for (begin, seen, anchor), end in zip(bands, ends, strict=True)]
        self.width, self.texts = width, texts

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        shown = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(shown)), attn.to_v(shown)
        query, key, value = (tensor.unflatten(2, (attn.heads, -1)) for tensor in (query, key, value))
        out = []
        for (frames, seen, anchor), text in zip(self.segments, self.texts, strict=True):
            own = query[:, frames[0] * 4 : (frames[-1] + 1) * 4]
            if encoder_hidden_states is None:
                own = _turn(own, frames)
                band = slice(seen * 4, (seen + self.width) * 4)
                keys, values = _turn(key[:, band], list(range(seen, seen + self.width))), value[:, band]
                if anchor is not None:
                    keys, values = torch.cat((_turn(key[:, :4], [anchor]), keys), dim=1), torch.cat((value[:, :4], values), dim=1)
            else:
                keys, values = (tensor.chunk(2, dim=1)[text] for tensor in (key, value))
            out.append(F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (own, keys, values))).transpose(1, 2))
        hidden: Tensor = attn.to_out[0](torch.cat(out, dim=1).flatten(2))
        return hidden


@torch.no_grad()
def _by_hand(family: Family, take: Take, name: str, texts: list[int]) -> Tensor:
    """With diffusers' transformer and scheduler, and texts as our family encodes them."""
    card = family.card
    transformer = WanTransformer3DModel.from_pretrained(card.path / "transformer")
    branches = []
    for prompts, which in (([prompt.text for prompt in take.prompts], texts), ([take.negative_prompt] * 2, [0] * len(texts))):
        embeds = torch.cat([family.encode_prompt(text)["encoder_hidden_states"] for text in prompts], dim=1)
        branches.append((embeds, _ByHand(BANDS[name], {"anchored": 6, "plain": 5}[name], which)))
    latents = frame_noise(take.seed, range(11), card.latent_channels, 4, 4)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(take.num_inference_steps)
    for timestep in scheduler.timesteps:
        velocities = []
        for embeds, processor in branches:
            for block in transformer.blocks:
                block.attn1.set_processor(processor)
                block.attn2.set_processor(processor)
            velocities.append(transformer(latents, timestep.expand(1), embeds, return_dict=False)[0])
        cond, uncond = velocities
        latents = scheduler.step(uncond + take.guidance_scale * (cond - uncond), timestep, latents, return_dict=False)[0]
    return latents


@pytest.mark.parametrize(
    ("name", "take", "texts"), [("anchored", TAKE, [0, 0, 0, 1, 1, 1]), ("plain", PLAIN, [0] * 5 + [1] * 6)], ids=["anchored", "plain"]
)
def test_a_banded_take_is_what_stock_calls_make_of_it(renderer: Renderer, name: str, take: Take, texts: list[int]) -> None:
    """The prompt changes at frame 20, latent frame 5: segments whose middle is before it attend to the first text."""
    assert_same(renderer.render(take, None).latents, _by_hand(renderer.family, take, name, texts))


@pytest.mark.parametrize("anchors", [0, 2])
def test_a_band_as_long_as_the_take_is_full_attention(renderer: Renderer, anchors: int) -> None:
    """In segments that have the same keys each."""
    full = tiny_take(num_frames=17, prompts=TAKE.prompts[:1], timeline=TimelineSettings("full", 0, 0))
    banded = replace(full, timeline=TimelineSettings("banded", 5 + anchors, 0, anchors))
    assert_same(renderer.render(banded, None).latents, renderer.render(full, None).latents)


def _render(mesh: Mesh, card: ModelCard, take: Take, recipe: Any = None) -> WholeTake:
    return Renderer(card, mesh=mesh).render(take, recipe)


GANGS = (
    Degrees(window_degree=2),
    Degrees(window_degree=3),
    Degrees(window_degree=2, ulysses_degree=2),
    Degrees(cfg_degree=2, window_degree=2),
    Degrees(ulysses_degree=3),
)


@pytest.mark.parametrize(("take", "gangs"), [(TAKE, GANGS), (PLAIN, GANGS[1:3])], ids=["anchored", "plain"])
def test_the_same_film_on_any_gang(gloo_pool: GlooPool, renderer: Renderer, take: Take, gangs: Sequence[Degrees]) -> None:
    alone = renderer.render(take, None)
    for degrees in gangs:
        for rendered in gloo_pool.run(_render, degrees, renderer.family.card, take):
            assert_same_film(rendered, alone, f"with {degrees}")


def _recipe(name: str, aggregate: str = "mean") -> Recipe:
    return load_recipe({**tiny_recipe(name).to_dict(), "aggregate": aggregate})


MEASURING = ("adacache", "fbcache", "foresight", "easycache", "planned", "ra_cfgcache", "seacache", "speca")


@pytest.mark.parametrize(("recipe", "aggregate"), [*((name, "mean") for name in recipe_names()), *((name, "max") for name in MEASURING)])
def test_every_recipe_decides_alike_on_any_gang(gloo_pool: GlooPool, renderer: Renderer, recipe: str, aggregate: str) -> None:
    card, chosen = renderer.family.card, _recipe(recipe, aggregate)
    alone = renderer.render(TAKE, chosen)
    assert alone.trace is not None
    assert {entry.segment for entry in alone.trace.entries} == {0}, "one decision a step for all segments"
    gangs = [degrees for degrees in GANGS if recipe != "fastercache" or degrees.cfg_degree == 1]
    for rendered in gloo_pool.run(_render, gangs[recipe_names().index(recipe) % len(gangs)], card, TAKE, chosen):
        assert_same_film(rendered, alone)


def _break(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path) -> None:
    """Save after three steps."""
    renderer = Renderer(card, mesh=mesh)
    rendering = renderer.steps(take, recipe)
    for _ in range(3):
        next(rendering)
    renderer.save(folder)
    rendering.close()


def _go_on(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, folder: Path, layout: str = "even") -> WholeTake:
    return whole_take(Renderer(card, ModelOptions(layout=layout), mesh=mesh).steps(take, recipe, snapshot=folder))


SNAPSHOTS = [
    ("none", "mean", "euler"),
    ("none", "mean", "unipc"),
    ("planned", "mean", "euler"),
    ("fbcache", "max", "euler"),
    ("easycache", "max", "euler"),
    ("foresight", "max", "euler"),
    ("seacache", "mean", "dpm++"),
    ("ra_cfgcache", "max", "euler"),
]


@pytest.mark.parametrize(("recipe", "aggregate", "scheduler"), SNAPSHOTS)
def test_a_banded_take_goes_on_after_a_break(
    gloo_pool: GlooPool, renderer: Renderer, tmp_path: Path, recipe: str, aggregate: str, scheduler: str
) -> None:
    """To the bit on as many ranks, and the same film on others."""
    card, two, take = renderer.family.card, Degrees(window_degree=2), replace(TAKE, scheduler=scheduler)
    chosen = None if recipe == "none" else _recipe(recipe, aggregate)
    whole = gloo_pool.run(_render, two, card, take, chosen)[0]
    gloo_pool.run(_break, two, card, take, chosen, tmp_path)
    for degrees, layout in ((two, "even"), (Degrees(window_degree=3), "even"), (Degrees(window_degree=2, ulysses_degree=2), "frames")):
        for rendered in gloo_pool.run(_go_on, degrees, card, take, chosen, tmp_path, layout):
            assert_same_film(rendered, whole, f"on {degrees}")
            assert degrees != two or torch.equal(rendered.latents, whole.latents)


def _sent_a_step(mesh: Mesh, card: ModelCard, num_frames: int) -> float:
    """Bytes that this rank sends in a step, without the latents that are brought together at the end."""
    renderer = Renderer(card, mesh=mesh)
    steps = renderer.steps(replace(TAKE, num_frames=num_frames), None)
    next(steps)
    before = mesh.traffic.sent_bytes
    for _ in range(3):
        next(steps)
    return (mesh.traffic.sent_bytes - before) / 3


def test_bytes_a_step_do_not_grow_with_the_take(gloo_pool: GlooPool, tiny_wan: Path) -> None:
    """A border between ranks is passed by keys and values of 2 frames one way and 2 the other, an anchor goes from the first rank to each of the
    others: at 3 blocks, two branches, 4 tokens a frame, 72 channels.
    """
    short, long = (gloo_pool.run(_sent_a_step, Degrees(window_degree=3), read_card(str(tiny_wan)), frames) for frames in (93, 933))
    frame = 3 * 2 * 2 * 4 * 72 * 4
    assert short == long == [(2 + 1 + 1) * frame, (2 + 2) * frame, 2 * frame]


def test_the_segment_that_changes_most_decides() -> None:
    """Of 20 segments one changes by half, the others by nothing: a mean of 0.025."""
    trigger_config = {"threshold": 0.1}
    segments = SimpleNamespace(num_segments=20, first_segment=0, frames_of_segments=lambda: [1] * 20, tokens_of_segments=lambda: [2] * 20)
    before, now = torch.ones(1, 40, 8), torch.ones(1, 40, 8)
    now[:, 6:8] += 0.5
    decisions = {}
    for aggregate in ("mean", "max"):
        recipe = load_recipe({**load_recipe("fbcache", {"trigger": trigger_config}).to_dict(), "aggregate": aggregate})
        trigger = CacheState(recipe, Storage(), 8.0, segments).slot(0, 0, "cond", 1, None).trigger
        for step, probe in enumerate((before, now)):
            sums = trigger.signal(probe)
            assert sums is not None
            decisions[aggregate] = trigger.decide(Moment(step, 500.0, 8), sums.tolist())
            trigger.settle(decisions[aggregate])
        assert trigger.value == pytest.approx({"mean": 0.025, "max": 0.5}[aggregate])
    assert decisions == {"mean": Decision.REUSE, "max": Decision.COMPUTE}


def test_how_segments_decide_is_part_of_a_recipe() -> None:
    assert "aggregate" not in load_recipe("fbcache").deciding()
    assert _recipe("fbcache", "max").deciding()["aggregate"] == "max"
    with pytest.raises(ValueError, match="aggregate is 'median'; it must be one of mean, max"):
        _recipe("fbcache", "median")
    with pytest.raises(ValueError, match="aggregate is max, but trigger interval measures nothing that segments could differ in; leave it out"):
        _recipe("fora", "max")


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (
            replace(tiny_recipe("fbcache"), aggregate="max"),
            "has aggregate: max, which is about the segments of timeline banded, .* is rendered with windows",
        ),
        (
            replace(tiny_recipe("planned"), border="keep"),
            "has border: keep, which is about the chunks of timeline rollout, .* is rendered with windows",
        ),
    ],
)
def test_what_a_recipe_says_of_one_timeline_is_refused_on_others(renderer: Renderer, recipe: Recipe, match: str) -> None:
    card = renderer.family.card
    with pytest.raises(ValueError, match=match):
        check_recipe(replace(recipe, calibration=None, calibrated=False), card, tiny_take(num_inference_steps=8), model="")
    check_recipe(replace(tiny_recipe("fbcache"), aggregate="max"), card, TAKE, model="")


@pytest.mark.slow
def test_a_take_beyond_the_rotary_table(gloo_pool: GlooPool, renderer: Renderer) -> None:
    """1,101 latent frames, 1,024 of which Wan's table reaches: the film of a model whose table is longer."""
    card, take = renderer.family.card, replace(TAKE, num_frames=4401, height=16, width=16, num_inference_steps=2)
    alone, other = renderer.render(take, None), Renderer(card)
    assert alone.latents.shape[2] == 1101
    other.family.transformer.rope = WanRotaryPosEmbed(12, (1, 2, 2), 2048)
    assert torch.equal(other.render(take, None).latents, alone.latents)
    for rendered in gloo_pool.run(_render, Degrees(window_degree=2), card, take):
        assert_same_film(rendered, alone)


def test_positions_beyond_the_table_are_made_as_it_is() -> None:
    rope, longer = (WanRotaryPosEmbed(12, (1, 2, 2), length) for length in (1024, 1030))
    bands = SimpleNamespace(frames=range(1020, 1030))
    latents = torch.empty(1, 4, 1030, 4, 4)
    ours = TakePositions(rope, cast("Any", bands)).tables(rope.forward, latents[:, :, 1020:])
    for table, whole in zip(ours, longer(latents), strict=True):
        assert torch.equal(table, whole[:, 1020 * 4 :])


@pytest.mark.parametrize(
    ("timeline", "match"),
    [
        ({"window": 37}, "timeline.window is 37 frames .10 latent ones., wider than the clips of 33 .9. .*; set timeline.window=33, or less"),
        ({"window": 33, "anchors": 9}, "timeline.anchors is 9; in a window of 9 latent frames there is room for 8 at most"),
        ({"anchors": -1}, "timeline.anchors is -1; it must be a number of latent frames, 0 for none"),
        ({"overlap": 4}, "timeline.overlap belongs to timeline windows or rollout, not banded"),
        ({"context": "joint"}, "timeline.context belongs to timeline rollout, not banded"),
        ({"noise": "diffusers"}, "noise is diffusers, which stock pipelines draw for a whole take at once; set noise=frame"),
        ({"prompts": [{"text": "a"}, {"frame": 128, "text": "b"}]}, "from frame 128 .'b'. is used by no segment"),
    ],
)
def test_settings_that_make_no_banded_take_are_refused(timeline: dict[str, Any], match: str) -> None:
    take = {"name": "one", "num_frames": 129, "prompts": timeline.pop("prompts", [{"text": "fog"}]), "noise": timeline.pop("noise", "frame")}
    job = load_job({"takes": [{**take, "timeline": {"name": "banded", **timeline}}]})
    with pytest.raises(ValueError, match=f"Take 'one': .*{match}"):
        resolve_takes(job, read_card("demo"), Fraction(16))


def test_a_family_whose_text_is_joined_to_its_frames_is_refused(tiny_hunyuan: Path) -> None:
    with pytest.raises(ValueError, match=r"timeline is banded, which this model cannot be rendered with: .*Set timeline=windows"):
        replace(PLAIN, negative_prompt="").check(read_card(str(tiny_hunyuan)))


def test_gangs_of_banded_takes_have_no_ring(gloo_pool: GlooPool, tiny_wan: Path) -> None:
    card = read_card(str(tiny_wan))
    wanted = demand(card, [TAKE], None)
    assert wanted == Demand(num_heads=6, num_tokens=4, num_branches=2, num_windows=6, has_ring=False)
    assert choose_degrees(10, wanted, 8)[0] == Degrees(cfg_degree=2, window_degree=5)
    assert choose_degrees(9, wanted, 8)[0] == Degrees(window_degree=3, ulysses_degree=3)
    with pytest.raises(ValueError, match="7 ranks cannot share 6 segments and 6 heads without a ring"):
        choose_degrees(7, wanted, 8)
    with pytest.raises(ValueError, match=r"parallel.ring_degree is 2, and timeline banded has no ring"):
        check_degrees(Degrees(ring_degree=2), card, [TAKE], None)
    with pytest.raises(ValueError, match=r"parallel.window_degree is 7, but a take has only 6"):
        check_degrees(Degrees(window_degree=7), card, [TAKE], None)
    assert set(gloo_pool.run(_refused_on_a_ring, Degrees(ring_degree=2), card)) == {True}


def _refused_on_a_ring(mesh: Mesh, card: ModelCard) -> bool:
    """And other takes go on as before."""
    renderer, other = Renderer(card, mesh=mesh), tiny_take(num_inference_steps=1, num_frames=17, prompts=TAKE.prompts[:1])
    before = renderer.render(other, None).latents
    with pytest.raises(ValueError, match="ring_degree is 2, and timeline banded has no ring"):
        renderer.render(TAKE, None)
    return torch.equal(renderer.render(other, None).latents, before)


def _most_held(mesh: Mesh, card: ModelCard, recipe: Recipe) -> int:
    renderer, held = Renderer(card, mesh=mesh), [0]
    for _ in renderer.steps(TAKE, recipe):
        assert renderer.cached is not None
        held.append(renderer.cached.state.num_bytes)
    return max(held)


@pytest.mark.parametrize(("recipe", "degrees"), [("dmd", Degrees(window_degree=2)), ("meancache", Degrees(window_degree=3)), ("fbcache", Degrees())])
def test_the_cache_holds_what_was_said(gloo_pool: GlooPool, tiny_wan: Path, recipe: str, degrees: Degrees) -> None:
    card, chosen = read_card(str(tiny_wan)), load_recipe(tiny_recipe(recipe), dtype="float8")
    held = gloo_pool.run(_most_held, degrees, card, chosen)
    assert cache_bytes(chosen, card, TAKE, degrees, ModelOptions()) == pytest.approx(max(held), rel=0.02)
    assert held[0] == max(held)
