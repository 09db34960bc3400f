"""The second model's world is drawn, split, worded and read back consistently."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from longtake.bench.second import scene as world
from longtake.bench.second.judge import Findings, Verdict, analyse, judge
from longtake.bench.second.scene import NUM_FRAMES, SIZE, Scene, all_held_out, draw, is_held_out, sample_scene, sentence, vocabulary
from longtake.bench.second.score import record, shares
from numpy.random import Generator
from numpy.typing import NDArray

pytestmark = pytest.mark.numerical

Frames = NDArray[np.uint8]

OPTIONS = {"colour": tuple(world.COLOURS), "shape": world.SHAPES, "motion": world.MOTIONS, "ground": tuple(world.GROUNDS)}
ALL = list(product(*OPTIONS.values()))
RIGHT = Verdict(colour=True, shape=True, motion=True, ground=True)


def _degraded(frames: Frames, rng: Generator) -> Frames:
    """Mean of a pixel and its eight neighbours, a little noise: what a VAE may do to a picture and more."""
    padded = np.pad(frames.astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    blurred = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).mean(axis=(-1, -2))
    return np.clip(np.rint(blurred + 6 * rng.standard_normal(frames.shape)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("degrade", [False, True])
def test_clips_are_read_back(degrade: bool) -> None:
    verdicts = []
    for seed in range(48):
        rng = np.random.default_rng(seed)
        scene = sample_scene(rng, held_out=seed % 2 == 0)
        frames = draw(scene)
        verdicts.append(judge(_degraded(frames, rng) if degrade else frames, scene))
    print(shares(verdicts))
    assert min(shares(verdicts).values()) >= 0.97


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_one_wrong_attribute_is_noticed(motion: str) -> None:
    scene = Scene("azure", "wedge", motion, "cave", angle=0.2, tilt=-0.2)
    frames = draw(scene)
    assert judge(frames, scene) == RIGHT
    for attribute, options in OPTIONS.items():
        other = next(option for option in options if option != getattr(scene, attribute))
        assert judge(frames, replace(scene, **{attribute: other})) == replace(RIGHT, **{attribute: False})


def test_no_motion_and_two_motions_have_no_name() -> None:
    sliding = draw(Scene("lime", "bow", "right", "sea"))
    assert analyse(sliding).motion == "right"
    still = np.repeat(sliding[:1], NUM_FRAMES, axis=0)
    assert analyse(still) == Findings("lime", "bow", None, "sea")
    growing = draw(Scene("lime", "bow", "grow", "sea"))
    both = np.stack([np.roll(frame, time - NUM_FRAMES // 2, axis=1) for time, frame in enumerate(growing)])
    assert analyse(both) == Findings("lime", "bow", None, "sea")
    falling = np.stack([np.roll(frame, time - NUM_FRAMES // 2, axis=0) for time, frame in enumerate(still)])
    assert analyse(falling).motion is None
    late = np.concatenate([np.zeros_like(sliding[:2]), sliding[2:]])
    assert analyse(late).motion is None


@pytest.mark.parametrize("ground", world.GROUNDS)
def test_a_ground_alone_shows_no_shape(ground: str) -> None:
    empty = np.repeat(np.rint(world.draw_ground(Scene("lime", "bow", "grow", ground))).astype(np.uint8)[None], NUM_FRAMES, axis=0)
    assert analyse(_degraded(empty, np.random.default_rng(0))) == Findings(None, None, None, ground)


def test_a_ground_that_cannot_be_seen_has_no_name() -> None:
    assert analyse(np.full((NUM_FRAMES, SIZE, SIZE, 3), 240, np.uint8)).ground is None


@pytest.mark.parametrize("shape", [(NUM_FRAMES - 1, SIZE, SIZE, 3), (NUM_FRAMES, 3, SIZE, SIZE), (NUM_FRAMES, 96, 96, 3)])
def test_frames_of_another_layout_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot analyse frames"):
        analyse(np.zeros(shape, np.uint8))


def test_a_fifth_of_all_combinations_is_held_out_and_each_pair_is_trained() -> None:
    assert 0.19 <= len(all_held_out()) / len(ALL) <= 0.21
    trained = [one for one in ALL if not is_held_out(*one)]
    for i, j in combinations(range(4), 2):
        assert {(one[i], one[j]) for one in trained} == {(one[i], one[j]) for one in ALL}
    rng = np.random.default_rng(0)
    for held_out in (False, True):
        assert {is_held_out(*sample_scene(rng, held_out=held_out).combination()) for _ in range(200)} == {held_out}


def test_sentences_say_the_scene_in_known_words() -> None:
    rng = np.random.default_rng(0)
    words: Counter[str] = Counter()
    plainest = set()
    for combination in ALL:
        scene = Scene(*combination)
        plainest.add(sentence(scene))
        assert {scene.colour, scene.shape, scene.ground} <= set(sentence(scene, rng).split())
        words.update(f"{sentence(scene)} {sentence(scene, rng)}".split())
    assert len(plainest) == len(ALL)
    assert sorted(words) == vocabulary()


def test_the_score_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# A model\n\nWhat it is.\n")
    for motion in (0.25, 0.75):
        record(card, {**asdict(RIGHT), "motion": motion}, 4, 50)
    text = card.read_text()
    assert text.startswith("# A model\n\nWhat it is.\n\n## Score\n")
    assert "motion 75.0%" in text and "25.0%" not in text
