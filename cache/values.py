"""Plain data with tensors in it: triggers', predictors' and schedulers' state, walked without knowing whose it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .storage import Kept


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers and in the attributes of objects of ours, each as often as it is there."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Kept):
        yield from (tensor for tensor in (value.stored, value.scale) if tensor is not None)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple, deque)):
        for item in value:
            yield from tensors_in(item)
    elif type(value).__module__.startswith(__package__ or ""):
        yield from tensors_in(getattr(value, "__dict__", {}))
