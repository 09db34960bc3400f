"""Nested containers of plain data, tensors and features, walked without knowing what they are for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Plain = Any  # what JSON can hold
_SEQUENCES: dict[str, type[Any]] = {"list": list, "tuple": tuple, "deque": deque}


def leaves(value: Any) -> Iterator[Any]:
    """Everything in nested containers that is not a container itself, each thing as often as it is there."""
    if isinstance(value, (dict, list, tuple, deque)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from leaves(item)
    else:
        yield value


def pack(value: Any, put: Callable[[Any], Plain]) -> Plain:
    """`value` as JSON can hold it. put: gives what stands for a thing that JSON cannot hold, a tensor's name for example, or raises TypeError."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {"dict": [[key, pack(item, put)] for key, item in value.items()]}
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [pack(item, put) for item in value]}
    return {"put": put(value)}


def unpack(plain: Plain, get: Callable[[Plain], Any]) -> Any:
    """The value that `pack` was given. get: gives back a thing for what `put` gave for it."""
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "put":
        return get(content)
    if kind == "dict":
        return {key: unpack(item, get) for key, item in content}
    return _SEQUENCES[kind](unpack(item, get) for item in content)


def restore(target: Any, attributes: Mapping[str, Any]) -> None:
    """Set an object's attributes; a deque keeps the length that it was made for."""
    for name, value in attributes.items():
        old = getattr(target, name, None)
        setattr(target, name, deque(value, old.maxlen) if isinstance(old, deque) else value)
