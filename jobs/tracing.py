"""Showing traces to people: as text, and as a picture of steps x segments and branches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw

from ..cache import Trace, TraceEntry

_MARKS = {"compute": "#", "reuse": "."}
_COLOURS = {"compute": (214, 98, 49), "reuse": (222, 226, 230)}
_CELL, _GAP, _LEFT = 14, 2, 130  # pixels


def _rows(trace: Trace) -> dict[str, list[TraceEntry]]:
    """A row a segment, branch and site; each with its entries by step."""
    rows: dict[str, list[TraceEntry]] = {}
    for entry in sorted(trace.entries, key=lambda entry: (entry.segment, entry.branch, entry.site, entry.step)):
        rows.setdefault(f"segment {entry.segment} {entry.branch} {entry.site}", []).append(entry)
    return rows


def show(trace: Trace) -> Iterator[str]:
    """A line a row (# computed, . reused), then what it comes to."""
    rows = _rows(trace)
    width = max(map(len, rows), default=0)
    for label, entries in rows.items():
        yield f"{label:{width}}  {''.join(_MARKS[entry.decision] for entry in entries)}"
    errors = [entry.forecast_error for entry in trace.entries if entry.forecast_error is not None]
    yield f"recipe {trace.recipe}: {', '.join(f'{count} {decision}' for decision, count in trace.summary().items())}"
    if trace.smallest_margin < float("inf"):
        yield f"smallest margin {trace.smallest_margin:.2e}"
    if errors:
        yield f"forecast error where computed: mean {sum(errors) / len(errors):.4f}, largest {max(errors):.4f}"


def picture(trace: Trace, path: Path) -> None:
    """The rows as cells, one a step, left to right; a dot in computed cells grows with the forecast error."""
    rows = _rows(trace)
    steps = max((len(entries) for entries in rows.values()), default=0)
    image = Image.new("RGB", (_LEFT + steps * (_CELL + _GAP), max(1, len(rows)) * (_CELL + _GAP)), "white")
    draw = ImageDraw.Draw(image)
    largest = max((entry.forecast_error or 0.0 for entry in trace.entries), default=0.0) or 1.0
    for row, (label, entries) in enumerate(rows.items()):
        top = row * (_CELL + _GAP)
        draw.text((2, top), label, fill="black")
        for column, entry in enumerate(entries):
            left = _LEFT + column * (_CELL + _GAP)
            draw.rectangle((left, top, left + _CELL, top + _CELL), fill=_COLOURS[entry.decision])
            if entry.forecast_error:
                radius = _CELL / 2 * entry.forecast_error / largest
                middle = (left + _CELL / 2, top + _CELL / 2)
                draw.ellipse((middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius), fill="white")
    image.save(path)


def diff(a: Trace, b: Trace) -> str:
    """Where two takes part, in one line."""
    parting = a.parting(b)
    if parting is None:
        return f"equal: {len(a.entries)} decisions"
    first = parting[0] or parting[1]
    assert first is not None
    sides = [f"{entry.decision} (value {_number(entry.value)}, margin {_number(entry.margin)})" if entry else "nothing" for entry in parting]
    return f"they part at step {first.step}, segment {first.segment}, {first.branch}, {first.site} {first.layers}: {sides[0]} against {sides[1]}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3e}"
