"""What triggers and predictors hold from step to step, against what their classes declare."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from longtake.cache import Cached, enable_cache, load_recipe
from longtake.cache.predictors import PREDICTORS
from longtake.cache.recipe.read import recipe_names
from longtake.cache.state.holds import declared
from longtake.cache.state.storage import Kept
from longtake.cache.state.values import leaves, pack, restore, unpack
from longtake.cache.triggers import TRIGGERS
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.render import Renderer

from takes import tiny_recipe, tiny_take

PLAIN = (bool, int, float, str, type(None))


def _assert_declared(owner: Any) -> None:
    """Nothing that is not declared, nothing declared that is not there, and each thing of its kind."""
    holds, kind = declared(type(owner)), type(owner).__name__
    assert set(holds.state) <= vars(owner).keys() <= {*holds.settings, *holds.state}, kind
    assert len(holds.settings + holds.state) == len({*holds.settings, *holds.state}), f"{kind} declares something twice"
    for names, allowed in ((holds.numbers, ()), (holds.probes, torch.Tensor), (holds.sums, torch.Tensor), (holds.features, Kept)):
        for name in names:
            things = [leaf for leaf in leaves(getattr(owner, name)) if not isinstance(leaf, PLAIN)]
            assert all(isinstance(thing, allowed) for thing in things), f"{kind}.{name}"
            assert name not in holds.sums or all(thing.ndim == 1 and thing.dtype is torch.float64 for thing in things), f"{kind}.{name}"


def test_every_trigger_and_predictor_declares_all_that_it_holds(tiny_wan: Path) -> None:
    """At each step of a take of every recipe, which together use all of them."""
    renderer, take = Renderer(read_card(str(tiny_wan))), tiny_take(num_inference_steps=8, num_frames=13, prompts=tiny_take().prompts[:1])
    seen: set[type] = set()
    for name in recipe_names():
        for _ in renderer.steps(take, tiny_recipe(name)):
            assert renderer.cached is not None
            for slot in renderer.cached.state.slots.values():
                for owner in (slot.trigger, *slot.predictors.values()):
                    _assert_declared(owner)
                    seen.add(type(owner))
    assert seen == {kind for registry in (TRIGGERS, PREDICTORS) for _, kind in registry.values()}


def test_what_is_not_declared_is_not_saved_by_guess(tiny_wan: Path, tmp_path: Path) -> None:
    renderer = Renderer(read_card(str(tiny_wan)))
    steps = renderer.steps(tiny_take(num_inference_steps=8), tiny_recipe("fbcache"))
    next(steps)
    assert renderer.cached is not None
    trigger: Any = next(iter(renderer.cached.state.slots.values())).trigger
    trigger.value = torch.zeros(1)
    with pytest.raises(TypeError, match="a Tensor is declared to be numbers"):
        renderer.cached.save(tmp_path / "cache.safetensors")
    trigger.value, trigger.habit = 0.0, "new"
    with pytest.raises(AssertionError, match="RelativeChange does not say in `holds` what lies in habit"):
        renderer.cached.save(tmp_path / "cache.safetensors")
    assert not list(tmp_path.iterdir())
    steps.close()


@torch.no_grad()
def test_features_stand_in_for_the_frames_alone_that_they_are_of(tiny_wan: Path, tmp_path: Path) -> None:
    """Also when a cache goes on from a file; and what is refused loses nothing."""
    transformer, path = Renderer(read_card(str(tiny_wan))).family.transformer, tmp_path / "cache.safetensors"

    def call(cached: Cached, step: int, segment: int, frames: range | None) -> str:
        with cached.step(step, 900.0 - step, "cond", segment, frames):
            transformer(torch.zeros(1, 4, 5, 4, 4), torch.tensor([900.0 - step]), torch.zeros(1, 2, 128))
        return cached.trace.entries[-1].decision

    cached = enable_cache(transformer, "interval", num_inference_steps=6)
    assert [call(cached, 0, segment, range(3 * segment, 3 * segment + 5)) for segment in range(2)] == ["compute", "compute"]
    cached.save(path)
    for _ in range(2):
        for segment, frames, message in (
            (1, range(4, 9), "Segment 1 is of the latent frames 4 to 8 here, and what the cache keeps of it is of the latent frames 3 to 7"),
            (0, range(3, 8), "Segment 0 is of the latent frames 3 to 7 here, and what .* the latent frames 0 to 4"),
            (0, None, "Segment 0 is of frames that were not named here"),
            (2, range(3, 3), r"frames is range\(3, 3\); give the latent frames of segment 2"),
            (2, range(8, 3, -1), "frames is range"),
        ):
            with pytest.raises(ValueError, match=message):
                call(cached, 1, segment, frames)
        assert [call(cached, 1, 1, range(3, 8)), call(cached, 1, 0, range(5))] == ["reuse", "reuse"]
        cached.reset()
        assert call(cached, 0, 0, range(3, 8)) == "compute"
        cached.load(path)
    cached.disable()


@torch.no_grad()
def test_a_cache_that_goes_on_knows_whose_features_it_has(tiny_wan: Path, tmp_path: Path) -> None:
    """Of two experts that take turns the second one had begun: what is kept is its own."""
    experts = [Renderer(read_card(str(tiny_wan))).family.transformer for _ in range(2)]

    def call(cached: Cached, step: int, expert: int) -> str:
        with cached.step(step, 900.0 - step, "cond"):
            experts[expert](torch.zeros(1, 4, 1, 4, 4), torch.tensor([900.0 - step]), torch.zeros(1, 2, 128))
        return cached.trace.entries[-1].decision

    for goes_on in (False, True):
        cached = enable_cache(experts, "interval", num_inference_steps=6)
        if goes_on:
            cached.load(tmp_path / "cache.safetensors")
        else:
            assert [call(cached, step, expert) for step, expert in ((0, 0), (1, 0), (2, 1))] == ["compute", "reuse", "compute"]
            cached.save(tmp_path / "cache.safetensors")
        assert call(cached, 3, 1) == "reuse"
        cached.disable()


@torch.no_grad()
@pytest.mark.parametrize("border", ["reset", "keep"])
def test_a_border_keeps_what_triggers_carry_and_nothing_else(tiny_wan: Path, tmp_path: Path, border: str) -> None:
    """Also in a file that is written between two rounds."""
    transformer = Renderer(read_card(str(tiny_wan))).family.transformer
    recipe = load_recipe({**tiny_recipe("planned").to_dict(), "border": border})

    def call(cached: Cached, segment: int) -> Any:
        with cached.step(0, 900.0, "cond", segment):
            transformer(torch.ones(1, 4, 1, 4, 4), torch.tensor([900.0]), torch.zeros(1, 2, 128))
        return cached.state.slots[(0, segment, "cond")]

    cached = enable_cache(transformer, recipe, num_inference_steps=8)
    call(cached, 0).trigger._inserted = [2]
    cached.next_round()
    assert not cached.state.slots and not cached.state.num_bytes
    cached.save(tmp_path / "cache.safetensors")
    for _ in range(2):
        slot = call(cached, 1)
        assert (slot.trigger._inserted, slot.trigger._step) == ([2] if border == "keep" else [], 0)
        assert [predictor.places for predictor in slot.predictors.values()] == [[0.0]]
        slot.trigger._inserted.append(3)
        cached.load(tmp_path / "cache.safetensors")
    cached.reset()
    assert call(cached, 2).trigger._inserted == []
    cached.disable()


def test_a_window_s_features_know_its_frames(tiny_wan: Path) -> None:
    renderer = Renderer(read_card(str(tiny_wan)))
    steps = renderer.steps(tiny_take(num_inference_steps=8), tiny_recipe("fbcache"))
    next(steps)
    assert renderer.cached is not None
    kept = {segment: slot.frames for (_, segment, _), slot in renderer.cached.state.slots.items()}
    assert kept == {0: range(5), 1: range(3, 8), 2: range(6, 11)}
    steps.close()


def test_plain_data_with_tensors_in_it_comes_back() -> None:
    tensors: list[torch.Tensor] = []

    def put(tensor: torch.Tensor) -> int:
        tensors.append(tensor)
        return len(tensors) - 1

    first, second = torch.zeros(2), torch.ones(3)
    value = {3: [(0.5, first), None], 4: deque([True, (second,)]), 5: "text"}
    back = unpack(pack(value, put), tensors.__getitem__)
    assert back == value and isinstance(back[4], deque)
    assert list(leaves(value)) == [0.5, first, None, True, second, "text"]
    owner = SimpleNamespace(window=deque[int](maxlen=2))
    restore(owner, {"window": deque([1, 2, 3]), "other": 7})
    assert (list(owner.window), owner.window.maxlen, owner.other) == ([2, 3], 2, 7)
