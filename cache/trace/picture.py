"""Decisions as a picture: a column a step, a row for each segment, branch and site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from PIL import Image, ImageDraw

from ...files import written_whole
from .entry import TraceEntry

_COLOURS = {"compute": (214, 98, 49), "partial": (236, 190, 140), "reuse": (222, 226, 230)}
_CELL, _GAP, _LETTER = 14, 2, 6  # pixels


def draw_rows(rows: Mapping[str, Sequence[TraceEntry]], path: Path) -> None:
    """rows: by their labels, each in the order of its steps, which are drawn as cells from left to right; a dot in a computed one grows with
    its forecast error.
    """
    left_edge = 8 + _LETTER * max(map(len, rows), default=0)
    steps = max((len(entries) for entries in rows.values()), default=0)
    image = Image.new("RGB", (left_edge + steps * (_CELL + _GAP), max(1, len(rows)) * (_CELL + _GAP)), "white")
    draw = ImageDraw.Draw(image)
    largest = max((entry.forecast_error or 0.0 for entry in chain(*rows.values())), default=0.0) or 1.0
    for row, (label, entries) in enumerate(rows.items()):
        top = row * (_CELL + _GAP)
        draw.text((2, top), label, fill="black")
        for column, entry in enumerate(entries):
            left = left_edge + column * (_CELL + _GAP)
            draw.rectangle((left, top, left + _CELL, top + _CELL), fill=_COLOURS[entry.decision])
            if entry.forecast_error:
                radius = _CELL / 2 * entry.forecast_error / largest
                middle = (left + _CELL / 2, top + _CELL / 2)
                draw.ellipse((middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius), fill="white")
    with written_whole(path) as temporary:
        image.save(temporary)
