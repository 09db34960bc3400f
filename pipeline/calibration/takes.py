"""The calibration takes in longtake's own loop, as plans and schedules are chosen on them (cache/calibration/takes.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...cache import Cached, Schedule
from ...cache.calibration.takes import Played, listening
from ..loop.denoise import Denoising
from ..loop.render import Renderer
from ..take import Take


@dataclass(frozen=True)
class RendererTakes:
    """takes: of one number of steps, sampler, guidance and size."""

    renderer: Renderer
    takes: Sequence[Take]

    @property
    def num_inference_steps(self) -> int:
        return self.takes[0].num_inference_steps

    def __len__(self) -> int:
        return len(self.takes)

    def render(self, index: int, cached: Cached | None = None, sigmas: Sequence[float] | None = None) -> Played:
        take = self.takes[index]
        if sigmas is not None:
            take = replace(take, num_inference_steps=len(sigmas), schedule=Schedule(list(sigmas)))
        if cached is not None:
            cached.attach([self.renderer.family.transformer])
        try:
            denoising = Denoising(self.renderer.family, take, cached, self.renderer.mesh)
            with listening(denoising.scheduler) as played:
                for _ in denoising:
                    pass
        finally:
            if cached is not None:
                cached.disable()
        return played
