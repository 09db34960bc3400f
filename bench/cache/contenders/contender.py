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
from ...journal import Journal
from ..films.models import GUIDANCE_SCALE, Clip
from ..films.studio import Studio
from ..stages import Stage

OURS = "longtake"
FEWER_STEPS = "fewer steps"
NUM_SETTINGS = {50: 6, 30: 6, 12: 6, 6: 4}  # by steps a film: 6 steps leave no more intervals and budgets to choose from
INTERVALS = (2, 3, 4, 5, 6, 8)

Put = Callable[[Any], AbstractContextManager[None]]


@dataclass(frozen=True)
class Setting:
    """put: takes a stock pipeline and keeps a fresh cache, or another sampler, on it inside the context. recipe: ours only.

    steps: of the film; 0 for as many as the stage's. sigmas: the noise levels that the film is rendered at, where they are ours.
    """

    label: str
    put: Put
    recipe: Recipe | None = None
    steps: int = 0
    sigmas: tuple[float, ...] = ()

    @property
    def content(self) -> str:
        """What tells this setting from another one of the same name."""
        return repr((self.label, self.recipe and self.recipe.to_dict(), self.steps, self.sigmas))


@dataclass(frozen=True)
class Contender:
    """named: by a bar, so that it is measured on every clip whatever it reaches on the first ones."""

    tool: str
    method: str
    settings: tuple[Setting, ...]
    named: bool = False

    @property
    def name(self) -> str:
        return f"{self.tool} {self.method}"


@dataclass(frozen=True)
class Tuning:
    """What calibration may look at: films of trained scenes, none of which is measured.

    renderer: the same model as the studio's, in longtake's own loop. clips: the tuning clips.
    """

    stage: Stage
    studio: Studio
    renderer: Renderer
    clips: list[Clip]
    journal: Journal

    @property
    def num_inference_steps(self) -> int:
        return self.stage.steps

    @property
    def num_settings(self) -> int:
        return NUM_SETTINGS[self.stage.steps]

    @property
    def takes(self) -> list[Take]:
        return self.takes_on(self.stage.sampler)

    def takes_on(self, sampler: str) -> list[Take]:
        prompts = [clip.prompt for clip in self.clips]
        return calibration_takes(self.renderer.family.card, prompts, self.num_inference_steps, GUIDANCE_SCALE, scheduler=sampler)


def geometric(low: float, high: float, count: int) -> list[float]:
    return [float(f"{value:.3g}") for value in np.geomspace(low, high, count)]


def longer(steps: int) -> float:
    """How much farther thresholds reach than at 50 steps: changes from step to step are larger, and fewer of them are left out."""
    return float((50 / steps) ** 0.5)
