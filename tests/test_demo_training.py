"""What the demo model's text encoder is taught, and that it can learn it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from longtake.pipeline.demo import scene as world
from longtake.pipeline.demo.nets import build_text_encoder, build_tokenizer
from longtake.pipeline.demo.training.text import NO_ANSWER, answers_of

pytestmark = pytest.mark.numerical


@given(seed=st.integers(0, 2**32 - 1))
def test_answers_lie_at_the_words_that_say_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = world.sample_scene(rng, two_things=0.7)
    said = world.clauses(scene, rng)
    words = world.join_clauses(said).split()
    tokenizer = build_tokenizer(world.vocabulary())
    assert tokenizer.decode(tokenizer(" ".join(words)).input_ids, skip_special_tokens=True).split() == words
    answers = {name: row[0].tolist() for name, row in answers_of([scene], [said], len(words) + 1).items()}
    colours = [place for place, word in enumerate(words) if word in world.COLOURS]
    assert len(colours) == len(scene.things)
    for order, (place, thing) in enumerate(zip(colours, scene.things, strict=True)):
        right = {
            "order": order,
            "shape": world.SHAPES.index(words[place + 1]),
            "colour": list(world.COLOURS).index(words[place]),
            "motion": world.MOTIONS.index(thing.motion),
            "background": NO_ANSWER,
        }
        for word in (place, place + 1, place + 2):  # colour, shape and verb
            assert {name: row[word] for name, row in answers.items()} == right
    ground = next(place for place, word in enumerate(words) if word in world.BACKGROUNDS)
    assert {name: row[ground] for name, row in answers.items()} == {
        **dict.fromkeys(answers, NO_ANSWER),
        "background": world.BACKGROUNDS.index(scene.background),
    }


def test_an_untrained_encoder_tells_a_words_neighbour() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer(world.vocabulary())
    encoder = build_text_encoder(len(tokenizer)).eval()
    tokens = tokenizer(["a red cross and a blue circle", "a red circle and a blue cross"], return_tensors="pt")
    with torch.no_grad():
        red, red_too = encoder(tokens.input_ids).last_hidden_state[:, 1]
    assert (red - red_too).norm() > 0.05 * red.norm()
