"""One stage: every setting of every contender on the stage's clips, films rendered in turn from one stock pipeline.

A film's speed-up is its own clip's: the CPU time of the uncached films just before and after over its own, denoising alone. PSNR is of
decoded frames, against the uncached film of the same sampler with all its steps and against the converged film. The first clips are
rendered under everything; contenders that come nowhere near their tool's front there are left at that, and the others, with all that a
bar names, are rendered on every clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from statistics import fmean, median

import torch

from .bars.fronts import Point, worth_going_on
from .contenders.contender import Contender, Setting, Tuning
from .films.converged import ConvergedFilms
from .films.models import Clip
from .films.studio import Film, moving_region, psnr, seconds_of
from .points import Measured

_CACHED_IN_A_ROW = 12  # films between two uncached ones
_STEADY, _TRIES = 1.05, 3  # how far the uncached films around a row may differ in CPU time; the most that a row is rendered


@dataclass(frozen=True)
class Outcome:
    """What `Measured` holds, of one clip."""

    speedup: float
    psnr: float
    psnr_moving: float
    psnr_converged: float
    computed: float


Entry = tuple[Contender, Setting]


def measure(tuning: Tuning, converged: ConvergedFilms, contenders: Sequence[Contender], shown: Sequence[Clip]) -> list[Measured]:
    """All settings of all contenders, the first one of each before the second one of any, so that drifts of the machine hit all alike."""
    first, rest = shown[: tuning.stage.first_clips], shown[tuning.stage.first_clips :]
    points = _measure(tuning, converged, contenders, first)
    if not rest:
        return points
    kept = {who.name for who in contenders if who.named} | _worth_going_on(points)
    whole = _measure(tuning, converged, [who for who in contenders if who.name in kept], [*first, *rest])
    return [*whole, *(point for point in points if point.name not in kept)]


def _worth_going_on(points: Sequence[Measured]) -> set[str]:
    names: set[str] = set()
    for of in ("psnr", "psnr_converged"):
        by_tool: dict[str, dict[str, list[Point]]] = {}
        for point in points:
            methods = by_tool.setdefault(point.tool, {})
            methods.setdefault(point.name, []).append(Point(point.speedup, getattr(point, of)))
        names.update(*(worth_going_on(methods) for methods in by_tool.values()))
    return names


def _measure(tuning: Tuning, converged: ConvergedFilms, contenders: Sequence[Contender], shown: Sequence[Clip]) -> list[Measured]:
    by_contender = [[(who, setting) for setting in who.settings] for who in contenders]
    entries = [entry for turn in zip(*by_contender, strict=True) for entry in turn]
    outcomes = [list(compare(tuning, converged, clip, entries)) for clip in shown]
    return [_mean(tuning, entry, of_clips) for entry, *of_clips in zip(entries, *outcomes, strict=True)]


def _mean(tuning: Tuning, entry: Entry, of_clips: Sequence[Outcome]) -> Measured:
    who, setting = entry
    return Measured(
        tuning.stage.name,
        who.tool,
        who.method,
        setting.label,
        speedup=round(median(outcome.speedup for outcome in of_clips), 3),
        psnr=round(fmean(outcome.psnr for outcome in of_clips), 2),
        psnr_moving=round(fmean(outcome.psnr_moving for outcome in of_clips), 2),
        psnr_converged=round(fmean(outcome.psnr_converged for outcome in of_clips), 2),
        psnr_worst=round(min(outcome.psnr for outcome in of_clips), 2),
        psnr_converged_worst=round(min(outcome.psnr_converged for outcome in of_clips), 2),
        computed=round(fmean(outcome.computed for outcome in of_clips), 2),
        of_clips=tuple((round(outcome.speedup, 3), round(outcome.psnr, 2), round(outcome.psnr_converged, 2)) for outcome in of_clips),
    )


def compare(tuning: Tuning, converged: ConvergedFilms, clip: Clip, entries: Sequence[Entry]) -> Iterator[Outcome]:
    """One clip under every setting, a row of them at a time between uncached films; what the journal holds is not rendered again."""
    journal, original = tuning.journal, None
    names = {f"{clip.prompt}, seed {clip.seed}: {_name(entry)}": entry[1] for entry in entries}
    missing = [name for name in names if name not in journal]
    for row in (missing[start : start + _CACHED_IN_A_ROW] for start in range(0, len(missing), _CACHED_IN_A_ROW)):
        original = original or _Original(tuning, converged, clip)
        for name, outcome in zip(row, original.compare([names[name] for name in row]), strict=True):
            journal.note(name, asdict(outcome))
    yield from (Outcome(**journal[name]) for name in names)


def _name(entry: Entry) -> str:
    who, setting = entry
    return f"{who.name}, {setting.label}, {hashlib.sha256(setting.content.encode()).hexdigest()[:12]}"


class _Original:
    """A clip's uncached film of the stage's sampler and its converged film, which the others are compared with."""

    def __init__(self, tuning: Tuning, converged: ConvergedFilms, clip: Clip) -> None:
        self._studio, self._clip, self._steps = tuning.studio, clip, tuning.stage.steps
        self._converged = self._studio.frames(converged.latents(clip))
        self._last = self._film()
        self._frames = self._studio.frames(self._last.latents)
        self._region = moving_region(self._frames)

    def compare(self, row: Sequence[Setting]) -> Iterator[Outcome]:
        uncached, turns = self._render_row(row)
        self._last = uncached[-1]
        seconds = fmean((seconds_of(uncached[:-1]), seconds_of(uncached[1:])))  # of as many films as the cached ones
        for films in zip(*turns, strict=True):
            own = self._studio.frames(films[0].latents)
            quality = psnr(own, self._frames), psnr(own, self._frames, self._region), psnr(own, self._converged)
            yield Outcome(seconds / seconds_of(films), *quality, films[0].computed / 2)

    def _render_row(self, row: Sequence[Setting]) -> tuple[list[Film], list[list[Film]]]:
        """Uncached films, the last one of the row before first, and the row's own, in turn; more of both while the uncached ones differ in
        CPU time, as then something slows the processor down.
        """
        uncached, turns = [self._last], list[list[Film]]()
        while len(turns) < _TRIES and not _is_steady(uncached):
            turns.append([self._film(setting) for setting in row])
            uncached.append(self._film())
            assert torch.equal(uncached[-1].latents, self._last.latents), "a cache was not taken off"
        return uncached, turns

    def _film(self, setting: Setting | None = None) -> Film:
        with setting.put(self._studio.pipe) if setting else nullcontext():
            return self._studio.film(self._clip, setting.steps or self._steps if setting else self._steps)


def _is_steady(films: Sequence[Film]) -> bool:
    """Whether the two fastest took about as long; one film alone says nothing."""
    fastest = sorted(film.seconds for film in films)[:2]
    return len(films) > 1 and fastest[-1] <= _STEADY * fastest[0]
