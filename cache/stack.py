"""A model's block list as one callable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from .sites.site import Block

Runner = Callable[[list[Block], Tensor], Tensor]


class CachedStack(nn.ModuleList):
    """Keeps the original blocks as its children (state-dict keys, LoRA loading and compilation go on as before) but iterates as
    one callable that takes hidden states through all of them: a model's `for block in self.blocks` loop runs unchanged.
    """

    def __init__(self, blocks: nn.ModuleList, runner: Runner) -> None:
        super().__init__(blocks)
        self._runner = runner

    def __iter__(self) -> Iterator[Callable[..., Tensor]]:  # type: ignore[override]
        yield self._run

    def _run(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """hidden_states: [batch, tokens, dim]; the rest goes to every block as it is."""
        blocks: list[Block] = [partial(_call, block, args, kwargs) for block in super().__iter__()]
        return self._runner(blocks, hidden_states)


def _call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
    output = block(hidden_states, *args, **kwargs)
    assert isinstance(output, Tensor), f"{type(block).__name__} returns {type(output).__name__}; the stack site needs hidden states alone"
    return output
