"""Keep the residual of the whole stack but for its first and last blocks (FBCache of ParaAttention; DBCache of cache-dit)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..decision import Decision
from .site import Block, Site, SiteRun


@dataclass(frozen=True)
class StackConfig:
    """first_blocks, last_blocks: how many blocks are computed at every step (Fn and Bn). The first blocks' residual is the probe."""

    first_blocks: int = 1
    last_blocks: int = 0

    def __post_init__(self) -> None:
        if min(self.first_blocks, self.last_blocks) < 0:
            raise ValueError(f"first_blocks={self.first_blocks} and last_blocks={self.last_blocks} must not be negative.")


class Stack(Site):
    def __init__(self, config: StackConfig) -> None:
        self.config = config

    def check(self, num_blocks: int) -> None:
        always = self.config.first_blocks + self.config.last_blocks
        if always >= num_blocks:
            raise ValueError(
                f"first_blocks={self.config.first_blocks} and last_blocks={self.config.last_blocks} leave nothing to reuse in a model "
                f"of {num_blocks} blocks; compute fewer than {num_blocks} at every step."
            )

    def layers(self, num_blocks: int) -> str:
        return f"{self.config.first_blocks}-{num_blocks - self.config.last_blocks - 1}"

    def run(self, blocks: Sequence[Block], hidden_states: Tensor, call: SiteRun) -> Tensor:
        """With no first blocks the probe is the stack's input itself."""
        end = len(blocks) - self.config.last_blocks
        entered = hidden_states
        for block in blocks[: self.config.first_blocks]:
            hidden_states = block(hidden_states)
        probe = hidden_states - entered if self.config.first_blocks else entered
        if call.decide(probe) is Decision.REUSE:
            hidden_states = hidden_states + call.recall()
        else:
            before = hidden_states
            for block in blocks[self.config.first_blocks : end]:
                hidden_states = block(hidden_states)
            call.keep(hidden_states - before)
        for block in blocks[end:]:
            hidden_states = block(hidden_states)
        return hidden_states
