"""The contract of a predictor."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Predictor(ABC):
    """Foretells one feature of one segment and branch from its computed past; made anew for each take."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether enough was pushed to predict from; depends on how often, never on values."""

    @abstractmethod
    def push(self, step: int, feature: Tensor) -> None:
        """Take in the feature [batch, tokens, dim] computed at `step`."""

    @abstractmethod
    def predict(self, step: int) -> Tensor:
        """The feature expected at `step`, of the pushed shape."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What the predictor holds on to between steps."""
