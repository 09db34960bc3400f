"""Plain data with tensors in it: triggers', predictors' and schedulers' state, walked without knowing whose it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from .storage import Kept

Plain = Any  # what JSON can say
_SEQUENCES: dict[str, type[Any]] = {"list": list, "tuple": tuple, "deque": deque}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers and in the attributes of objects of ours, each as often as it is there."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple, deque)):
        for item in value:
            yield from tensors_in(item)
    elif type(value).__module__.startswith("longtake.cache."):
        yield from tensors_in(getattr(value, "__dict__", {}))


def pack(value: Any, put: Callable[[Tensor | Kept], Plain]) -> Plain:
    """`value` as JSON can say it; `put` takes each tensor and says where it is. Raises TypeError for anything but plain data."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, Kept)):
        return {"tensor": put(value)}
    if isinstance(value, slice):
        return {"slice": [value.start, value.stop, value.step]}
    if isinstance(value, dict):
        return {"dict": [[key, pack(item, put)] for key, item in value.items()]}
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return {name: [pack(item, put) for item in value]}
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def unpack(plain: Plain, get: Callable[[Plain], Tensor | Kept]) -> Any:
    """What `pack` was given; `get` finds a tensor by what `put` said of it."""
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == "tensor":
        return get(content)
    if kind == "slice":
        return slice(*content)
    if kind == "dict":
        return {key: unpack(item, get) for key, item in content}
    return _SEQUENCES[kind](unpack(item, get) for item in content)


def restore(target: Any, attributes: Mapping[str, Any]) -> None:
    """Set an object's attributes; a deque keeps the length that it was made for."""
    for name, value in attributes.items():
        old = getattr(target, name, None)
        setattr(target, name, deque(value, old.maxlen) if isinstance(old, deque) else value)
