"""The contract of a predictor, and the window of computed features that most of them look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor


class Predictor(ABC):
    """Foretells one feature of one segment and branch from its computed past; made anew for each take.

    `at` is where a feature lies on the recipe's abscissa: steps are not evenly spaced once a trigger picks them.
    """

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether enough was pushed to predict from; depends on how often, never on values."""

    @abstractmethod
    def push(self, at: float, feature: Tensor) -> None:
        """Take in the feature [batch, tokens, dim] computed at `at`."""

    @abstractmethod
    def predict(self, at: float) -> Tensor:
        """The feature expected at `at`, of the pushed shape."""

    def settle(self, at: float, feature: Tensor) -> None:  # noqa: B027 - most have nothing to settle
        """Take note that `feature`, predicted for `at`, was used instead of a computed one."""

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """What the predictor holds on to between steps."""


class WindowPredictor(Predictor):
    """Predicts a weighted sum of the last few computed features; a subclass gives the weights."""

    def __init__(self, length: int) -> None:
        self._window: deque[tuple[float, Tensor]] = deque(maxlen=length)

    @property
    def ready(self) -> bool:
        return bool(self._window)

    @property
    def places(self) -> list[float]:
        """Where the features of the window lie, oldest first."""
        return [at for at, _ in self._window]

    def push(self, at: float, feature: Tensor) -> None:
        self._window.append((at, feature))

    @abstractmethod
    def weights(self, at: float) -> Sequence[float]:
        """One weight a feature of the window, oldest first."""

    def predict(self, at: float) -> Tensor:
        assert self._window, "predict() before push()"
        weights = self.weights(at)
        return weighted_sum([feature for _, feature in self._window], weights)

    def tensors(self) -> list[Tensor]:
        return [feature for _, feature in self._window]


def weighted_sum(features: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_j weights[j] features[j], in the features' dtype but summed in fp32; weight 1 on one of them alone gives it back as it is."""
    used = [(weight, feature) for weight, feature in zip(weights, features, strict=True) if weight != 0.0]
    if len(used) == 1 and used[0][0] == 1.0:
        return used[0][1]
    total = torch.zeros_like(features[0], dtype=torch.float32)
    for weight, feature in used:
        total.add_(feature, alpha=weight)
    return total.to(features[0].dtype)


def lagrange_weights(places: Sequence[float], at: float) -> list[float]:
    """Weights of values at `places` in the value at `at` of the polynomial through all of them; exact for any gaps."""
    weights = []
    for j, own in enumerate(places):
        weight = 1.0
        for k, other in enumerate(places):
            if k != j:
                weight *= (at - other) / (own - other)
        weights.append(weight)
    return weights


def difference_weights(places: Sequence[float], order: int) -> list[float]:
    """Weights of values at `places`, newest last, in their divided difference over the newest `order` + 1 of them."""
    newest = places[len(places) - order - 1 :]
    weights = [0.0] * (len(places) - len(newest))
    for j, own in enumerate(newest):
        weight = 1.0
        for k, other in enumerate(newest):
            if k != j:
                weight /= own - other
        weights.append(weight)
    return weights
