"""What a stage measures, as results hold it. Knows numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One setting of one method on one stage: the median of the clips' speed-ups; means of their PSNR against the film of the same sampler, at
    its moving region alone, and against the converged film; and the worst clips' PSNR. computed: model calls of a branch, of which an uncached
    film takes one a step. of_clips: speed-up and PSNR (own, converged) of each clip; as many as the contender was measured on.
    """

    stage: str
    tool: str
    method: str
    setting: str
    speedup: float
    psnr: float
    psnr_moving: float
    psnr_converged: float
    psnr_worst: float
    psnr_converged_worst: float
    computed: float
    of_clips: tuple[tuple[float, float, float], ...]

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Measured:
        """As results hold it."""
        return cls(**{**values, "of_clips": tuple(map(tuple, values["of_clips"]))})

    @property
    def name(self) -> str:
        return f"{self.tool} {self.method}"
