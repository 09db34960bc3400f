"""Which steps to compute, and how to forecast the others: plans that are chosen by rendering them (cache/calibration/planning.py)."""

from __future__ import annotations

import logging

from ....cache import Recipe
from ....cache.calibration.plan import MAX_GAP
from ....cache.calibration.planning import Planning
from ...loop.render import Renderer
from ...take import Take
from ..method import Changes, Measured, Method, Setting
from ..takes import RendererTakes

_log = logging.getLogger(__name__)


def measure(renderer: Renderer, takes: list[Take], recipe: Recipe) -> Measured:
    planning = Planning(RendererTakes(renderer, takes), recipe, _log.info)

    def numbers(setting: Setting) -> Changes:
        return [planning.plan(setting.computed)]

    return numbers


METHOD = Method(measure, max_gap=MAX_GAP, free_end=True, linear=True, guided=True)
