"""The decisions of a take, in order: their file, their joining and what can be asked of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...files import write_atomic
from ..decision import Decision
from .entry import TraceEntry

_VERSION = 2


@dataclass
class Trace:
    """A take's decisions, in order. model: hash of the model that rendered it, empty if it is not known; num_inference_steps: of the take."""

    recipe: str
    num_inference_steps: int = 0
    model: str = ""
    entries: list[TraceEntry] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter, repr=False, compare=False)  # of the decisions of the first entries
    _counted: int = field(default=0, repr=False, compare=False)

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
        write_atomic(path, self.to_json())

    def plot(self, path: Path) -> None:
        """Draw the rows as cells, one a step: computed, computed in part, reused; a dot in a computed one grows with its forecast error."""
        from .picture import draw_rows

        draw_rows(self.rows(), path)

    def rows(self) -> dict[str, list[TraceEntry]]:
        """The entries by segment, branch and site, each row's in the order of its steps."""
        rows: dict[str, list[TraceEntry]] = {}
        for entry in sorted(self.entries, key=lambda entry: (entry.segment, entry.branch, entry.site, entry.step)):
            rows.setdefault(f"segment {entry.segment} {entry.branch} {entry.site}", []).append(entry)
        return rows

    @classmethod
    def joined(cls, parts: list[Trace]) -> Trace:
        """One trace out of those of ranks that made different calls (branches, windows), in the order in which one rank alone would have made
        them. Decisions that several parts made together count once.
        """
        by_key = {entry.key: (number, entry) for part in reversed(parts) for number, entry in part._by_round()}
        first = parts[0]
        ordered = sorted(by_key.values(), key=lambda found: (found[0], found[1].step, found[1].segment, found[1].branch))
        return cls(first.recipe, first.num_inference_steps, first.model, [entry for _, entry in ordered])

    def _by_round(self) -> Iterator[tuple[int, TraceEntry]]:
        """The entries, each with the number of its round: rounds go through all steps one after the other."""
        number, before = 0, 0
        for entry in self.entries:
            number += entry.step < before
            before = entry.step
            yield number, entry

    def numbered(self, steps_a_round: int) -> Iterator[tuple[int, str]]:
        """The step of each decision, counted over all rounds of the take, and what was decided."""
        for number, entry in self._by_round():
            yield number * steps_a_round + entry.step, entry.decision

    def add(self, entry: TraceEntry) -> int:
        """Returns the entry's index."""
        self.entries.append(entry)
        return len(self.entries) - 1

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
        """How many of each decision; partial ones only where there are some. It is asked for after every step: only new ones are counted."""
        self._counts.update(entry.decision for entry in self.entries[self._counted :])
        self._counted = len(self.entries)
        return {one.value: self._counts[one.value] for one in Decision if self._counts[one.value] or one is not Decision.PARTIAL}

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
