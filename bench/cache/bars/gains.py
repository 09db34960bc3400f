"""The bars of fronts and gains, worked out from measured points.

Fronts compare speed at a quality: the fastest of ours over the fastest of what a user has today, other tools' caches and fewer steps. Gains
compare quality at a cost in model calls. Only contenders that were measured on every clip of their stage count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...results import Bar
from ..contenders.contender import FEWER_STEPS, OURS
from ..contenders.fewer_steps import best_of_shifts
from ..contenders.recipes import UNCORRECTED
from ..points import Measured
from .fronts import Point, comparable_at, fastest_at

CALLS_ROUND = 0.05  # of a call: what counts as no more calls


@dataclass(frozen=True)
class Front:
    """bar: the least ratio of speed-ups at `psnr` dB against the film of the same sampler, under its name; no bar without a name."""

    bar: str
    stage: str
    psnr: float
    least: float


FRONTS = (
    Front("front_30db", "demo/euler/50", 30.0, 1.25),
    Front("front_35db", "demo/euler/50", 35.0, 1.4),
    Front("front_40db", "demo/euler/50", 40.0, 1.5),
    Front("unipc_front_30db", "demo/unipc/50", 30.0, 1.25),
    Front("unipc_front_35db", "demo/unipc/50", 35.0, 1.4),
    Front("unipc_front_40db", "demo/unipc/50", 40.0, 1.5),
    Front("unipc30_front_35db", "demo/unipc/30", 35.0, 1.25),
    Front("front_12_steps", "demo/euler/12", 30.0, 1.25),
    Front("", "demo/euler/6", 30.0, 0.0),
    Front("second_front_30db", "second/euler/50", 30.0, 1.25),
    Front("second_front_35db", "second/euler/50", 35.0, 1.25),
    Front("second_front_40db", "second/euler/50", 40.0, 1.25),
)


def on_every_clip(measured: Iterable[Measured]) -> list[Measured]:
    points = list(measured)
    most = {stage: max(len(point.of_clips) for point in points if point.stage == stage) for stage in {point.stage for point in points}}
    return [point for point in points if len(point.of_clips) == most[point.stage]]


def fronts(measured: Iterable[Measured]) -> tuple[dict[str, Bar], list[dict[str, Any]]]:
    """The bars, and a row for each with both sides' fastest methods; also at the moving region and against the converged film, without bars."""
    points, bars, rows = on_every_clip(measured), dict[str, Bar](), []
    stages = {point.stage for point in points}
    for front in (front for front in FRONTS if front.stage in stages):
        for of in ("psnr", "psnr_moving", "psnr_converged"):
            ours, theirs = (methods(points, front.stage, of, ours=mine) for mine in (True, False))
            level = comparable_at(front.psnr, ours, theirs)
            best = {"ours": fastest_at(ours, level), "theirs": fastest_at(theirs, level)}
            ratio = round(best["ours"][0] / best["theirs"][0], 3)
            rows.append({"stage": front.stage, "of": of, "wanted": front.psnr, "compared_at": level, **best, "ratio": ratio})
            if of == "psnr" and front.bar:
                unit = "x" if level == front.psnr else f"x at {level:g} dB, the lowest that both fall to"
                bars[front.bar] = Bar(ratio, unit, front.least, at_least=True)
    return bars, rows


def methods(measured: Iterable[Measured], stage: str, of: str, *, ours: bool) -> dict[str, list[Point]]:
    """The points of each method of one side on one stage, with one of their PSNRs; of a sampler that was tried with several flow shifts also
    the best at each number of steps.
    """
    found: dict[str, dict[str, Point]] = {}
    for measure in measured:
        if measure.stage == stage and (measure.tool == OURS) == ours:
            point = Point(measure.speedup, getattr(measure, of))
            for name in names_of(measure):
                settings = found.setdefault(name, {})
                settings[measure.setting] = max(point, settings.get(measure.setting, point), key=lambda one: one.psnr)
    return {name: list(settings.values()) for name, settings in found.items()}


def names_of(measured: Measured) -> list[str]:
    """The method, and what it is counted under together with others."""
    together = best_of_shifts(measured.method) if measured.tool == FEWER_STEPS else None
    return [measured.name, f"{FEWER_STEPS} {together}"] if together else [measured.name]


def gains(measured: Iterable[Measured]) -> tuple[dict[str, Bar], dict[str, Any]]:
    """The demo model's, in dB, and the two points that each is the difference of: against the converged film, but for the corrector's."""
    demo = [point for point in on_every_clip(measured) if point.stage.startswith("demo/")]
    unipc = [point for point in demo if point.stage == "demo/unipc/50"]
    if not unipc:
        return {}, {}

    def one(tool: str, method: str, setting: str) -> Measured:
        return next(point for point in unipc if (point.tool, point.method, point.setting) == (tool, method, setting))

    def best(calls: int, *, ours: bool) -> Measured:
        affordable = [point for point in demo if (point.tool == OURS) == ours and point.computed <= calls + CALLS_ROUND]
        return max(affordable, key=lambda point: point.psnr_converged)

    schedule = {count: one(OURS, "schedule", f"{count} steps") for count in (12, 9)}
    pairs = {
        "converged_gain_12": (best(12, ours=True), best(12, ours=False), 10.0),
        "schedule_gain_12": (schedule[12], one(FEWER_STEPS, "UniPC", "12 steps"), 10.0),
        "schedule_gain_9": (schedule[9], one(FEWER_STEPS, "UniPC", "9 steps"), 8.0),
        "forecast_gain_9": (best(9, ours=True), schedule[9], 1.5),
    }
    bars = {name: Bar(round(more.psnr_converged - less.psnr_converged, 2), "dB", bar, at_least=True) for name, (more, less, bar) in pairs.items()}
    with_it, without = (one(OURS, method, "computed 9") for method in ("planned", UNCORRECTED))
    bars["corrector_gain_9"] = Bar(round(with_it.psnr - without.psnr, 2), "dB", 2.0, at_least=True)
    raw = {name: {"more": _said(more), "less": _said(less)} for name, (more, less, _) in pairs.items()}
    return bars, {**raw, "corrector_gain_9": {"more": _said(with_it), "less": _said(without)}}


def worst_of(points: Sequence[Measured]) -> dict[str, Any]:
    """Our clip with the lowest PSNR among points of a stage, and whose it is."""
    point = min(points, key=lambda one: one.psnr_worst)
    return {**_said(point), "clip": min(range(len(point.of_clips)), key=lambda index: point.of_clips[index][1])}


def _said(point: Measured) -> dict[str, Any]:
    return {
        "stage": point.stage,
        "who": f"{point.name}, {point.setting}",
        "computed": point.computed,
        "speedup": point.speedup,
        "psnr": point.psnr,
        "psnr_converged": point.psnr_converged,
        "psnr_worst": point.psnr_worst,
        "psnr_converged_worst": point.psnr_converged_worst,
    }
