"""Features and time: when to recompute (triggers), what to keep (sites), how to stand in for it (predictors).

A recipe combines the three. Nothing here knows models or ranks: tensors and partial sums in, decisions and tensors out.
"""

from .recipe.read import load_recipe
from .recipe.recipe import Recipe
from .run.enable import Cached, Shards, enable_cache
from .trace.trace import Replay, Trace, TraceEntry

__all__ = ["Cached", "Recipe", "Replay", "Shards", "Trace", "TraceEntry", "enable_cache", "load_recipe"]
