"""The demo world is drawn, split, worded and read back consistently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, fields, replace
from itertools import combinations, product

import numpy as np
import pytest
from longtake.pipeline.demo import scene as world
from longtake.pipeline.demo.analyse import Findings, Verdict, analyse, judge
from longtake.pipeline.demo.scene import Scene, Thing, all_held_out, draw, is_held_out, sample_scene, sentence, vocabulary
from numpy.random import Generator
from numpy.typing import NDArray

pytestmark = pytest.mark.numerical

Frames = NDArray[np.uint8]

NUM_FRAMES = 33
NUM_CLIPS = 100
ALL = list(product(world.SHAPES, world.COLOURS, world.MOTIONS, world.BACKGROUNDS))
OPTIONS = {"shape": world.SHAPES, "colour": tuple(world.COLOURS), "motion": world.MOTIONS}


def _as_drawn(frames: Frames, rng: Generator) -> Frames:
    return frames


def _degraded(frames: Frames, rng: Generator) -> Frames:
    """Blur with the 3x3 binomial kernel, then add noise of sigma 6."""
    blurred = frames.astype(np.float32)
    for axis in (1, 2):
        width = [(1, 1) if axis == each else (0, 0) for each in range(4)]
        padded = np.moveaxis(np.pad(blurred, width, mode="edge"), axis, 0)
        blurred = np.moveaxis((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4, 0, axis)
    noise = 6 * rng.standard_normal(frames.shape, np.float32)
    return np.clip(np.rint(blurred + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("render", "bar"), [(_as_drawn, 0.99), (_degraded, 0.97)])
def test_clips_are_read_back(render: Callable[[Frames, Generator], Frames], bar: float) -> None:
    right: Counter[str] = Counter()
    kinds: Counter[tuple[bool, int]] = Counter()
    for seed in range(NUM_CLIPS):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, held_out=seed % 2 == 0, two_things=0.4)
        verdict = judge(render(draw(scene, NUM_FRAMES), rng), scene)
        right.update(field.name for field in fields(Verdict) if getattr(verdict, field.name))
        kinds[seed % 2 == 0, len(scene.things)] += 1
    shares = {field.name: right[field.name] / NUM_CLIPS for field in fields(Verdict)}
    print(shares)
    assert min(shares.values()) >= bar, shares
    assert len(kinds) == 4 and min(kinds.values()) >= 10, kinds


@pytest.mark.parametrize("seed", range(4))
def test_one_wrong_attribute_is_noticed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, two_things=0.5 if seed else 1.0)
    frames = draw(scene, NUM_FRAMES)
    assert astuple(judge(frames, scene)) == (True, True, True, True)

    which = int(rng.integers(len(scene.things)))
    taken = {thing.colour for thing in scene.things}
    for attribute, options in OPTIONS.items():
        kept = getattr(scene.things[which], attribute)
        other = str(rng.choice([o for o in options if o != kept and not (attribute == "colour" and o in taken)]))
        verdict = judge(frames, _with(scene, which, replace(scene.things[which], **{attribute: other})))
        if attribute == "colour":  # the asked thing is not there, so it has neither its shape nor its motion
            assert verdict == Verdict(colour=False, shape=False, motion=False, background=True)
        else:
            assert verdict == replace(Verdict(True, True, True, True), **{attribute: False})

    background = str(rng.choice([b for b in world.BACKGROUNDS if b != scene.background]))
    assert judge(frames, replace(scene, background=background)) == Verdict(True, True, True, background=False)


def _with(scene: Scene, which: int, thing: Thing) -> Scene:
    return replace(scene, things=(*scene.things[:which], thing, *scene.things[which + 1 :]))


def test_a_missing_and_a_surplus_thing_are_wrong_colours() -> None:
    scene = sample_scene(np.random.default_rng(5), two_things=1.0)
    alone = replace(scene, things=scene.things[:1])
    assert not judge(draw(alone, NUM_FRAMES), scene).colour
    assert judge(draw(scene, NUM_FRAMES), alone) == Verdict(colour=False, shape=True, motion=True, background=True)


@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_a_background_alone_shows_no_thing(background: str) -> None:
    scene = Scene((), background, phase=(3.0, 5.0), drift=(0.4, -0.3))
    frames = _degraded(draw(scene, 17), np.random.default_rng(0))
    assert analyse(frames) == Findings(background, {})


@pytest.mark.parametrize("shape", [(16, 96, 96, 3), (33, 3, 96, 96), (33, 64, 64, 3)])
def test_frames_of_another_layout_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot analyse frames"):
        analyse(np.zeros(shape, np.uint8))


def test_a_background_that_cannot_be_seen_has_no_name() -> None:
    bands = np.repeat(np.array(list(world.COLOURS.values()), np.uint8), 16, axis=0)
    assert analyse(np.broadcast_to(bands[None, :, None], (17, 96, 96, 3)).copy()).background is None


def test_a_fifth_of_all_combinations_is_held_out() -> None:
    held_out = all_held_out()
    assert 0.19 <= len(held_out) / len(ALL) <= 0.21
    assert set(held_out) == {c for c in ALL if is_held_out(*c)}


def test_each_pair_of_attributes_is_trained_together() -> None:
    trained = [c for c in ALL if not is_held_out(*c)]
    for i, j in combinations(range(4), 2):
        assert {(c[i], c[j]) for c in trained} == {(c[i], c[j]) for c in ALL}


@pytest.mark.parametrize("held_out", [False, True])
def test_sampled_scenes_keep_to_their_side(held_out: bool) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, held_out=held_out, two_things=0.5) for _ in range(500)]
    assert {is_held_out(*c) for scene in scenes for c in scene.combinations()} == {held_out}
    assert {len(scene.things) for scene in scenes} == {1, 2}


def test_every_word_of_a_sentence_is_in_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    words: set[str] = set()
    for index in range(2000):
        scene = sample_scene(rng, held_out=index % 2 == 0, two_things=0.5)
        words |= {*sentence(scene).split(), *sentence(scene, rng).split()}
    assert words == set(vocabulary())
    assert vocabulary() == sorted(set(vocabulary()))


@pytest.mark.parametrize("start", [1, 17, 40])
def test_a_clip_drawn_from_a_later_frame_continues(start: int) -> None:
    rng = np.random.default_rng(start)
    for _ in range(10):
        scene = sample_scene(rng, two_things=0.5)
        np.testing.assert_array_equal(draw(scene, 9, start=start), draw(scene, 9 + start)[start:])
