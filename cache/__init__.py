"""Features and time: when to recompute (triggers), what to keep (sites), how to stand in for it (predictors).

A recipe combines the three. Nothing here knows models or ranks: tensors and partial sums in, decisions and tensors out.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration.stock import calibrate
    from .recipe.read import load_recipe
    from .recipe.recipe import Recipe
    from .run.agreement import Shards
    from .run.cached import Cached
    from .run.enable import enable_cache
    from .schedule.put import put_schedule
    from .schedule.schedule import Schedule, load_schedule
    from .trace.entry import TraceEntry
    from .trace.replay import Replay
    from .trace.trace import Trace

__all__ = [
    "Cached",
    "Recipe",
    "Replay",
    "Schedule",
    "Shards",
    "Trace",
    "TraceEntry",
    "calibrate",
    "enable_cache",
    "load_recipe",
    "load_schedule",
    "put_schedule",
]

# Where each name is defined. It is imported when it is first used, so that reading recipes and traces does not import torch.
_HOMES = {
    "Cached": ".run.cached",
    "Recipe": ".recipe.recipe",
    "Replay": ".trace.replay",
    "Schedule": ".schedule.schedule",
    "Shards": ".run.agreement",
    "Trace": ".trace.trace",
    "TraceEntry": ".trace.entry",
    "calibrate": ".calibration.stock",
    "enable_cache": ".run.enable",
    "load_recipe": ".recipe.read",
    "load_schedule": ".schedule.schedule",
    "put_schedule": ".schedule.put",
}


if not TYPE_CHECKING:  # type checkers would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
