"""The contract of a site, and what it may ask of the model call that is running."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..decision import Verdict
from ..predictors import Predictor
from ..state.segments import Segments
from ..triggers import Moment, Trigger

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model and its calls, which say how much a cache holds.

    tokens: of one model call, this shard's; text_tokens: those that joint blocks carry beside them. dim: width of the hidden states.
    latents: values of the model's input. num_joint: of the `num_blocks`, how many keep the text apart (HunyuanVideo's first list); all
    others of a text-carrying model join it. batch: samples of a call. scales: of a sample's latents, where they are kept in fewer bits.
    """

    tokens: int
    text_tokens: int
    dim: int
    latents: int
    num_blocks: int
    num_joint: int
    batch: int = 1
    scales: int = 1


class SiteRun(Protocol):
    """One model call as a site sees it."""

    def decide(self, probe: Tensor, beside: Tensor | None = None) -> Verdict:
        """The common verdict for this call. probe: what the trigger is to measure, this shard's [batch, tokens, dim] without the text, or latents.

        beside: what predictors are to measure, if not the probe.
        """

    def keep(self, feature: Tensor, unit: int = 0, name: str = "", *, learnt: Tensor | None = None, num_text: int | None = None) -> Tensor:
        """Hand over what a unit computed, for later steps; returns what the model is to go on with, as a rule the same. name: of this
        feature among the unit's. learnt: the model's output, where the feature is not, for triggers that need it. num_text: of this feature,
        if not as many of its last tokens are text as `begin` was told.
        """

    def recall(self, unit: int = 0, name: str = "") -> Tensor:
        """What to use instead of computing."""

    def check(self, real: Tensor, draft: Tensor) -> None:
        """Show the trigger what was computed and what had been forecast of it."""

    @property
    def moment(self) -> Moment: ...

    @property
    def branch(self) -> str: ...

    @property
    def segment(self) -> int: ...

    @property
    def segments(self) -> Segments | None:
        """Those that the call shows, of a take whose latents shards hold apart."""

    @property
    def reused_run(self) -> int:
        """How many steps in a row were reused before this one; once this one is decided, it counts as well."""


class Begin(Protocol):
    """Starts a model call's run. units: the blocks that each unit stands for (empty ranges for the model whole), for the trace.
    num_text: how many of the features' last tokens are text, which every shard holds; None where features are no tokens.
    """

    def __call__(self, units: Sequence[range], num_text: int | None) -> SiteRun: ...


class Site(ABC):
    """Runs a model with something of it kept from step to step.

    label: names it in traces, apart from the recipe's other sites. sharded: whether its features are tokens, which shards share out; where
    they are not, all shards hold the same. watches_tokens: whether the trigger's probe is tokens. measures_tokens: whether the predictor's is.
    covers: what of the model it keeps, which no other part of a recipe may keep as well. keeps_velocity: whether that is the model's output as
    it is. keeps_units_apart: whether units are decided apart. checks: whether it checks forecasts. needs_branches: who must decide, one of
    BRANCHES; empty: any.
    """

    label: str
    sharded = True
    watches_tokens = True
    measures_tokens = True
    covers: frozenset[str] = frozenset()
    keeps_velocity = False
    keeps_units_apart = False
    checks = False
    needs_branches = ""

    def shards_signal(self, trigger: Trigger) -> bool:
        """Whether a trigger's sums here are of this shard's tokens alone; others are of what all shards hold, and count once."""
        return self.sharded if trigger.measures_features else self.watches_tokens

    def shards_measure(self, predictor: Predictor) -> bool:
        """The same of a predictor's sums."""
        return self.sharded if predictor.measures_features else self.measures_tokens

    @abstractmethod
    def check(self, shape: ModelShape) -> None:
        """Raise ValueError if the site does not fit such a model."""

    @abstractmethod
    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        """Take over the transformer's calls; returns a function that gives them back. Raises ValueError for a transformer that it does not know."""

    @abstractmethod
    def feature_values(self, shape: ModelShape) -> Iterator[int]:
        """How many values each feature that it keeps has, one after another."""

    @abstractmethod
    def probe_values(self, shape: ModelShape) -> tuple[int, int]:
        """How many values the trigger's probe has, and the predictor's."""
