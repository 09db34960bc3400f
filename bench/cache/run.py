"""The benchmark of caches: `python -m longtake.bench.cache`, described on docs/benchmark.md.

A run without `--stage` measures what no journal holds, and writes bench/results/cache.json and cache.png.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..journal import Journal
from ..results import RESULTS, Bar, commit, write_results
from .bars.gains import fronts, gains, worst_of
from .contenders.contender import OURS
from .films.models import MODELS
from .measure import measure
from .picture import draw
from .pieces import LEFT_OUT, PIECES, contenders_of, converged_of, journal_of, result_of, tuning_of
from .points import Measured
from .stages import STAGES, expected_hours, stage_named

_PICTURE = RESULTS / "cache.png"


def main(piece: str = "", *, dirty: bool = False) -> None:
    """Measure one piece into its journal, or all of them, and write the results. Raises ValueError for a piece that there is none of, and in a
    checkout with changes that are not committed, unless `dirty` says that they do not matter.
    """
    torch.set_num_threads(1)
    if piece and piece not in PIECES:
        raise ValueError(f"There is no piece '{piece}'; known: {', '.join(PIECES)}.")
    if commit().endswith("+") and not dirty:
        raise ValueError("This checkout has changes that are not committed, and results name a commit; commit them, or give --dirty or --quick.")
    asked = [piece] if piece else list(PIECES)
    stages = [stage for stage in STAGES if stage.name in asked and "result" not in journal_of(stage.name)]
    print(f"{len(stages)} stages to measure, about {sum(map(expected_hours, stages)):.1f} h of one core", flush=True)
    results = {name: result_of(name) for name in asked}
    if not piece:
        _write(results)


def _write(results: Mapping[str, Any]) -> None:
    stages = {stage.name: results[stage.name] for stage in STAGES}
    measured = [Measured.read(point) for result in stages.values() for point in result["points"]]
    front_bars, front_rows = fronts(measured)
    gain_bars, gain_rows = gains(measured)
    foreign = {name: result for name, result in results.items() if name.startswith("foreign/")}
    same_method = next(result["same_method"] for result in stages.values() if "same_method" in result)
    costs = {name: result for name, result in results.items() if name.startswith("costs/")}
    bars = {
        **front_bars,
        **gain_bars,
        "foreign_prompts_loss": Bar(max(result["loss"] for result in foreign.values()), "dB", 1.5, at_least=False),
        "same_method_diff": Bar(max(row["difference"] for row in same_method), "dB", 0.3, at_least=False),
        "score_drop": Bar(results["score/demo"]["drop"], "points", 2, at_least=False),
        **{name: Bar(**bar) for result in costs.values() for name, bar in result["bars"].items()},
    }
    ours = [point for point in measured if point.tool == OURS and point.method == "planned"]
    raw = {
        "commits": {name: result["commit"] for name, result in results.items()},
        "sittings": {name: result["sittings"] for name, result in results.items()},
        "clips": {name: result["clips"] for name, result in stages.items()},
        "tuning_clips": {name: result["tuning_clips"] for name, result in stages.items()},
        "left_out": LEFT_OUT,
        "fronts": front_rows,
        "gains": gain_rows,
        "worst_clip_of_planned": {stage: worst_of([point for point in ours if point.stage == stage]) for stage in stages},
        "foreign_prompts": foreign,
        "same_method": same_method,
        "score": results["score/demo"],
        "share_of_a_call": {name: result["share_of_a_call"] for name, result in costs.items()},
        "schedules": {name: result["schedules"] for name, result in stages.items()},
        "points": [point for result in stages.values() for point in result["points"]],
    }
    write_results("cache", bars, raw)
    draw(measured, _PICTURE)
    for name in PIECES:
        journal_of(name).discard()


def redraw() -> None:
    """The picture, from results that are written."""
    points = json.loads((RESULTS / "cache.json").read_text())["raw"]["points"]
    draw([Measured.read(point) for point in points], _PICTURE)


def look(stage: str, only: str, every: int, picture: Path | None) -> None:
    """For whoever adds a sweep: print the points of some contenders on a tuning clip, write no results. every: one setting of so many."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        tuning = tuning_of(stage_named(stage), Journal(Path(folder) / "journal", {}))
        chosen = [replace(who, settings=who.settings[::every]) for who in contenders_of(tuning, only)]
        points = measure(tuning, converged_of(tuning.studio, tuning.stage.model), chosen, MODELS[tuning.stage.model].tuning_clips(1))
    for point in sorted(points, key=lambda point: (point.tool, point.method)):
        quality = f"{point.psnr:6.2f} dB, moving {point.psnr_moving:6.2f} dB, converged {point.psnr_converged:6.2f} dB"
        print(f"{point.name} ({point.setting}): {point.speedup:5.2f}x {quality}, {point.computed:g} calls")
    if picture:
        draw(points, picture)
