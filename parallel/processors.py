"""Giving a diffusers attention processor another attention function, without touching its class or module."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor


def with_attention(processor: Any, attention: Callable[..., Tensor]) -> Any:
    """A processor like `processor` whose calls of diffusers' `dispatch_attention_fn` go to `attention`.

    Only this one object changes: its `__call__` is the original code seen through other globals, so that projections, norms and
    rotary positions stay diffusers' own, in whatever version. Raises ValueError for processors that do not dispatch.
    """
    original = type(processor).__call__
    if not isinstance(original, FunctionType) or "dispatch_attention_fn" not in original.__code__.co_names:
        raise ValueError(f"{type(processor).__name__} does not call dispatch_attention_fn; its family needs a processor of its own.")
    scope = {**original.__globals__, "dispatch_attention_fn": attention}
    call = FunctionType(_copy(original.__code__), scope, original.__name__, original.__defaults__, original.__closure__)
    call.__kwdefaults__ = original.__kwdefaults__
    parallel_class = type(f"Parallel{type(processor).__name__}", (type(processor),), {"__call__": call})
    replaced: Any = object.__new__(parallel_class)
    replaced.__dict__.update(processor.__dict__)
    return replaced


def _copy(code: CodeType) -> CodeType:
    """torch.compile keeps what it makes of a code object where it first saw it: other globals need another object, of inner functions too."""
    return code.replace(co_consts=tuple(_copy(value) if isinstance(value, CodeType) else value for value in code.co_consts))
