"""Giving a diffusers attention processor another attention function, without touching its class or module."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

Attention = Callable[..., Tensor]


def with_attention(processor: Any, attention: Attention) -> Any:
    """A processor like `processor` whose calls of diffusers' `dispatch_attention_fn` go to `attention`.

    The processor itself is not changed. The new one's `__call__` is the original's code, run with another `dispatch_attention_fn` among its
    globals, so that projections, norms and rotary positions stay diffusers' own, in whatever version. Raises ValueError for processors
    that do not call that function.
    """
    processor_class: Any = type(processor)
    replaced: Any = object.__new__(_class_like(processor_class))
    replaced.__dict__.update(processor.__dict__, attention=attention)
    return replaced


class _Dispatch:
    """Stands where the code of a class of processors looks for `dispatch_attention_fn`. attention: of the layer that is running."""

    attention: Attention | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        assert self.attention is not None, "called from outside of a layer"
        return self.attention(*args, **kwargs)


@cache
def _class_like(processor_class: type) -> type:
    """One class for all layers, and with it one code: torch.compile compiles what they have in common once."""
    original = processor_class.__call__
    if not isinstance(original, FunctionType) or "dispatch_attention_fn" not in original.__code__.co_names:
        raise ValueError(f"{processor_class.__name__} does not call dispatch_attention_fn; its family needs a processor of its own.")
    dispatch = _Dispatch()
    scope = {**original.__globals__, "dispatch_attention_fn": dispatch}
    call = FunctionType(_copy(original.__code__), scope, original.__name__, original.__defaults__, original.__closure__)
    call.__kwdefaults__ = original.__kwdefaults__

    @wraps(original)  # diffusers passes on what the signature names
    def call_with_own_attention(self: Any, *args: Any, **kwargs: Any) -> Any:
        dispatch.attention = self.attention
        output = call(self, *args, **kwargs)
        dispatch.attention = None  # it knows its mesh, and the class outlives both
        return output

    return type(f"Parallel{processor_class.__name__}", (processor_class,), {"__call__": call_with_own_attention})


def _copy(code: CodeType) -> CodeType:
    """A copy, of inner functions as well: torch.compile keeps what it compiled by code object, and would run it with the original's globals."""
    return code.replace(co_consts=tuple(_copy(value) if isinstance(value, CodeType) else value for value in code.co_consts))
