"""The contract of a site, and what a site may ask of the run it belongs to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ..decision import Decision

Block = Callable[[Tensor], Tensor]


class SiteRun(Protocol):
    """One model call as a site sees it."""

    def decide(self, probe: Tensor) -> Decision:
        """The common decision for this call; probe: this shard's [batch, tokens, dim]."""

    def keep(self, feature: Tensor) -> None:
        """Hand over what was computed, for later steps."""

    def recall(self) -> Tensor:
        """What to use instead of computing."""


class Site(ABC):
    """Runs a model's blocks with something of them kept from step to step."""

    @abstractmethod
    def check(self, num_blocks: int) -> None:
        """Raise ValueError if the site does not fit a model of so many blocks."""

    @abstractmethod
    def run(self, blocks: Sequence[Block], hidden_states: Tensor, call: SiteRun) -> Tensor:
        """Take hidden states [batch, tokens, dim] through the blocks, or through what stands in for them."""

    @abstractmethod
    def layers(self, num_blocks: int) -> str:
        """The blocks that a REUSE leaves out, for the trace: 'first-last'."""
