"""The models that are measured, and their clips: those that are measured and, apart from them, those that tuning may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.random import Generator

from ....pipeline.checkpoint.card import ModelCard, read_card
from ....pipeline.demo import scene as demo_scene
from ...second import scene as second_scene

GUIDANCE_SCALE = 4.0
_TUNING, _NOW = 23, 31  # streams of scenes: of all tuning, and of the clips that are measured
_EARLIER = (23, 29)  # streams that some result, or a look at one, was measured on: at most their first `_SEEN` scenes
_SEEN = 100
_FIRST_SEED = 5000


@dataclass(frozen=True)
class Clip:
    prompt: str
    seed: int


@dataclass(frozen=True)
class Model:
    """folder: as `read_card` takes it. draw: the sentence of a random scene, held out from training or not; None where nothing moves in it."""

    name: str
    folder: str
    draw: Callable[[Generator, bool], str | None]

    @property
    def card(self) -> ModelCard:
        return read_card(self.folder)

    def tuning_clips(self, count: int) -> list[Clip]:
        """Trained scenes, for calibration and for choosing settings."""
        return [Clip(prompt, index) for index, prompt in _take(count, self._sentences(_TUNING, held_out=False), set())]

    def measured_clips(self, count: int) -> list[Clip]:
        """Scenes held out from training, none of which an earlier result was measured on. Only a run that writes results renders them."""
        seen = {prompt for stream in _EARLIER for _, prompt in _take(_SEEN, self._sentences(stream, held_out=True), set())}
        return [Clip(prompt, _FIRST_SEED + index) for index, prompt in _take(count, self._sentences(_NOW, held_out=True), seen)]

    def _sentences(self, stream: int, *, held_out: bool) -> Iterator[tuple[int, str]]:
        for index in range(1000):
            prompt = self.draw(np.random.default_rng((stream, index)), held_out)
            if prompt is not None:
                yield index, prompt


def _take(count: int, sentences: Iterator[tuple[int, str]], seen: set[str]) -> list[tuple[int, str]]:
    """The first so many that are new, each with its index."""
    found: dict[str, int] = {}
    for index, prompt in sentences:
        if len(found) < count and prompt not in seen:
            found.setdefault(prompt, index)
    return [(index, prompt) for prompt, index in found.items()]


def _demo_sentence(rng: Generator, held_out: bool) -> str | None:
    scene = demo_scene.sample_scene(rng, held_out=held_out)
    return demo_scene.sentence(scene) if any(thing.motion != "still" for thing in scene.things) else None


def _second_sentence(rng: Generator, held_out: bool) -> str:
    return second_scene.sentence(second_scene.sample_scene(rng, held_out=held_out))


_MODELS = (Model("demo", "demo", _demo_sentence), Model("second", str(resources.files("longtake.bench.second") / "model"), _second_sentence))
MODELS = {model.name: model for model in _MODELS}
