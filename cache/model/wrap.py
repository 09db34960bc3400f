"""Putting a method of ours in front of an object's own, beside others who do the same: hooks, offloading, compilation, copies.

Knows where accelerate and diffusers keep a module's own `forward` once they have hooked it. What is put there lies inside their hooks,
which go on being called, and stays there when they take their hooks off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from copy import deepcopy
from types import MethodType
from typing import Any

import torch
from torch import nn


class Wrapped:
    """A method of ours where an object's own was: `wrapper(original, *args, **kwargs)` is called instead of it.

    After `let_go`, calls of it that others still hold go to the object's own method. A deep copy of the object has its own method back.
    """

    def __init__(self, original: Callable[..., Any], wrapper: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)  # so that its signature can be read
        self.original = original
        self._wrapper: Callable[..., Any] | None = wrapper

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # ours is not to be compiled; what it calls may be
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.original(*args, **kwargs) if self._wrapper is None else self._wrapper(self.original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy(self.original, memo)

    def let_go(self) -> None:
        self._wrapper = None


class Listener:
    """A hook of ours on a module. A deep copy of the module calls nothing."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    def __call__(self, *args: Any) -> Any:
        return self._hook(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _say_nothing


def _say_nothing(*args: Any) -> None:
    return None


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Put `wrapper` in front of a method of one object; returns a function that takes it away, and nothing else."""
    holder, attribute = next((found for found in _holders(owner, name) if _is_own(owner, name, vars(found[0]).get(found[1]))), (owner, name))
    ours = Wrapped(getattr(holder, attribute), wrapper)
    setattr(holder, attribute, ours)

    def undo() -> None:
        ours.let_go()
        for holder, attribute in _holders(owner, name):
            if vars(holder).get(attribute) is not ours:
                continue
            if holder is owner and attribute == name and _is_method(owner, name, ours.original):
                delattr(owner, name)
            else:
                setattr(holder, attribute, ours.original)

    return undo


def _holders(owner: Any, name: str) -> Iterator[tuple[Any, str]]:
    """The objects and their attributes in which an object's method may lie: those of accelerate's and diffusers' hooks, or its own."""
    if name == "forward" and isinstance(owner, nn.Module):
        yield owner, "_old_forward"
        for reference in getattr(vars(owner).get("_diffusers_hook"), "_fn_refs", ()):
            yield reference, "original_forward"
            yield reference, "forward"
    yield owner, name


def _is_own(owner: Any, name: str, value: Any) -> bool:
    return isinstance(value, Wrapped) or _is_method(owner, name, value)


def _is_method(owner: Any, name: str, value: Any) -> bool:
    return isinstance(value, MethodType) and value.__func__ is getattr(type(owner), name, None)
