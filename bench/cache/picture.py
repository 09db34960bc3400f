"""The picture beside the results of `bench cache`: PSNR against speed-up, a line a method, ours in colour, theirs in grey and dashed.

The thick lines are the fronts: what the fastest method of ours, or of theirs, reaches at each PSNR.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np

from ...files import written_whole
from .bars.fronts import Point, fastest_at
from .contenders.contender import OURS

matplotlib.use("Agg")
from matplotlib import pyplot


class Plotted(Protocol):
    """What is drawn of a measured setting."""

    @property
    def tool(self) -> str: ...
    @property
    def method(self) -> str: ...
    @property
    def num_inference_steps(self) -> int: ...
    @property
    def speedup(self) -> float: ...
    @property
    def psnr(self) -> float: ...


_LOW, _HIGH = 15, 60  # dB
_GREYS = [(line, marker) for marker in "osDv^" for line in ("--", "-.", ":")]


def draw(measured: Sequence[Plotted], path: Path) -> None:
    """One panel for each number of steps."""
    panels = sorted({point.num_inference_steps for point in measured}, reverse=True)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(7 * len(panels), 10), squeeze=False, layout="constrained")
    lines: dict[str, Any] = {}
    for axis, steps in zip(axes[0], panels, strict=True):
        of_steps = [point for point in measured if point.num_inference_steps == steps]
        for is_ours in (True, False):
            lines |= _draw_methods(axis, [point for point in of_steps if (point.tool == OURS) == is_ours], is_ours)
        axis.set(title=f"{steps} steps", xlabel="speed-up by the clock", ylim=(_LOW, _HIGH))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("PSNR against the uncached film, dB")
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=2 * len(panels) + 1, fontsize="small")
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=100)
    pyplot.close(figure)


def _draw_methods(axis: Any, measured: Sequence[Plotted], is_ours: bool) -> dict[str, Any]:
    """The lines by name, the front first."""
    methods: dict[str, list[Point]] = {}
    for point in measured:
        methods.setdefault(f"{point.tool} {point.method}", []).append(Point(point.speedup, point.psnr))
    levels = np.linspace(_LOW, _HIGH, 10 * (_HIGH - _LOW) + 1)
    thick: dict[str, Any] = {"color": "tab:red", "linewidth": 6, "alpha": 0.3} if is_ours else {"color": "0.3", "linewidth": 6, "alpha": 0.3}
    front = axis.plot([fastest_at(methods, level)[0] for level in levels], levels, **thick)[0]
    lines = {"front of ours" if is_ours else "front of theirs": front}
    styles: Any = cycle([("-", ".")]) if is_ours else cycle(_GREYS)
    colours = cycle(pyplot.get_cmap("tab20").colors) if is_ours else cycle(["0.5"])
    for (name, points), (line, marker), colour in zip(sorted(methods.items()), styles, colours, strict=False):
        ordered = sorted(points, key=lambda point: point.speedup)
        places = [point.speedup for point in ordered], [point.psnr for point in ordered]
        lines[name] = axis.plot(*places, line, marker=marker, color=colour, markersize=4, linewidth=1.5 if is_ours else 0.9)[0]
    return lines
