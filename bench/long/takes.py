"""The long takes that are measured: scenes of the demo's world whose motion changes on the way, on each timeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.demo.scene import FPS, MOTIONS, Scene, sample_scene, sentence
from ...pipeline.take import PromptAt, Take, TimelineSettings

ACT_SECONDS = 10.0  # after which the motion changes
WINDOW = 9  # latent frames: the demo's own clips
ROLLOUT = TimelineSettings("rollout", WINDOW, overlap=3, context="isolated")
WINDOWS = TimelineSettings("windows", WINDOW, overlap=5)
SHIFTED = replace(WINDOWS, overlap=6, shift="bit_reversed")  # windows that shift are forecast well where they share two thirds
BANDED = TimelineSettings("banded", WINDOW, overlap=0)
TIMELINES = {"windows": WINDOWS, "shifted": SHIFTED, "banded": BANDED, "rollout": ROLLOUT}
_STREAM, _FIRST_SEED = 37, 9000


@dataclass(frozen=True)
class Script:
    """A scene whose things move otherwise from act to act. acts: the scene in each motion; prompts: of the take."""

    acts: tuple[Scene, ...]
    seed: int

    @property
    def prompts(self) -> tuple[PromptAt, ...]:
        return tuple(PromptAt(round(number * ACT_SECONDS * FPS), sentence(act)) for number, act in enumerate(self.acts))


def script(number: int, num_acts: int) -> Script:
    """Of scenes that the model was trained on, always the same one under a number; a thing's motion in an act is another one than before."""
    rng = np.random.default_rng((_STREAM, number))
    acts = [sample_scene(rng)]
    while len(acts) < num_acts:
        motion = str(rng.choice([motion for motion in MOTIONS if motion != acts[-1].things[0].motion]))
        acts.append(replace(acts[-1], things=tuple(replace(thing, motion=motion) for thing in acts[-1].things)))
    return Script(tuple(acts), _FIRST_SEED + number)


def frames_in(card: ModelCard, seconds: float) -> int:
    """The nearest length that latent frames have."""
    return round(seconds * card.fps / card.temporal_stride) * card.temporal_stride + 1


def long_take(card: ModelCard, of: Script, timeline: TimelineSettings, num_frames: int, num_inference_steps: int) -> Take:
    """A take of as many of the script's prompts as begin in it."""
    settings: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": card.guidance_scale}
    clip = Take.clip(card, f"{timeline.name} {of.seed}", of.prompts[0].text, seed=of.seed, **settings)
    return replace(clip, num_frames=num_frames, prompts=tuple(prompt for prompt in of.prompts if prompt.frame < num_frames), timeline=timeline)
