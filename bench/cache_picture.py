"""The picture beside the results of `bench cache`: PSNR against speed-up, a line a method, ours in colour, theirs in grey."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import matplotlib

from .contenders import OURS

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


_STYLES = [(line, marker) for marker in "osD" for line in ("--", "-.", ":")] + [("--", "v"), ("-.", "v"), (":", "v")]


def draw(measured: Sequence[Plotted], path: Path) -> None:
    """One panel for each number of steps."""
    panels = sorted({point.num_inference_steps for point in measured}, reverse=True)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(7 * len(panels) + 3, 7), squeeze=False)
    lines: dict[str, Any] = {}
    for axis, steps in zip(axes[0], panels, strict=True):
        lines |= _draw_panel(axis, [point for point in measured if point.num_inference_steps == steps])
        axis.set(title=f"{steps} steps", xlabel="speed-up by the clock", ylim=(15, 60))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("PSNR against the uncached film, dB")
    figure.legend(lines.values(), lines.keys(), loc="center right", fontsize="small")
    figure.tight_layout(rect=(0, 0, 1 - 2.6 / figure.get_figwidth(), 1))
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw_panel(axis: Any, measured: Sequence[Plotted]) -> dict[str, Any]:
    """The lines by name, ours first."""
    methods: dict[tuple[bool, str], list[Plotted]] = {}
    for point in measured:
        methods.setdefault((point.tool != OURS, f"{point.tool} {point.method}"), []).append(point)
    colours, greys = cycle(pyplot.get_cmap("tab20").colors), cycle(_STYLES)
    lines = {}
    for (is_theirs, name), points in sorted(methods.items()):
        ordered = sorted(points, key=lambda point: point.speedup)
        line, marker = next(greys) if is_theirs else ("-", ".")
        style = {"color": "0.45", "markersize": 4, "linewidth": 1} if is_theirs else {"color": next(colours), "markersize": 8, "linewidth": 1.8}
        lines[name] = axis.plot([p.speedup for p in ordered], [p.psnr for p in ordered], line, marker=marker, **style)[0]
    return lines
