"""When to recompute. One file a trigger; to add one, write its file and its line here."""

from typing import Any

from .interval import Interval, IntervalConfig
from .relative_change import RelativeChange, RelativeChangeConfig
from .trigger import Trigger

TRIGGERS: dict[str, tuple[type[Any], type[Trigger]]] = {
    "interval": (IntervalConfig, Interval),
    "relative_change": (RelativeChangeConfig, RelativeChange),
}

__all__ = ["TRIGGERS", "Trigger"]
