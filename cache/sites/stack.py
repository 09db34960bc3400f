"""Keep the residual of the whole stack but for its first and last blocks (FBCache of ParaAttention; DBCache of cache-dit)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from ..decision import Decision
from ..stack import Block, CachedStack, RunElsewhere, block_lists
from .site import Begin, Site, SiteRun


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

    def attach(self, transformer: nn.Module, begin: Begin) -> Callable[[], None]:
        """One stack over all block lists, in the first list; the others iterate as empty."""
        lists = block_lists(transformer)
        if not lists:
            raise ValueError(f"{type(transformer).__name__} has no block list to put a cache on.")
        num_blocks = sum(map(len, lists.values()))
        self.check(num_blocks)
        layers = f"{self.config.first_blocks}-{num_blocks - self.config.last_blocks - 1}"

        def run(blocks: list[Block], hidden_states: Tensor, num_text: int) -> Tensor:
            return self._run(blocks, hidden_states, begin(layers, hidden_states.shape[1] - num_text))

        first, *further = lists
        setattr(transformer, first, CachedStack(lists[first], [lists[name] for name in further], run))
        for name in further:
            setattr(transformer, name, RunElsewhere(lists[name]))

        def detach() -> None:
            for name, original in lists.items():
                setattr(transformer, name, original)

        return detach

    def _run(self, blocks: Sequence[Block], hidden_states: Tensor, call: SiteRun) -> Tensor:
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
