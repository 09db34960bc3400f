"""How diffusers' transformers call their blocks, and what a call of the first one says of the whole model call."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ...later import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class BlockCalls:
    """How a transformer calls its blocks. lists: the attributes that hold them, in the order in which they run. carries_text: whether
    blocks are handed the text beside the hidden states and return both (joint attention).

    Blocks are handed the hidden states first, then the text, then what is the same for all of them, one argument of which is called
    `temb`. What the model does to the hidden states between two blocks (the hints of Wan-VACE, the faces of Wan-Animate) is kept and
    skipped with them.
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
class StackInput:
    """What a model call hands to its first block. hidden_states: [batch, tokens, dim], the last `num_text` of the tokens text that blocks are
    handed and return beside the others. temb: the timestep's embedding, [batch, ..., dim].
    """

    first_block: nn.Module
    hidden_states: Tensor
    num_text: int
    temb: Tensor


@lru_cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def read_input(calls: BlockCalls, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StackInput:
    """args, kwargs: of the call of `block`, the model's first one."""
    given = _signature(type(block).forward).bind_partial(block, *args, **kwargs).arguments
    hidden_states, text = given["hidden_states"], given["encoder_hidden_states"]
    if not calls.carries_text:
        return StackInput(block, hidden_states, 0, given["temb"])
    return StackInput(block, torch.cat((hidden_states, text), dim=1), text.shape[1], given["temb"])


def without_text(hidden_states: Tensor, num_text: int) -> Tensor:
    """[batch, tokens, dim] without its last tokens, which are text; a tensor of its own if there are any."""
    return hidden_states[:, : hidden_states.shape[1] - num_text].clone() if num_text else hidden_states


def has_timestep_a_token(given: StackInput) -> bool:
    """Whether a call's timestep is one a token (Wan 2.2's image to video, rollouts) instead of one for all; its embedding is sharded then."""
    per_sample = 3 if hasattr(given.first_block, "scale_shift_table") else 2  # blocks with a table are handed its six rows
    return given.temb.ndim > per_sample


def modulated(given: StackInput) -> Tensor:
    """The first block's normed and modulated input without the text, [batch, tokens, dim]: what TeaCache looks at."""
    block: Any = given.first_block
    hidden_states = without_text(given.hidden_states, given.num_text)
    if not hasattr(block, "scale_shift_table"):
        return block.norm1(hidden_states, emb=given.temb)[0]  # type: ignore[no-any-return]
    shift, scale = (block.scale_shift_table + given.temb.float()).unbind(-2)[:2]
    if shift.ndim == hidden_states.ndim - 1:
        shift, scale = shift.unsqueeze(1), scale.unsqueeze(1)
    return (block.norm1(hidden_states.float()) * (1 + scale) + shift).type_as(hidden_states)
