"""A model's block lists as one callable."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

Block = Callable[[Tensor], Tensor]
Runner = Callable[[list[Block], Tensor, int], Tensor]

_BLOCK_LISTS = ("blocks", "transformer_blocks", "single_transformer_blocks")  # diffusers' names, in the order in which they run


def block_lists(transformer: nn.Module) -> dict[str, nn.ModuleList]:
    """The block lists of a diffusers transformer, by attribute, in the order in which they run."""
    found = {name: getattr(transformer, name, None) for name in _BLOCK_LISTS}
    return {name: blocks for name, blocks in found.items() if isinstance(blocks, nn.ModuleList)}


class CachedStack(nn.ModuleList):
    """Keeps the original blocks as its children (state-dict keys, LoRA loading and compilation go on as before) but iterates as
    one callable that takes hidden states through all of them: a model's `for block in self.blocks` loop runs unchanged.

    further: lists whose blocks run after these; each must be replaced by a `RunElsewhere`, which iterates as empty.
    """

    def __init__(self, blocks: nn.ModuleList, further: Sequence[nn.ModuleList], runner: Runner) -> None:
        super().__init__(blocks)
        self._further = tuple(further)
        self._runner = runner
        # Blocks of joint-attention models take and return the text beside the hidden states.
        self._carries_text = str(inspect.signature(blocks[0].forward).return_annotation).startswith("tuple")

    def __iter__(self) -> Iterator[Callable[..., Any]]:  # type: ignore[override]
        yield self._run_joint if self._carries_text else self._run

    def _modules_in_order(self) -> Iterator[nn.Module]:
        return chain(super().__iter__(), *self._further)

    def _run(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """hidden_states: [batch, tokens, dim]; the rest goes to every block as it is."""
        blocks: list[Block] = [partial(_call, block, args, kwargs) for block in self._modules_in_order()]
        return self._runner(blocks, hidden_states, 0)

    def _run_joint(self, hidden_states: Tensor, text: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """text: [batch, text tokens, dim]. Sites see both as one sequence, text last."""
        num_tokens = hidden_states.shape[1]
        blocks: list[Block] = [partial(_call_joint, block, num_tokens, args, kwargs) for block in self._modules_in_order()]
        joint = self._runner(blocks, torch.cat((hidden_states, text), dim=1), text.shape[1])
        return joint[:, :num_tokens], joint[:, num_tokens:]


class RunElsewhere(nn.ModuleList):
    """A block list whose blocks run as part of another list's CachedStack."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(())


def _call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
    output = block(hidden_states, *args, **kwargs)
    assert isinstance(output, Tensor), f"{type(block).__name__} returns {type(output).__name__}, not hidden states alone"
    return output


def _call_joint(block: nn.Module, num_tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any], joint: Tensor) -> Tensor:
    output = block(joint[:, :num_tokens], joint[:, num_tokens:], *args, **kwargs)
    assert isinstance(output, tuple), f"{type(block).__name__} returns {type(output).__name__}, not hidden states and text"
    return torch.cat(output, dim=1)
