"""Measuring recipes on a short clip that stands for a take. Knows a loaded model and the clock."""

from __future__ import annotations

import math
import time
from statistics import median_low

from torch import Tensor

from ...cache import Recipe
from ...cache.decision import Decision
from ..loop.render import Renderer, WholeTake
from ..take import Take
from .search import Trial

_TRIALS_A_REFERENCE = 6


class ProxyBench:
    """Renders a take again and again and compares it with the take without a cache, which is timed again every few trials."""

    def __init__(self, renderer: Renderer, take: Take) -> None:
        self.renderer, self.take = renderer, take
        rendered, first = self._timed(None)
        self._frames = [chunk.cpu() for chunk in renderer.family.decode(rendered.latents)]
        self._uncached = [first, self._timed(None)[1]]
        self._num_trials = 0

    @property
    def seconds(self) -> float:
        """Denoising without a cache, the median of the last three runs: one slow run, maybe the first, makes no recipe look fast."""
        return median_low(self._uncached[-3:])

    def measure(self, recipe: Recipe) -> Trial:
        self._num_trials += 1
        if self._num_trials % _TRIALS_A_REFERENCE == 0:
            self._uncached.append(self._timed(None)[1])
        rendered, seconds = self._timed(recipe)
        assert rendered.trace is not None
        computed = rendered.trace.count(Decision.COMPUTE) / len(rendered.trace.entries)
        return Trial(recipe, self._psnr(rendered.latents), self.seconds / seconds, computed)

    def _timed(self, recipe: Recipe | None) -> tuple[WholeTake, float]:
        """A render and the seconds of its denoising."""
        began = time.perf_counter()
        rendered = self.renderer.render(self.take, recipe)
        rendered.latents.cpu()  # waits for the device
        return rendered, time.perf_counter() - began

    def _psnr(self, latents: Tensor) -> float:
        """dB, of decoded frames in 0..1, before video compression; inf where nothing differs."""
        squares, count = 0.0, 0
        for reference, chunk in zip(self._frames, self.renderer.family.decode(latents), strict=True):
            squares += float((chunk.cpu() - reference).double().square().sum())
            count += reference.numel()
        return 10 * math.log10(count / squares) if squares else math.inf
