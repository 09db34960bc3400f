"""The decisions of a take, in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..decision import Decision, Verdict
from ..later import torch
from ..sums import ratio

if TYPE_CHECKING:
    from torch import Tensor

_VERSION = 2
Place = tuple[int, int, str, str]


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
    def place(self) -> Place:
        return (self.segment, self.step, self.branch, self.site)

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
            return cls.from_json(path.read_text())
        except FileNotFoundError:
            raise ValueError(f"There is no trace '{path}'; a take's folder holds its own, trace.json.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"'{path}' is no trace that this version can read ({error}); render the take again.") from None

    @classmethod
    def from_json(cls, text: str) -> Trace:
        content = json.loads(text)
        if content["schema_version"] != _VERSION:
            raise ValueError(f"it has schema version {content['schema_version']}, not {_VERSION}")
        entries = [TraceEntry(**entry) for entry in content["entries"]]
        return cls(content["recipe"], content["num_inference_steps"], content["model"], entries)

    def save(self, path: Path) -> None:
        path.write_text(self.to_json())

    def plot(self, path: Path) -> None:
        """Draw the rows as cells, one a step: computed, computed in part, reused; a dot in a computed one grows with its forecast error."""
        from .picture import draw_trace

        draw_trace(self, path)

    def rows(self) -> dict[str, list[TraceEntry]]:
        """The entries by segment, branch and site, each row's in the order of its steps."""
        rows: dict[str, list[TraceEntry]] = {}
        for entry in sorted(self.entries, key=lambda entry: (entry.segment, entry.branch, entry.site, entry.step)):
            rows.setdefault(f"segment {entry.segment} {entry.branch} {entry.site}", []).append(entry)
        return rows

    @classmethod
    def joined(cls, parts: list[Trace]) -> Trace:
        """One trace of calls that were made in different places, in the order in which one place makes them all; decisions that places
        made together count once.
        """
        by_place = {entry.place: entry for part in reversed(parts) for entry in part.entries}
        first = parts[0]
        entries = sorted(by_place.values(), key=lambda entry: (entry.step, entry.segment, entry.branch))
        return cls(first.recipe, first.num_inference_steps, first.model, entries)

    def add(self, entry: TraceEntry) -> int:
        """Returns the entry's index."""
        self.entries.append(entry)
        return len(self.entries) - 1

    def add_forecast(self, index: int, sums: Tensor) -> None:
        """Partial sums [2] of the forecast error of an entry, added to those of its other features."""
        self._forecasts[index] = self._forecasts[index] + sums if index in self._forecasts else sums

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
        """How many of each decision; partial ones only where there are some."""
        counts = {decision.value: self.count(decision) for decision in Decision}
        return {name: count for name, count in counts.items() if count or name != Decision.PARTIAL.value}

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
        self._entries = {entry.place: entry for entry in trace.entries}
        self._last_segment = max(trace.segments, default=0)

    def verdict(self, place: Place, units: Sequence[range]) -> Verdict:
        """Raises ValueError where the trace says nothing of such a call."""
        segment, step, branch, site = place
        entry = self._entries.get((min(segment, self._last_segment), step, branch, site))
        if entry is None:
            raise ValueError(f"The replayed trace has no decision for step {step}, branch {branch}, site {site}; it belongs to another kind of take.")
        if entry.decision == Decision.COMPUTE.value:
            return Verdict.of(frozenset(), len(units))
        named = name_layers(units) == entry.layers
        blocks = set(chain(*_read_layers(entry.layers)))
        return Verdict.of(frozenset(unit for unit, run in enumerate(units) if named or blocks.issuperset(run)), len(units))


def name_layers(runs: Sequence[range]) -> str:
    """Runs of blocks as people write them, neighbours joined: `0-3,7`; `all` for a model's output."""
    if not any(runs):
        return "all"
    joined: list[range] = []
    for run in runs:
        joined = [*joined[:-1], range(joined[-1].start, run.stop)] if joined and joined[-1].stop == run.start else [*joined, run]
    return ",".join(str(run.start) if len(run) == 1 else f"{run.start}-{run.stop - 1}" for run in joined)


def _read_layers(layers: str) -> Iterator[range]:
    for run in layers.split(",") if layers != "all" else ():
        first, _, last = run.partition("-")
        yield range(int(first), int(last or first) + 1)
