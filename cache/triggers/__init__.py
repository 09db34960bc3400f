"""When to recompute. One file a trigger; to add one, write its file and its line here."""

from typing import Any

from .interval import Interval, IntervalConfig
from .magnitude import Magnitude, MagnitudeConfig
from .mask import Mask, MaskConfig
from .ranges import Ranges, RangesConfig
from .relative_change import RelativeChange, RelativeChangeConfig
from .trigger import Moment, Trigger

TRIGGERS: dict[str, tuple[type[Any], type[Trigger]]] = {
    "interval": (IntervalConfig, Interval),
    "magnitude": (MagnitudeConfig, Magnitude),
    "mask": (MaskConfig, Mask),
    "ranges": (RangesConfig, Ranges),
    "relative_change": (RelativeChangeConfig, RelativeChange),
}

__all__ = ["TRIGGERS", "Moment", "Trigger"]
