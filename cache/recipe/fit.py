"""Numbers that a recipe's authors published for one model, kept in the recipe's file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Fit:
    """Published numbers for one model, told by its width and number of blocks: changes to the recipe's parts."""

    model: str = MISSING
    dim: int = MISSING
    num_blocks: int = MISSING
    trigger: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)
    guards: dict[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        every = {"trigger": self.trigger, "site": self.site, "predictor": self.predictor, "guards": self.guards}
        return {part: settings for part, settings in every.items() if settings}
