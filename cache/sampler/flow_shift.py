"""What the configs of diffusers' schedulers call their flow shift. Knows plain JSON, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flow_shift(class_name: str, config: Mapping[str, Any]) -> float:
    """How far the timesteps are moved towards noise; 1 leaves them where they are."""
    return float(config.get(shift_setting(class_name), 1.0))


def shift_setting(class_name: str) -> str:
    """The name of the setting."""
    return "shift" if class_name.startswith("FlowMatch") else "flow_shift"
