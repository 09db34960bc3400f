"""What else may be on a transformer: other caches, compilation, and another cache of ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

_MARK = "_longtake_cache"
_COMPILED = (
    "This transformer was compiled as a whole, with what a cache skips as a part of it; compile its blocks instead, by "
    "transformer.compile_repeated_blocks()."
)


class _Mark:
    """Says of a transformer that it has a cache. A deep copy of the transformer has none."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None


def mark(transformer: Any) -> Callable[[], None]:
    """Mark the transformer as having a cache of ours; returns a function that removes the mark."""
    setattr(transformer, _MARK, _Mark())
    return partial(delattr, transformer, _MARK)


def check_unmarked(transformer: Any) -> None:
    """Raise ValueError, with the mend, for a transformer that has a cache of ours already."""
    if getattr(transformer, _MARK, None) is not None:
        raise ValueError("This transformer has a cache already; call disable() on it first.")


def check_others(transformer: Any) -> None:
    """Raise ValueError, with the mend, for what a cache cannot work beside: other caches, and compilation of the model as a whole."""
    if isinstance(transformer, torch._dynamo.OptimizedModule) or transformer._compiled_call_impl is not None:
        raise ValueError(_COMPILED)
    if getattr(transformer, "is_cache_enabled", False):
        raise ValueError("A cache of diffusers is on this transformer; call transformer.disable_cache() first.")
    if getattr(transformer, "_is_cached", False):
        raise ValueError("A cache of cache-dit is on this transformer; call cache_dit.disable_cache(pipe) first.")
