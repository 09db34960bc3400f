"""The picture beside the results of the benchmark of caches: PSNR against speed-up, a panel a model, and the named lines' figures below.

At most eight lines have a name and a colour: a plan, a schedule and what of every tool reaches farthest. All others are thin and grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from ...files import written_whole
from .bars.fronts import Point, speed_at
from .bars.gains import CALLS_ROUND, methods, names_of, on_every_clip
from .contenders.contender import FEWER_STEPS, OURS
from .points import Measured

matplotlib.use("Agg")
from matplotlib import pyplot

_LOW, _HIGH, _FASTEST = 20, 60, 10  # dB, dB and speed-up: beyond them nobody looks
_LEVELS = (30.0, 35.0, 40.0)  # dB at which methods are ranked and the table is
_CALLS = (12, 9)  # at which the table says how far films are from the converged one
_NAMED = {OURS: 3, FEWER_STEPS: 2}  # lines with a name by tool; one of any other, and one for our worst clip
_WORST = f"{OURS} planned"  # whose worst clip is drawn
_ALWAYS = (_WORST, f"{OURS} schedule", f"{FEWER_STEPS} UniPC")
_MOST_NAMED = 7
_PANELS = ("demo/euler/50", "second/euler/50")
_OURS_COLOURS, _COLOURS = ("tab:red", "tab:orange", "tab:pink"), ("tab:blue", "tab:green", "black", "tab:purple", "tab:cyan")


def draw(measured: Sequence[Measured], path: Path) -> None:
    """One panel for each model's main stage, or for the first stage that was measured."""
    points = on_every_clip(measured)
    stages = [stage for stage in _PANELS if any(point.stage == stage for point in points)] or [points[0].stage]
    named = named_lines(points, stages)
    styles = _styles(named)
    figure, grid = pyplot.subplots(2, len(stages), figsize=(11 * len(stages), 13), squeeze=False, layout="constrained", height_ratios=(3, 1))
    for axis, table, stage in zip(grid[0], grid[1], stages, strict=True):
        found = methods(points, stage, "psnr", ours=True) | methods(points, stage, "psnr", ours=False)
        for name in sorted(found, key=lambda name: name in styles):  # the named ones on top
            _draw_line(axis, name, found[name], styles.get(name))
        worst = [Point(point.speedup, point.psnr_worst) for point in points if point.stage == stage and point.name == _WORST]
        _draw_line(axis, f"{_WORST}, worst clip", worst, styles[_WORST] | {"linestyle": ":", "marker": ""} if worst else None)
        model, sampler, steps = stage.split("/")
        axis.set_title(f"{model} model, {steps} {sampler} steps", fontsize=18)
        axis.set(xlim=(1, _FASTEST), ylim=(_LOW, _HIGH))
        axis.set_xlabel("speed-up in CPU time", fontsize=15)
        axis.set_ylabel("PSNR against the film with all steps, dB", fontsize=15)
        axis.tick_params(labelsize=13)
        axis.grid(alpha=0.3)
        lines = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        shown = [name for name in (*named, f"{_WORST}, worst clip") if name in lines]
        axis.legend([lines[name] for name in shown], shown, fontsize=14, loc="upper right")
        _draw_table(table, {name: found[name] for name in named if name in found}, _reached(points, stage), styles)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=80)
    pyplot.close(figure)


def named_lines(points: Sequence[Measured], stages: Sequence[str]) -> list[str]:
    """Ours first: of each tool those methods that are always named, and those that reach farthest: their speed-ups at every level and stage,
    multiplied.
    """
    reach: dict[str, dict[str, float]] = {}
    known = sorted({point.tool for point in points}, key=len)
    for stage in stages:
        found = methods(points, stage, "psnr", ours=True) | methods(points, stage, "psnr", ours=False)
        for name, line in found.items():
            by_name = reach.setdefault(next(tool for tool in known if name.startswith(f"{tool} ")), {})
            for level in _LEVELS:
                by_name[name] = by_name.get(name, 1.0) * speed_at(line, level)
    named: list[str] = []
    for tool in sorted(reach, key=lambda tool: (tool != OURS, tool != FEWER_STEPS, tool)):
        named += sorted(reach[tool], key=lambda name: (name not in _ALWAYS, -reach[tool][name]))[: _NAMED.get(tool, 1)]
    return named[:_MOST_NAMED]


def _styles(named: Sequence[str]) -> dict[str, dict[str, Any]]:
    ours = [name for name in named if name.startswith(f"{OURS} ")]
    others = [name for name in named if name not in ours]
    colours = dict(zip((*ours, *others), (*_OURS_COLOURS[: len(ours)], *_COLOURS), strict=False))
    return {name: {"color": colour, "linewidth": 3.5 if name in ours else 2.5, "marker": "o", "markersize": 8} for name, colour in colours.items()}


def _draw_line(axis: Any, name: str, line: Sequence[Point], style: dict[str, Any] | None) -> None:
    ordered = sorted(line, key=lambda point: point.speedup)
    places = [point.speedup for point in ordered], [point.psnr for point in ordered]
    axis.plot(*places, **(style or {"color": "0.75", "linewidth": 0.8, "zorder": 1}), label=name if style else None)


def _reached(points: Sequence[Measured], stage: str) -> dict[tuple[str, int], float]:
    """dB against the converged film, the most that each method reaches with so many calls."""
    reached: dict[tuple[str, int], float] = {}
    for point in points:
        for name in names_of(point):
            for calls in _CALLS:
                if point.stage == stage and point.computed <= calls + CALLS_ROUND:
                    reached[name, calls] = max(point.psnr_converged, reached.get((name, calls), 0.0))
    return reached


def _draw_table(axis: Any, lines: dict[str, Sequence[Point]], reached: dict[tuple[str, int], float], styles: dict[str, dict[str, Any]]) -> None:
    axis.axis("off")
    rows = []
    for name, line in lines.items():
        speeds = [f"{speed_at(line, level):.2f}x" for level in _LEVELS]
        qualities = [f"{reached[name, calls]:.1f} dB" if (name, calls) in reached else "-" for calls in _CALLS]
        rows.append([name, *speeds, *qualities])
    titles = ["", *(f"at {level:g} dB" for level in _LEVELS), *(f"{calls} calls,\nto converged" for calls in _CALLS)]
    table = axis.table(rows, colLabels=titles, colWidths=(0.37, *[0.11] * 3, *[0.15] * 2), loc="upper center")
    table.auto_set_font_size(False)
    table.set_fontsize(14)
    table.scale(1, 1.9)
    for column in range(len(titles)):
        table[0, column].set_height(1.6 * table[0, column].get_height())
    for row, name in enumerate(lines, start=1):
        table[row, 0].get_text().set_color(styles[name]["color"])
