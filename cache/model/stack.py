"""A model's blocks, seen one after another while it runs, and what a cache has to know of diffusers' transformers for that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .wrap import wrap

Block = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockCalls:
    """How a transformer calls its blocks. lists: the attributes that hold them, in the order in which they run. carries_text: whether
    blocks take and return the text beside the hidden states (joint attention).

    Blocks take hidden states first, then the text, then what is the same for all of them, one of which is called `temb`. Whatever the
    model does to the hidden states between two blocks (the hints of Wan-VACE, the faces of Wan-Animate) is part of the run of blocks.
    """

    lists: tuple[str, ...]
    carries_text: bool = False


_WAN, _HUNYUAN_VIDEO = BlockCalls(("blocks",)), BlockCalls(("transformer_blocks", "single_transformer_blocks"), carries_text=True)
# By the name of the class in diffusers. To add one, write its line here and its test.
_BLOCK_CALLS = {
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
    "WanAnimateTransformer3DModel": _WAN,
    "HunyuanVideoTransformer3DModel": _HUNYUAN_VIDEO,
}


def block_calls(transformer: nn.Module) -> BlockCalls:
    """Raises ValueError, with the mend, for a transformer whose blocks are not known."""
    found = next((_BLOCK_CALLS[base.__name__] for base in type(transformer).__mro__ if base.__name__ in _BLOCK_CALLS), None)
    if found is None:
        raise ValueError(
            f"{type(transformer).__name__} is no transformer whose blocks the cache knows ({', '.join(_BLOCK_CALLS)}); use a recipe that keeps the "
            f"model's output alone, easycache for example."
        )
    if getattr(transformer.config, "image_condition_type", None) == "token_replace":
        raise ValueError(
            "This HunyuanVideo replaces the tokens of its first frame in each block (image_condition_type token_replace), which the cache does "
            "not know; use a recipe that keeps the model's output alone, easycache for example."
        )
    return found


def block_lists(transformer: nn.Module) -> dict[str, nn.ModuleList]:
    """The block lists of a transformer, by attribute, in the order in which they run. Raises ValueError as `block_calls` does."""
    return {name: getattr(transformer, name) for name in block_calls(transformer).lists}


def num_blocks(transformer: nn.Module) -> int:
    """Raises ValueError as `block_calls` does."""
    return sum(map(len, block_lists(transformer).values()))


@dataclass(frozen=True)
class Entry:
    """A model call at its first block. hidden_states: [batch, tokens, dim], the last `num_text` of the tokens text that blocks take and
    return beside the others. temb: the timestep's embedding, [batch, ..., dim].
    """

    first_block: nn.Module
    hidden_states: Tensor
    num_text: int
    temb: Tensor


class Walk(Protocol):
    """A model call on its way through the blocks."""

    def __call__(self, index: int, hidden_states: Tensor, block: Block) -> Tensor:
        """What the model is to go on with behind block `index`; `block` runs it. hidden_states: what the model hands to it."""


@lru_cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def enter(calls: BlockCalls, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    """What a call of the first block says of the model call."""
    given = _signature(type(block).forward).bind_partial(block, *args, **kwargs).arguments
    hidden_states, text = given["hidden_states"], given["encoder_hidden_states"]
    if not calls.carries_text:
        return Entry(block, hidden_states, 0, given["temb"])
    return Entry(block, torch.cat((hidden_states, text), dim=1), text.shape[1], given["temb"])


def video(joint: Tensor, num_text: int) -> Tensor:
    """[batch, tokens, dim] without the text, as a tensor of its own."""
    return joint[:, : joint.shape[1] - num_text].clone() if num_text else joint


def has_timestep_a_token(entry: Entry) -> bool:
    """Whether a call's timestep is one a token (Wan 2.2's image to video, rollouts) instead of one for all; its embedding is sharded then."""
    per_sample = 3 if hasattr(entry.first_block, "scale_shift_table") else 2  # blocks with a table are handed its six rows
    return entry.temb.ndim > per_sample


def modulated(entry: Entry) -> Tensor:
    """The first block's normed and modulated input without the text, [batch, tokens, dim]: what TeaCache looks at."""
    block: Any = entry.first_block
    hidden_states = video(entry.hidden_states, entry.num_text)
    if not hasattr(block, "scale_shift_table"):
        return block.norm1(hidden_states, emb=entry.temb)[0]  # type: ignore[no-any-return]
    shift, scale = (block.scale_shift_table + entry.temb.float()).unbind(-2)[:2]
    if shift.ndim == hidden_states.ndim - 1:
        shift, scale = shift.unsqueeze(1), scale.unsqueeze(1)
    return (block.norm1(hidden_states.float()) * (1 + scale) + shift).type_as(hidden_states)


class CachedStack(nn.ModuleList):
    """Keeps the original blocks as its children (state-dict keys, LoRA loading and compilation go on as before). While its model runs it
    iterates as callables that stand for them, so that the model's `for block in self.blocks` loop runs unchanged; at other times, and by
    index, it gives the blocks themselves. A deep copy is a plain list.
    """

    def __init__(self, blocks: nn.ModuleList, first: int, course: Course) -> None:
        """first: how many blocks of the model run before these."""
        super().__init__(blocks)
        self._first, self._course = first, course

    def __iter__(self) -> Iterator[Any]:
        for index, block in enumerate(super().__iter__(), self._first):
            yield partial(self._course.pass_through, index, block) if self._course.is_running else block

    def __getitem__(self, index: int | slice) -> Any:
        blocks = list(self.children())
        return nn.ModuleList(blocks[index]) if isinstance(index, slice) else blocks[index]

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.ModuleList:
        copied = memo[id(self)] = nn.ModuleList(deepcopy(block, memo) for block in self.children())
        return copied


class Course:
    """The way of model calls through the blocks of one transformer, over all of its lists."""

    def __init__(self, transformer: nn.Module, start: Callable[[Entry], Walk]) -> None:
        """start: begins each model call, at its first block."""
        self.is_running = False
        self._calls, self._start = block_calls(transformer), start
        self._walk: Walk | None = None
        self._num_video = 0
        self._joint: Tensor | None = None
        self._shown: tuple[Any, ...] = ()  # the joint tensor's video and text, as the model has them

    def around(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a model call."""
        self.is_running = True
        try:
            return forward(*args, **kwargs)
        finally:
            self.is_running = False
            self._walk = self._joint = None
            self._shown = ()

    def pass_through(self, index: int, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Called as a block is; returns what a block does."""
        if index == 0:
            entry = enter(self._calls, block, args, kwargs)
            self._walk, self._num_video = self._start(entry), entry.hidden_states.shape[1] - entry.num_text
            self._joint, self._shown = entry.hidden_states, args[:2]
        assert self._walk is not None, "a model ran its blocks without the first one"
        if not self._calls.carries_text:
            return self._walk(index, args[0], partial(_call, block, args[1:], kwargs))
        joint = self._walk(index, self._joined(*args[:2]), partial(_call_joint, block, self._num_video, args[2:], kwargs))
        self._joint, self._shown = joint, (joint[:, : self._num_video], joint[:, self._num_video :])
        return self._shown

    def _joined(self, hidden_states: Tensor, text: Tensor) -> Tensor:
        """Video and text as one tensor: the one that the last block gave, if the model passed that on untouched."""
        is_untouched = self._joint is not None and self._shown[0] is hidden_states and self._shown[1] is text
        return self._joint if is_untouched else torch.cat((hidden_states, text), dim=1)  # type: ignore[return-value]


def take_over(transformer: nn.Module, start: Callable[[Entry], Walk]) -> Callable[[], None]:
    """Lead all model calls through walks of ours; returns what gives the blocks back."""
    lists = block_lists(transformer)
    if any(isinstance(blocks, CachedStack) for blocks in lists.values()):
        raise ValueError("Two parts of the recipe take over the stack's blocks; only one of them can have a site `stack` or `blocks`.")
    course, first = Course(transformer, start), 0
    for name, blocks in lists.items():
        setattr(transformer, name, CachedStack(blocks, first, course))
        first += len(blocks)
    unwrap = wrap(transformer, "forward", course.around)

    def give_back() -> None:
        unwrap()
        for name, original in lists.items():
            ours = getattr(transformer, name)
            if isinstance(ours, CachedStack):  # else somebody has put another list there, which holds ours
                for index, block in enumerate(ours.children()):
                    original[index] = block  # blocks may have been replaced meanwhile
                setattr(transformer, name, original)

    return give_back


def _call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
    output = block(hidden_states, *args, **kwargs)
    assert isinstance(output, Tensor), f"{type(block).__name__} returns {type(output).__name__}, not hidden states alone"
    return output


def _call_joint(block: nn.Module, num_video: int, args: tuple[Any, ...], kwargs: dict[str, Any], joint: Tensor) -> Tensor:
    output = block(joint[:, :num_video], joint[:, num_video:], *args, **kwargs)
    assert isinstance(output, tuple), f"{type(block).__name__} returns {type(output).__name__}, not hidden states and text"
    return torch.cat(output, dim=1)
