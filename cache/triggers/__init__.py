"""When to recompute. One file a trigger; to add one, write its file and its line here.

These files get torch from longtake.later, as recipes are read and checked without it.
"""

from typing import Any

from .guided_change import GuidedChange, GuidedChangeConfig
from .interval import Interval, IntervalConfig
from .layerwise import Layerwise, LayerwiseConfig
from .magnitude import Magnitude, MagnitudeConfig
from .mask import Mask, MaskConfig
from .plan import Plan, PlanConfig
from .ranges import Ranges, RangesConfig
from .rate import Rate, RateConfig
from .relative_change import RelativeChange, RelativeChangeConfig
from .trigger import Moment, Trigger
from .verify import Verify, VerifyConfig

TRIGGERS: dict[str, tuple[type[Any], type[Trigger]]] = {
    "guided_change": (GuidedChangeConfig, GuidedChange),
    "interval": (IntervalConfig, Interval),
    "layerwise": (LayerwiseConfig, Layerwise),
    "magnitude": (MagnitudeConfig, Magnitude),
    "mask": (MaskConfig, Mask),
    "plan": (PlanConfig, Plan),
    "ranges": (RangesConfig, Ranges),
    "rate": (RateConfig, Rate),
    "relative_change": (RelativeChangeConfig, RelativeChange),
    "verify": (VerifyConfig, Verify),
}

__all__ = ["TRIGGERS", "Moment", "Trigger"]
