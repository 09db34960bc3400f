"""The contract of a site, and what a site may ask of the run it belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from ..decision import Decision


class SiteRun(Protocol):
    """One model call as a site sees it."""

    def decide(self, probe: Tensor) -> Decision:
        """The common decision for this call; probe: what the trigger is to measure, this shard's [batch, tokens, dim] or latents."""

    def keep(self, feature: Tensor) -> None:
        """Hand over what was computed, for later steps."""

    def recall(self) -> Tensor:
        """What to use instead of computing."""


class Begin(Protocol):
    """Starts a model call's run. layers: what a REUSE leaves out, for the trace. num_tokens: how many of the probe's and the
    features' tokens signals are of (the rest is text, which every shard holds); None for all.
    """

    def __call__(self, layers: str, num_tokens: int | None) -> SiteRun: ...


class Site(ABC):
    """Runs a model with something of it kept from step to step."""

    @abstractmethod
    def check(self, num_blocks: int) -> None:
        """Raise ValueError if the site does not fit a model of so many blocks."""

    @abstractmethod
    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        """Take the transformer's calls over; returns what gives them back. Raises ValueError for a transformer that it cannot."""
