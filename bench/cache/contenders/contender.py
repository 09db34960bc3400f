"""What is compared: a contender is a tool and a method of it, with the settings that are tried."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....cache import Recipe
from ....pipeline.calibration.calibrate import calibration_takes
from ....pipeline.loop.render import Renderer
from ....pipeline.take import Take
from ..films.studio import GUIDANCE_SCALE, Clip, Studio
from ..journal import Journal

OURS = "longtake"
STEPS = (50, 12, 6)
NUM_SETTINGS = {50: 6, 12: 6, 6: 4}  # by steps a film: 6 steps leave no more intervals and budgets to choose from
INTERVALS = (2, 3, 4, 5, 6, 8)

Put = Callable[[Any], AbstractContextManager[None]]


@dataclass(frozen=True)
class Setting:
    """put: takes a stock pipeline and keeps a fresh cache on it inside the context. recipe: ours only."""

    label: str
    put: Put
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Contender:
    tool: str
    method: str
    settings: tuple[Setting, ...]

    @property
    def name(self) -> str:
        return f"{self.tool} {self.method}"


@dataclass(frozen=True)
class Tuning:
    """What calibration may look at: films of trained scenes, none of which is measured.

    renderer: the same model as the studio's, in longtake's own loop.
    """

    studio: Studio
    renderer: Renderer
    clips: list[Clip]
    num_inference_steps: int
    journal: Journal

    @property
    def num_settings(self) -> int:
        return NUM_SETTINGS[self.num_inference_steps]

    @property
    def takes(self) -> list[Take]:
        prompts = [clip.prompt for clip in self.clips]
        return calibration_takes(self.renderer.family.card, prompts, self.num_inference_steps, GUIDANCE_SCALE)


def geometric(low: float, high: float, count: int) -> list[float]:
    return [float(f"{value:.3g}") for value in np.geomspace(low, high, count)]


def longer(steps: int) -> float:
    """How much farther thresholds reach than at 50 steps: changes from step to step are larger, and fewer of them are left out."""
    return float((50 / steps) ** 0.5)
