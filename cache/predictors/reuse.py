"""Reuse the last computed feature as it is: the update strategy of static and timestep-adaptive caching (arXiv 2510.19755)."""

from __future__ import annotations

from dataclasses import dataclass

from .predictor import WindowPredictor


@dataclass(frozen=True)
class ReuseConfig:
    """Nothing to set."""


class Reuse(WindowPredictor):
    def __init__(self, config: ReuseConfig) -> None:
        super().__init__(1)

    def weights(self, at: float) -> list[float]:
        return [1.0]
