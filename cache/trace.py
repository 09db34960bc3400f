"""The decisions of a take, in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from .decision import Decision, ratio


@dataclass
class TraceEntry:
    """One decision. value: the reduced signal; margin: its distance from the threshold; both None for schedules and first steps.

    forecast_error: relative L1 error of what the predictor would have said at a computed step; None until `Trace.finish`.
    """

    segment: int
    step: int
    branch: str
    site: str
    layers: str
    decision: str
    value: float | None
    margin: float | None
    forecast_error: float | None = None

    @property
    def choice(self) -> tuple[int, int, str, str, str, str]:
        """What must be equal wherever the same film is rendered."""
        return (self.segment, self.step, self.branch, self.site, self.layers, self.decision)


@dataclass
class Trace:
    recipe: str
    entries: list[TraceEntry] = field(default_factory=list)
    _forecasts: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def joined(cls, parts: list[Trace]) -> Trace:
        """One trace of calls that were made in different places, in the order in which one place makes them all."""
        entries = [entry for part in parts for entry in part.entries]
        return cls(parts[0].recipe, sorted(entries, key=lambda entry: (entry.step, entry.segment, entry.branch)))

    def add(self, entry: TraceEntry) -> None:
        self.entries.append(entry)

    def add_forecast(self, sums: Tensor) -> None:
        """Partial sums [2] of the forecast error of the last entry."""
        self._forecasts[len(self.entries) - 1] = sums

    def finish(self, reduce: Callable[[Tensor], Tensor]) -> None:
        """Reduce all forecast errors of the take at once; called on every shard, when the take is through."""
        if self._forecasts:
            for index, sums in zip(self._forecasts, reduce(torch.stack(list(self._forecasts.values()))), strict=True):
                self.entries[index].forecast_error = ratio(sums)
            self._forecasts.clear()

    @property
    def choices(self) -> list[tuple[int, int, str, str, str, str]]:
        return [entry.choice for entry in self.entries]

    @property
    def smallest_margin(self) -> float:
        return min((entry.margin for entry in self.entries if entry.margin is not None), default=float("inf"))

    def count(self, decision: Decision) -> int:
        return sum(entry.decision == decision.value for entry in self.entries)

    def summary(self) -> dict[str, int]:
        return {decision.value: self.count(decision) for decision in Decision}

    def to_json(self) -> str:
        return json.dumps({"schema_version": 1, "recipe": self.recipe, "entries": [asdict(entry) for entry in self.entries]})
