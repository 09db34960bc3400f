"""Showing traces to people, as text."""

from __future__ import annotations

from collections.abc import Iterator

from ...cache import Trace, TraceEntry

_MARKS = {"compute": "#", "partial": "~", "reuse": "."}


def show(trace: Trace) -> Iterator[str]:
    """A line for each segment, branch and site with a mark a step (# computed, ~ in part, . reused); then lines of totals."""
    rows = trace.rows()
    width = max(map(len, rows), default=0)
    for label, entries in rows.items():
        yield f"{label:{width}}  {''.join(_MARKS[entry.decision] for entry in entries)}"
    errors = [entry.forecast_error for entry in trace.entries if entry.forecast_error is not None]
    yield f"recipe {trace.recipe}: {', '.join(f'{count} {decision}' for decision, count in trace.summary().items())}"
    if trace.smallest_margin < float("inf"):
        yield f"smallest margin {trace.smallest_margin:.2e}"
    if errors:
        yield f"forecast error where computed: mean {sum(errors) / len(errors):.4f}, largest {max(errors):.4f}"


def diff(a: Trace, b: Trace) -> str:
    """The first decision in which two traces differ, as one line."""
    parting = a.parting(b)
    if parting is None:
        return f"equal: {len(a.entries)} decisions"
    one, other = parting
    if one is None or other is None or one.key != other.key:  # of other lengths, windows or sites
        return f"they are not of the same calls: {_call(one)} in the first, {_call(other)} in the second"
    sides = [f"{entry.decision} (value {_number(entry.value)}, margin {_number(entry.margin)})" for entry in (one, other)]
    layers = one.layers if one.layers == other.layers else f"{one.layers} and {other.layers}"
    return f"they differ first at {_call(one)} {layers}: {sides[0]} against {sides[1]}"


def _call(entry: TraceEntry | None) -> str:
    return "nothing more" if entry is None else f"step {entry.step}, segment {entry.segment}, {entry.branch}, {entry.site}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3e}"
