"""Reuse the last computed feature as it is: the update strategy of static and timestep-adaptive caching (arXiv 2510.19755)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .predictor import Predictor


@dataclass(frozen=True)
class ReuseConfig:
    """Nothing to set."""


class Reuse(Predictor):
    def __init__(self, config: ReuseConfig) -> None:
        self._last: Tensor | None = None

    @property
    def ready(self) -> bool:
        return self._last is not None

    def push(self, step: int, feature: Tensor) -> None:
        self._last = feature

    def predict(self, step: int) -> Tensor:
        assert self._last is not None, "predict() before push()"
        return self._last

    def tensors(self) -> list[Tensor]:
        return [] if self._last is None else [self._last]
