"""A model's block lists as one callable, and what a cache has to know of diffusers' blocks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

Block = Callable[[Tensor], Tensor]

_BLOCK_LISTS = ("blocks", "transformer_blocks", "single_transformer_blocks")  # diffusers' names, in the order in which they run


@dataclass(frozen=True)
class Entry:
    """A model call at its first block. hidden_states: [batch, tokens, dim], the last `num_text` of the tokens text that blocks take and
    return beside the others. temb: the timestep's embedding, [batch, ..., dim].
    """

    first_block: nn.Module
    hidden_states: Tensor
    num_text: int
    temb: Tensor


Runner = Callable[[list[Block], Entry], Tensor]


def block_lists(transformer: nn.Module) -> dict[str, nn.ModuleList]:
    """The block lists of a diffusers transformer, by attribute, in the order in which they run. Raises ValueError if it has none."""
    found = {name: getattr(transformer, name, None) for name in _BLOCK_LISTS}
    lists = {name: blocks for name, blocks in found.items() if isinstance(blocks, nn.ModuleList)}
    if not lists:
        raise ValueError(f"{type(transformer).__name__} has no block list to put a cache on.")
    return lists


@lru_cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def carries_text(block: nn.Module) -> bool:
    """Whether a block takes and returns the text beside the hidden states (joint attention)."""
    return str(_signature(type(block).forward).return_annotation).startswith("tuple")


def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
    """What a call of the first block says of the model call."""
    given = _signature(type(block).forward).bind_partial(block, *args, **kwargs).arguments
    hidden_states, text = given["hidden_states"], given["encoder_hidden_states"]
    if not carries_text(block):
        return Entry(block, hidden_states, 0, given["temb"])
    return Entry(block, torch.cat((hidden_states, text), dim=1), text.shape[1], given["temb"])


def video(joint: Tensor, num_text: int) -> Tensor:
    """[batch, tokens, dim] without the text, as a tensor of its own."""
    return joint[:, : joint.shape[1] - num_text].clone() if num_text else joint


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
    """Keeps the original blocks as its children (state-dict keys, LoRA loading and compilation go on as before) but iterates as
    one callable that takes hidden states through all of them: a model's `for block in self.blocks` loop runs unchanged.

    further: lists whose blocks run after these; each must be replaced by a `RunElsewhere`, which iterates as empty.
    """

    def __init__(self, blocks: nn.ModuleList, further: Sequence[nn.ModuleList], runner: Runner) -> None:
        super().__init__(blocks)
        self._further = tuple(further)
        self._runner = runner

    def __iter__(self) -> Iterator[Callable[..., Any]]:  # type: ignore[override]
        yield self._run

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """Called as a block is, with hidden states and text first; returns what a block does."""
        modules = list(chain(super().__iter__(), *self._further))
        entry = enter(modules[0], args, kwargs)
        if not carries_text(modules[0]):
            return self._runner([partial(_call, block, args[1:], kwargs) for block in modules], entry)
        num_tokens = entry.hidden_states.shape[1] - entry.num_text
        joint = self._runner([partial(_call_joint, block, num_tokens, args[2:], kwargs) for block in modules], entry)
        return joint[:, :num_tokens], joint[:, num_tokens:]


class RunElsewhere(nn.ModuleList):
    """A block list whose blocks run as part of another list's CachedStack."""

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(())


def take_over(transformer: nn.Module, runner: Runner) -> Callable[[], None]:
    """Put one stack over all block lists in the first list's place; returns what gives the lists back."""
    lists = block_lists(transformer)
    if any(isinstance(blocks, CachedStack) for blocks in lists.values()):
        raise ValueError("Two parts of the recipe take over the stack's blocks; only one of them can have a site `stack` or `blocks`.")
    first, *further = lists
    setattr(transformer, first, CachedStack(lists[first], [lists[name] for name in further], runner))
    for name in further:
        setattr(transformer, name, RunElsewhere(lists[name]))

    def give_back() -> None:
        for name, original in lists.items():
            setattr(transformer, name, original)

    return give_back


def _call(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden_states: Tensor) -> Tensor:
    output = block(hidden_states, *args, **kwargs)
    assert isinstance(output, Tensor), f"{type(block).__name__} returns {type(output).__name__}, not hidden states alone"
    return output


def _call_joint(block: nn.Module, num_tokens: int, args: tuple[Any, ...], kwargs: dict[str, Any], joint: Tensor) -> Tensor:
    output = block(joint[:, :num_tokens], joint[:, num_tokens:], *args, **kwargs)
    assert isinstance(output, tuple), f"{type(block).__name__} returns {type(output).__name__}, not hidden states and text"
    return torch.cat(output, dim=1)
