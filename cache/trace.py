"""The decisions of a take, in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .decision import Decision, ratio

_VERSION = 2
_Place = tuple[int, int, str, str]


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
    """model: hash of the model that rendered the take, empty if nobody said; num_inference_steps: of the take."""

    recipe: str
    num_inference_steps: int = 0
    model: str = ""
    entries: list[TraceEntry] = field(default_factory=list)
    _forecasts: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Raises ValueError, with the mend, for a file that is no trace of this version."""
        try:
            content = json.loads(path.read_text())
            if content["schema_version"] != _VERSION:
                raise ValueError(f"it has schema version {content['schema_version']}, not {_VERSION}")
            entries = [TraceEntry(**entry) for entry in content["entries"]]
            return cls(content["recipe"], content["num_inference_steps"], content["model"], entries)
        except FileNotFoundError:
            raise ValueError(f"There is no trace '{path}'; a take's folder holds its own, trace.json.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{path}' is no trace that this version can read ({error}); render the take again.") from None

    @classmethod
    def joined(cls, parts: list[Trace]) -> Trace:
        """One trace of calls that were made in different places, in the order in which one place makes them all."""
        entries = [entry for part in parts for entry in part.entries]
        first = parts[0]
        return cls(first.recipe, first.num_inference_steps, first.model, sorted(entries, key=lambda entry: (entry.step, entry.segment, entry.branch)))

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

    @property
    def segments(self) -> list[int]:
        return sorted({entry.segment for entry in self.entries})

    def count(self, decision: Decision) -> int:
        return sum(entry.decision == decision.value for entry in self.entries)

    def summary(self) -> dict[str, int]:
        return {decision.value: self.count(decision) for decision in Decision}

    def parting(self, other: Trace) -> tuple[TraceEntry | None, TraceEntry | None] | None:
        """The first decisions in which two takes differ (None where one of them has ended); None if they never do."""
        for ours, theirs in zip(self.entries, other.entries, strict=False):
            if ours.choice != theirs.choice:
                return ours, theirs
        shorter = min(len(self.entries), len(other.entries))
        if len(self.entries) == len(other.entries):
            return None
        return next(iter(self.entries[shorter:]), None), next(iter(other.entries[shorter:]), None)

    def to_json(self) -> str:
        content: dict[str, Any] = {
            "schema_version": _VERSION,
            "recipe": self.recipe,
            "num_inference_steps": self.num_inference_steps,
            "model": self.model,
            "entries": [asdict(entry) for entry in self.entries],
        }
        return json.dumps(content)


class Replay:
    """The decisions of a trace, to be made again; a take with more segments than the trace goes on with those of its last one."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._decisions: dict[_Place, Decision] = {
            (entry.segment, entry.step, entry.branch, entry.site): Decision(entry.decision) for entry in trace.entries
        }
        self._last_segment = max(trace.segments, default=0)

    def decision(self, segment: int, step: int, branch: str, site: str) -> Decision:
        """Raises ValueError where the trace says nothing of such a call."""
        place = (min(segment, self._last_segment), step, branch, site)
        if place not in self._decisions:
            raise ValueError(f"The replayed trace has no decision for step {step}, branch {branch}, site {site}; it belongs to another kind of take.")
        return self._decisions[place]
