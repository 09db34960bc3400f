"""Windows that begin elsewhere at each step: what they cover, and what a cache keeps of latent frames that move."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe, Replay, Trace
from longtake.cache.recipe.read import recipe_names
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.loop.render import Renderer, WholeTake
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.take import Take, TimelineSettings
from longtake.pipeline.timelines.windows import bit_reversed, windows

from same import assert_same_film
from takes import tiny_recipe, tiny_take

pytestmark = pytest.mark.numerical

SHIFTED = TimelineSettings("windows", 5, 3, shift="bit_reversed")
TAKE = tiny_take(num_inference_steps=8, timeline=SHIFTED)  # 11 latent frames
AT_LATENTS = ("easycache", "ertacache", "meancache", "planned")


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


def _render(mesh: Mesh, card: ModelCard, take: Take, recipe: Recipe | None, layout: str = "even", replayed: Trace | None = None) -> WholeTake:
    return Renderer(card, ModelOptions(layout=layout), mesh=mesh).render(take, recipe, Replay(replayed) if replayed else None)


GANGS = [
    (Degrees(window_degree=3), "even"),
    (Degrees(ulysses_degree=2), "even"),
    (Degrees(cfg_degree=2, window_degree=2), "even"),
    (Degrees(ring_degree=3), "frames"),
]


@pytest.mark.parametrize("recipe", ["none", *recipe_names()])
def test_the_same_film_on_any_gang(gloo_pool: GlooPool, tiny_wan: Path, recipe: str) -> None:
    card, chosen = read_card(str(tiny_wan)), None if recipe == "none" else tiny_recipe(recipe)
    alone = gloo_pool.run(_render, 1, card, TAKE, chosen)[0]
    gangs = GANGS
    if recipe not in ("none", *AT_LATENTS):
        gangs = [(Degrees(ulysses_degree=2), "even"), (Degrees(ring_degree=3), "frames")]
    for degrees, layout in gangs:
        for rendered in gloo_pool.run(_render, degrees, card, TAKE, chosen, layout):
            assert_same_film(rendered, alone, f"with {degrees}")
