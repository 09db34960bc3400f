"""A model's block lists while a cache is on it: each call of a block goes to a runner, which runs, skips or replaces it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .block_calls import StackInput, block_calls, block_lists, read_input
from .wrap import wrap

Block = Callable[[Tensor], Tensor]


class BlockRunner(Protocol):
    """Runs one model call's blocks, or does without some of them."""

    def __call__(self, index: int, hidden_states: Tensor, block: Block) -> Tensor:
        """The hidden states that the model is to go on with after block `index`. hidden_states: what the model hands to the block, with the
        text where blocks carry it. block: the block itself, from hidden states to hidden states.
        """


class CachedStack(nn.ModuleList):
    """Keeps the original blocks as its children (state-dict keys, LoRA loading and compilation go on as before). While its model runs it
    iterates as callables that stand for them, so that the model's `for block in self.blocks` loop runs unchanged; at other times, and by
    index, it gives the blocks themselves. A deep copy is a plain list.
    """

    def __init__(self, blocks: nn.ModuleList, first: int, interceptor: Interceptor) -> None:
        """first: how many blocks of the model run before these."""
        super().__init__(blocks)
        self._first, self._interceptor = first, interceptor

    def __iter__(self) -> Iterator[Any]:
        for index, block in enumerate(super().__iter__(), self._first):
            yield partial(self._interceptor.run_block, index, block) if self._interceptor.is_running else block

    def __getitem__(self, index: int | slice) -> Any:
        blocks = list(self.children())
        return nn.ModuleList(blocks[index]) if isinstance(index, slice) else blocks[index]

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.ModuleList:
        copied = memo[id(self)] = nn.ModuleList(deepcopy(block, memo) for block in self.children())
        return copied


class Interceptor:
    """Hands each block call of one transformer, over all of its lists, to the runner of the model call that it belongs to."""

    def __init__(self, transformer: nn.Module, start: Callable[[StackInput], BlockRunner]) -> None:
        """start: makes the runner of a model call, when that reaches its first block."""
        self.is_running = False
        self._calls, self._start = block_calls(transformer), start
        self._runner: BlockRunner | None = None
        self._num_video = 0
        self._joint: Tensor | None = None  # video and text after the last block, in one tensor
        self._shown: tuple[Any, ...] = ()  # its video and its text, as the model was given them

    def run_model(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a model call."""
        self.is_running = True
        try:
            return forward(*args, **kwargs)
        finally:
            self.is_running = False
            self._runner = self._joint = None
            self._shown = ()

    def run_block(self, index: int, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Called as a block is; returns what a block does."""
        if index == 0:
            given = read_input(self._calls, block, args, kwargs)
            self._runner, self._num_video = self._start(given), given.hidden_states.shape[1] - given.num_text
            self._joint, self._shown = given.hidden_states, args[:2]
        assert self._runner is not None, "a model ran its blocks without the first one"
        if not self._calls.carries_text:
            return self._runner(index, args[0], partial(_call, block, args[1:], kwargs))
        joint = self._runner(index, self._joined(*args[:2]), partial(_call_joint, block, self._num_video, args[2:], kwargs))
        self._joint, self._shown = joint, (joint[:, : self._num_video], joint[:, self._num_video :])
        return self._shown

    def _joined(self, hidden_states: Tensor, text: Tensor) -> Tensor:
        """Video and text as one tensor: the one that the last block gave, if the model passed that on untouched."""
        is_untouched = self._joint is not None and self._shown[0] is hidden_states and self._shown[1] is text
        return self._joint if is_untouched else torch.cat((hidden_states, text), dim=1)  # type: ignore[return-value]


def intercept(transformer: nn.Module, start: Callable[[StackInput], BlockRunner]) -> Callable[[], None]:
    """Run the blocks of all model calls by runners that `start` makes, one a call; returns a function that ends that. Raises ValueError for a
    transformer whose blocks are not known, or are run by a runner already.
    """
    lists = block_lists(transformer)
    if any(isinstance(blocks, CachedStack) for blocks in lists.values()):
        raise ValueError("Two parts of the recipe run the model's blocks; only one of them can have a site `stack` or `blocks`.")
    interceptor, first = Interceptor(transformer, start), 0
    for name, blocks in lists.items():
        setattr(transformer, name, CachedStack(blocks, first, interceptor))
        first += len(blocks)
    unwrap = wrap(transformer, "forward", interceptor.run_model)

    def undo() -> None:
        unwrap()
        for name, original in lists.items():
            ours = getattr(transformer, name)
            if isinstance(ours, CachedStack):  # else somebody has put another list there, which holds ours
                for index, block in enumerate(ours.children()):
                    original[index] = block  # blocks may have been replaced meanwhile
                setattr(transformer, name, original)

    return undo


def _call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
    output = block(hidden_states, *args, **kwargs)
    assert isinstance(output, Tensor), f"{type(block).__name__} returns {type(output).__name__}, not hidden states alone"
    return output


def _call_joint(block: nn.Module, num_video: int, args: tuple[Any, ...], kwargs: dict[str, Any], joint: Tensor) -> Tensor:
    output = block(joint[:, :num_video], joint[:, num_video:], *args, **kwargs)
    assert isinstance(output, tuple), f"{type(block).__name__} returns {type(output).__name__}, not hidden states and text"
    return torch.cat(output, dim=1)
