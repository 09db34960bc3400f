"""The contract of a predictor, and the window of computed features that most of them look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...later import torch
from ..state.holds import Holds
from ..state.storage import Kept, Storage

if TYPE_CHECKING:
    from torch import Tensor

    from ..sampler.linear_map import LinearMap
    from ..state.segments import Segments

_SAMPLED = 8  # one channel of so many is compared


class Predictor(ABC):
    """Forecasts one feature of one segment and branch from its computed past; made anew for each take.

    `at` is where a feature lies on the recipe's abscissa: steps are not evenly spaced once a trigger picks them. holds: what its attributes
    hold; every class declares those that it adds, so that they can be saved. storage: how its features are kept. span: how long the abscissa
    is, from noise to film. segments: of a take whose latents shards hold apart. num_text: how many of the feature's last tokens are text, which
    every shard holds. risk: the relative error that it expects of its forecast for the present step, for guards; None where it is not known.
    measures: whether `measure` gives sums.
    measures_features: whether these are of its features, not of the probe. knows_risk: whether it ever sets `risk`. needs_velocity: whether it
    stands in for velocities alone, at the site `output`. needs_abscissa: the one that it works along; empty: any.
    """

    measures = False
    measures_features = False
    knows_risk = False
    needs_velocity = False
    needs_abscissa = ""
    holds = Holds(settings=("config", "storage", "span", "segments"), numbers=("num_text", "risk"))

    def __init__(self) -> None:
        self.storage = Storage()
        self.span = 1.0
        self.segments: Segments | None = None
        self.num_text = 0
        self.risk: float | None = None

    @property
    def measured(self) -> slice:
        """The part of dim 1 that sums are of: all tokens but the text."""
        return slice(None, -self.num_text or None)

    def check_steps(self, num_inference_steps: int) -> None:  # noqa: B027 - most work for any number
        """Raise ValueError if its config was made for takes of another number of steps."""

    @property
    @abstractmethod
    def num_kept(self) -> int:
        """The most features that it holds at once."""

    @property
    def num_probes(self) -> int:
        """The most probes that it holds at once."""
        return 0

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether enough features were pushed to predict from; depends on how many, never on their values, so that all shards say the same."""

    @property
    def needs_sampler(self) -> bool:
        """Whether its forecasts fit some samplers alone, so that `check_sampler` must be asked."""
        return False

    def check_sampler(self, sampler: LinearMap) -> None:  # noqa: B027 - most do not ask how the latents move
        """Raise ValueError, with the mend, for a sampler that its forecasts do not fit."""

    def measure(self, at: float, probe: Tensor) -> Tensor | None:
        """Partial sums, fp64, that the forecast for `at` needs of all shards; None for predictors that need none.

        Called before each decision with the site's probe of the same call. Its length depends on class and config alone.
        """
        return None

    def receive(self, sums: Sequence[float]) -> None:  # noqa: B027 - most measure nothing
        """sums: what `measure` gave, added up over all shards; empty if it gave nothing."""

    def amend(self, at: float, feature: Tensor) -> Tensor:
        """What the model goes on with instead of the feature that was computed at `at` and is not pushed yet: as a rule the feature itself."""
        return feature

    @abstractmethod
    def push(self, at: float, feature: Tensor) -> None:
        """Keep the feature [batch, tokens, dim] that was computed at `at`."""

    @abstractmethod
    def predict(self, at: float, channels: int | None = None) -> Tensor:
        """The feature expected at `at`, of the pushed shape. channels: so many first values of its last dimension alone; None: all."""

    def settle(self, at: float, feature: Tensor) -> None:  # noqa: B027 - most have nothing to settle
        """Told that `feature`, predicted for `at`, was used instead of a computed one."""


class WindowPredictor(Predictor):
    """Predicts a weighted sum of the last few computed features; a subclass gives the weights."""

    holds = Holds(settings=("_length",), features=("_window",))

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length
        self._window: deque[tuple[float, Kept]] = deque(maxlen=length)

    @property
    def num_kept(self) -> int:
        return self._length

    @property
    def ready(self) -> bool:
        return bool(self._window)

    @property
    def places(self) -> list[float]:
        """Where the features of the window lie, oldest first."""
        return [at for at, _ in self._window]

    def push(self, at: float, feature: Tensor) -> None:
        """Keep the feature. Of two at one place (Heun's two calls at one sigma) the later one counts."""
        if self._window and self._window[-1][0] == at:
            self._window.pop()
        self._window.append((at, self.storage.put(feature)))

    @abstractmethod
    def weights(self, at: float) -> Sequence[float]:
        """One weight a feature of the window, oldest first."""

    def predict(self, at: float, channels: int | None = None) -> Tensor:
        assert self._window, "predict() before push()"
        return weighted_sum([kept for _, kept in self._window], self.weights(at), channels)


def sampled_channels(feature: Tensor) -> int | None:
    """On how many of its first channels a forecast is compared with a feature [batch, tokens, dim]: an eighth, which costs next to nothing.

    The same number on every shard; None, for all of it, where the feature is not tokens but latents.
    """
    return max(1, feature.shape[-1] // _SAMPLED) if feature.ndim == 3 else None


def weighted_sum(features: Sequence[Kept], weights: Sequence[float], channels: int | None = None) -> Tensor:
    """sum_j weights[j] features[j], in the features' dtype but summed in fp32; weight 1 on one of them alone gives it back as it is.

    channels: so many first values of the last dimension alone; None: all.
    """
    used = [(weight, kept) for weight, kept in zip(weights, features, strict=True) if weight != 0.0]
    if len(used) == 1 and used[0][0] == 1.0:
        return used[0][1].get(channels)
    total: Tensor | None = None
    for weight, kept in used:
        feature = kept.get(channels)
        total = feature.float() * weight if total is None else total.add_(feature, alpha=weight)
    first = features[0]
    return total.to(first.dtype) if total is not None else torch.zeros_like(first.get(channels))


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


def damped_weights(places: Sequence[float], at: float, damping: float) -> list[float]:
    """Lagrange's weights with only the share `damping` of the change since the last place believed: 1 for all of it, 0 for plain reuse."""
    weights = [damping * weight for weight in lagrange_weights(places, at)]
    weights[-1] += 1.0 - damping
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
