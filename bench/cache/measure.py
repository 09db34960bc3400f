"""Our recipes against diffusers' caches and cache-dit's, on the demo model: `python -m longtake.bench cache`.

All films come from one stock diffusers pipeline, in one run and in turn, at 50, 12 and 6 steps with guidance: the same held-out clips and
seeds for everybody (at 6 steps the first one alone), one VAE. Whatever is tuned or calibrated is so on other clips, and each method gets
the same number of settings. Speed-up: the time of the uncached films just before and after over the cached film's, denoising alone; the
median over the clips. Where films are rendered several times, each step counts with the fastest time that it took. PSNR: of decoded
frames against the uncached film, the mean over the clips; also at the moving region alone, the pixels that leave the median of the
uncached film at some frame. Fronts are those of `fronts`. It takes an hour or two; one that was interrupted goes on where it was.

front_30db, front_35db, front_40db, front_12_steps: our speed-up at that PSNR over the fastest of theirs. same_method_diff: dB between
the same method of ours and theirs. score_drop: points of the demo's score (the mean of its four shares) that our best film of at least
2x loses. reuse_cost_*: a REUSE over a full call. compute_overhead: a COMPUTE over a call without a cache, the dearest recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ...cache import Recipe
from ...pipeline.checkpoint.card import read_card
from ...pipeline.checkpoint.model_hash import model_hash
from ...pipeline.demo.score import Score, score_clips
from ...pipeline.loop.render import Renderer
from ..results import RESULTS, Bar, write_results
from .bars.call_costs import compute_recipe, reuse_recipe, shares_of_a_call
from .bars.fronts import Point, comparable_at, fastest_at
from .contenders import rivals, same_method
from .contenders.contender import OURS, STEPS, Contender, Setting, Tuning
from .contenders.joint import joint_contenders
from .contenders.recipes import our_contenders
from .films.studio import Clip, Film, Studio, clips, moving_region, psnr, seconds_of
from .journal import Journal
from .picture import draw

_CLIPS = {50: 3, 12: 3, 6: 1}  # by steps; no bar is set for 6
_TUNING_CLIPS, _SCORED_CLIPS = 4, 64
_CACHED_IN_A_ROW = 6  # films between two uncached ones
_STEADY, _TRIES = 1.08, 3  # how far the two fastest renderings of one film may differ in time; the most of them
_REPEATS = {50: 1, 12: 2, 6: 2}  # the least
_WARM_UP_STEPS = 4
_ROUNDS = 20
_FRONTS = (  # bar, steps of a film, dB, least ratio; distilled models run 6 steps, which no bar is set for
    ("front_30db", 50, 30.0, 1.25),
    ("front_35db", 50, 35.0, 1.25),
    ("front_40db", 50, 40.0, 1.25),
    ("front_12_steps", 12, 30.0, 1.1),
    ("", 6, 30.0, None),
)


@dataclass(frozen=True)
class Measured:
    """One setting of one method. computed: model calls of one branch, of 2 a step. of_clips: speed-up and PSNR of each clip alone."""

    tool: str
    method: str
    setting: str
    num_inference_steps: int
    speedup: float
    psnr: float
    psnr_moving: float
    computed: float
    of_clips: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class _Outcome:
    speedup: float
    psnr: float
    psnr_moving: float
    computed: int


def main() -> None:
    studio, renderer = Studio(), Renderer(read_card("demo"))
    held_out, tuned = clips(max(_CLIPS.values()), held_out=True), clips(_TUNING_CLIPS, held_out=False)
    studio.film(tuned[0], _WARM_UP_STEPS)
    journal = _journal(studio)
    measured: list[Measured] = []
    recipes: dict[tuple[str, str], Recipe] = {}
    bars: dict[str, Bar] = {}
    raw: dict[str, Any] = {}
    for steps in STEPS:
        tuning = Tuning(studio, renderer, tuned, steps, journal)
        contenders, shown = [*our_contenders(tuning), *rivals.contenders(tuning)], held_out[: _CLIPS[steps]]
        measured += [*measure(tuning, contenders, shown), *measure(tuning, joint_contenders(tuning), shown)]
        if steps == STEPS[0]:
            recipes = {(who.method, setting.label): setting.recipe for who in contenders for setting in who.settings if setting.recipe}
            bars["same_method_diff"], raw["same_method"] = _same_method(tuning, shown)
    fronts, raw["fronts"] = _fronts(measured)
    score_bar, raw["score"] = _score_drop(renderer, journal, measured, recipes)
    costs, raw["share_of_a_call"] = _costs(studio, recipes)
    raw |= {
        "clips": [asdict(clip) for clip in held_out],
        "tuning_clips": [asdict(clip) for clip in tuned],
        "left_out": {"measured": rivals.LEFT_OUT, "same_method": same_method.LEFT_OUT},
        "sittings": journal.sittings,
        "points": [asdict(point) for point in measured],
    }
    draw(measured, RESULTS / "cache.png")
    write_results("cache", {**fronts, **bars, "score_drop": score_bar, **costs}, raw)
    journal.discard()


def _journal(studio: Studio) -> Journal:
    """Of this model, these versions and all that makes films and settings."""
    root, sources = RESULTS.parent.parent, hashlib.sha256()
    measured = list[Path]()
    for folder in ("bench/cache/contenders", "bench/cache/films", "cache", "configs", "parallel", "pipeline"):
        measured += sorted(path for path in (root / folder).rglob("*") if path.suffix in (".py", ".yaml"))
    for path in measured:
        sources.update(path.read_bytes())
    versions = {package: version(package) for package in ("torch", "diffusers", "cache-dit")}
    return Journal(RESULTS / "cache.journal", {"model": model_hash(studio.card.path), "versions": versions, "sources": sources.hexdigest()})


def measure(tuning: Tuning, contenders: Sequence[Contender], shown: Sequence[Clip]) -> list[Measured]:
    """All settings of all contenders, the first one of each before the second one of any, so that drifts of the machine hit all alike."""
    by_contender = [[(who, setting) for setting in who.settings] for who in contenders]
    entries = [entry for turn in zip(*by_contender, strict=True) for entry in turn]
    settings = {f"{who.name}, {setting.label}": setting for who, setting in entries}
    outcomes = [list(_compare(tuning, clip, settings)) for clip in shown]
    return [
        Measured(
            who.tool,
            who.method,
            setting.label,
            tuning.num_inference_steps,
            speedup=round(median(outcome.speedup for outcome in of_clips), 3),
            psnr=round(fmean(outcome.psnr for outcome in of_clips), 2),
            psnr_moving=round(fmean(outcome.psnr_moving for outcome in of_clips), 2),
            computed=round(fmean(outcome.computed for outcome in of_clips), 1),
            of_clips=tuple((round(outcome.speedup, 3), round(outcome.psnr, 2)) for outcome in of_clips),
        )
        for (who, setting), *of_clips in zip(entries, *outcomes, strict=True)
    ]


def _compare(tuning: Tuning, clip: Clip, settings: Mapping[str, Setting]) -> Iterator[_Outcome]:
    """One clip under every setting, a few of them at a time between uncached films."""
    names, steps, journal = list(settings), tuning.num_inference_steps, tuning.journal
    original: _Original | None = None
    for row in (names[start : start + _CACHED_IN_A_ROW] for start in range(0, len(names), _CACHED_IN_A_ROW)):
        recipes = hashlib.sha256(repr([recipe and recipe.to_dict() for recipe in (settings[name].recipe for name in row)]).encode())
        entry = f"{steps} steps, {clip.prompt}, seed {clip.seed}: {'; '.join(row)}; {recipes.hexdigest()[:16]}"
        if entry not in journal:
            original = original or _Original(tuning.studio, clip, steps)
            journal.note(entry, [asdict(outcome) for outcome in original.compare([settings[name] for name in row])])
        yield from (_Outcome(**figures) for figures in journal[entry])


class _Original:
    """A clip's uncached film, which cached ones are compared with."""

    def __init__(self, studio: Studio, clip: Clip, num_inference_steps: int) -> None:
        self._studio, self._clip, self._num_inference_steps = studio, clip, num_inference_steps
        self._last = self._film()
        self._frames = studio.frames(self._last.latents)
        self._region = moving_region(self._frames)

    def compare(self, row: Sequence[Setting]) -> Iterator[_Outcome]:
        uncached, cached = self._render_row(row)
        self._last = uncached[-1]
        seconds = fmean((seconds_of(uncached[:-1]), seconds_of(uncached[1:])))  # of as many films as the cached ones
        for films in cached:
            own = self._studio.frames(films[0].latents)
            quality = psnr(own, self._frames), psnr(own, self._frames, self._region)
            yield _Outcome(seconds / seconds_of(films), *quality, films[0].computed)

    def _render_row(self, row: Sequence[Setting]) -> tuple[list[Film], list[tuple[Film, ...]]]:
        """Uncached films, the last one of the row before first, and, for each setting, its cached ones, in turn; more of both while
        the fastest of one setting differ in time, as then something else runs on the machine.
        """
        uncached, turns = [self._last], list[list[Film]]()
        for turn in range(1, _TRIES + 1):
            turns.append([self._film(setting) for setting in row])
            uncached.append(self._film())
            assert torch.equal(uncached[-1].latents, self._last.latents), "a cache was not taken off"
            if turn >= _REPEATS[self._num_inference_steps] and all(map(_is_steady, [uncached, *zip(*turns, strict=True)])):
                break
        return uncached, list(zip(*turns, strict=True))

    def _film(self, setting: Setting | None = None) -> Film:
        with setting.put(self._studio.pipe) if setting else nullcontext():
            return self._studio.film(self._clip, self._num_inference_steps)


def _is_steady(films: Sequence[Film]) -> bool:
    fastest = sorted(film.seconds for film in films)[:2]
    return fastest[-1] <= _STEADY * fastest[0]


def _same_method(tuning: Tuning, shown: Sequence[Clip]) -> tuple[Bar, list[dict[str, Any]]]:
    """The largest difference in dB, over pairs and clips."""
    rows = []
    for pair in same_method.pairs(tuning):
        settings = {f"ours, {pair.name}": pair.ours, f"theirs, {pair.name}": pair.theirs}
        ours, theirs = zip(*(list(_compare(tuning, clip, settings)) for clip in shown), strict=True)
        rows.append(
            {
                "pair": pair.name,
                "psnr": [[round(outcome.psnr, 3) for outcome in outcomes] for outcomes in (ours, theirs)],
                "computed": [[outcome.computed for outcome in outcomes] for outcomes in (ours, theirs)],
                "difference": max(abs(our.psnr - their.psnr) for our, their in zip(ours, theirs, strict=True)),
            }
        )
    return Bar(round(max(row["difference"] for row in rows), 3), "dB", 0.3, at_least=False), rows


def _fronts(measured: Sequence[Measured]) -> tuple[dict[str, Bar], list[dict[str, Any]]]:
    bars, rows = {}, []
    for name, steps, wanted, bar in _FRONTS:
        for region in ("psnr", "psnr_moving"):
            ours, theirs = (_methods(measured, steps, region, ours=mine) for mine in (True, False))
            level = comparable_at(wanted, ours, theirs)
            best = {"ours": fastest_at(ours, level), "theirs": fastest_at(theirs, level)}
            ratio = round(best["ours"][0] / best["theirs"][0], 3)
            rows.append({"num_inference_steps": steps, "of": region, "wanted": wanted, "compared_at": level, **best, "ratio": ratio})
            if region == "psnr" and bar:
                bars[name] = Bar(ratio, "x" if level == wanted else f"x at {level:g} dB, the lowest that both fall to", bar, at_least=True)
    return bars, rows


def _methods(measured: Sequence[Measured], steps: int, region: str, *, ours: bool) -> dict[str, list[Point]]:
    methods: dict[str, list[Point]] = {}
    for point in measured:
        if point.num_inference_steps == steps and (point.tool == OURS) == ours:
            methods.setdefault(f"{point.tool} {point.method}", []).append(Point(point.speedup, getattr(point, region)))
    return methods


def _score_drop(
    renderer: Renderer, journal: Journal, measured: Sequence[Measured], recipes: dict[tuple[str, str], Recipe]
) -> tuple[Bar, dict[str, Any]]:
    ours = [point for point in measured if point.tool == OURS and (point.method, point.setting) in recipes]
    candidates = [point for point in ours if point.num_inference_steps == STEPS[0] and point.speedup >= 2]
    best = max(candidates, key=lambda point: point.psnr)
    plain, cached = (_score(renderer, journal, recipe) for recipe in (None, recipes[best.method, best.setting]))
    points = [100 * fmean((score.colour, score.shape, score.motion, score.background)) for score in (plain, cached)]
    raw = {"recipe": f"{best.method}, {best.setting}", "speedup": best.speedup, "without": asdict(plain), "with": asdict(cached)}
    return Bar(round(points[0] - points[1], 2), "points", 2, at_least=False), raw


def _score(renderer: Renderer, journal: Journal, recipe: Recipe | None) -> Score:
    entry = f"score with {recipe and recipe.to_dict()}"
    if entry not in journal:
        clips = score_clips(renderer, _SCORED_CLIPS, num_inference_steps=STEPS[0], recipe=recipe)
        journal.note(entry, asdict(Score.of([clip.verdict for clip in clips])))
    return Score(**journal[entry])


def _costs(studio: Studio, recipes: dict[tuple[str, str], Recipe]) -> tuple[dict[str, Bar], dict[str, float]]:
    """The bars, and every way's median share of a call without a cache."""
    ways = {f"compute {method}": compute_recipe(recipe) for (method, _), recipe in recipes.items()}
    for predictor in ({"name": "reuse"}, {"name": "taylor", "order": 1}):
        ways[f"reuse stack {predictor['name']}"] = reuse_recipe({"name": "stack", "first_blocks": 0, "last_blocks": 0}, predictor)
        ways[f"reuse output {predictor['name']}"] = reuse_recipe({"name": "output"}, predictor)
    shares = shares_of_a_call(studio, ways, _ROUNDS)

    def dearest(kind: str) -> float:
        return round(max(share for name, share in shares.items() if name.startswith(kind)), 4)

    bars = {
        "reuse_cost_stack": Bar(dearest("reuse stack"), "of a full step", 0.05, at_least=False),
        "reuse_cost_output": Bar(dearest("reuse output"), "of a full step", 0.02, at_least=False),
        "compute_overhead": Bar(dearest("compute"), "x", 1.03, at_least=False),
    }
    return bars, {name: round(share, 4) for name, share in shares.items()}


def look(only: str, num_inference_steps: int, every: int) -> None:
    """For whoever adds a sweep: the points of some contenders on one tuning clip."""
    studio, tuned = Studio(), clips(_TUNING_CLIPS, held_out=False)
    studio.film(tuned[0], _WARM_UP_STEPS)
    with TemporaryDirectory() as folder:
        tuning = Tuning(studio, Renderer(read_card("demo")), tuned, num_inference_steps, Journal(Path(folder) / "journal", {}))
        everyone = [*our_contenders(tuning, only), *joint_contenders(tuning, only), *rivals.contenders(tuning)]
        chosen = [replace(who, settings=who.settings[::every]) for who in everyone if only in who.name]
        points = measure(tuning, chosen, tuned[:1])
    for point in sorted(points, key=lambda point: (point.tool, point.method)):
        where = f"{point.speedup:5.2f}x {point.psnr:6.2f} dB, moving {point.psnr_moving:6.2f} dB, {point.computed:g} calls"
        print(f"{point.tool} {point.method} ({point.setting}): {where}")
