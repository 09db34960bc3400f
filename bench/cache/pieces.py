"""What is measured, a piece at a time, each with a journal of its own: the stages, what is lost on foreign prompts, the score, calls' costs.

A run that was interrupted goes on where it was, and two processes can measure two pieces at the same time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from statistics import fmean
from typing import Any

from ...cache import Recipe, load_recipe
from ...pipeline.checkpoint.model_hash import model_hash
from ...pipeline.demo.score import Score, score_clips
from ...pipeline.loop.render import Renderer
from ..journal import Journal
from ..results import RESULTS, commit
from .bars.call_costs import demo_costs, wan_costs
from .bars.foreign_prompts import FOREIGN_CLIPS, FOREIGN_TAKES, foreign_prompts
from .contenders import fewer_steps, joint, recipes, rivals, same_method, schedules
from .contenders.contender import OURS, Contender, Tuning
from .films.converged import ConvergedFilms
from .films.models import MODELS, Clip
from .films.samplers import sampler
from .films.studio import Studio
from .measure import compare, measure
from .points import Measured
from .stages import STAGES, Stage

JOURNALS = RESULTS / "journals"
_TUNING_CLIPS, _SCORED_CLIPS = 4, 64
_WARM_UP_STEPS = 4
_FIRST = STAGES[0]  # whose films are scored, and whose recipes' calls are timed
LEFT_OUT = {"measured": {**rivals.LEFT_OUT, **fewer_steps.LEFT_OUT}, "on UniPC": recipes.EULER_ONLY, "same_method": same_method.LEFT_OUT}


def result_of(name: str) -> Any:
    """From the piece's journal, or measured now."""
    journal = journal_of(name)
    if "result" not in journal:
        print(f"{name}: {commit()}", flush=True)
        if "commit" not in journal:
            journal.note("commit", commit())
        journal.note("result", PIECES[name](journal))
    return {"commit": journal["commit"], "sittings": journal.sittings, **journal["result"]}


@cache
def journal_of(name: str) -> Journal:
    """Of the piece's model, these versions and all that makes films and settings; opened once. Raises ValueError while another process has it."""
    JOURNALS.mkdir(parents=True, exist_ok=True)
    return Journal(JOURNALS / f"{name.replace('/', '-')}.journal", _subject(name))


def _subject(name: str) -> dict[str, Any]:
    root, sources = RESULTS.parent.parent, hashlib.sha256()
    for folder in ("bench/cache", "bench/second", "cache", "configs", "parallel", "pipeline"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".yaml") and path.name != "picture.py":
                sources.update(path.read_bytes())
    model = next((model for model in MODELS.values() if model.name in name.split("/")), MODELS[_FIRST.model])
    return {"model": model_hash(model.card.path), "versions": _versions(), "sources": sources.hexdigest()}


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "diffusers", "cache-dit")}


def tuning_of(stage: Stage, journal: Journal) -> Tuning:
    model = MODELS[stage.model]
    studio = Studio(model.card)
    studio.pipe.scheduler = sampler(model.card, stage.sampler)
    clips = model.tuning_clips(_TUNING_CLIPS)
    studio.film(clips[0], _WARM_UP_STEPS)
    return Tuning(stage, studio, Renderer(model.card), clips, journal)


def contenders_of(tuning: Tuning, only: str = "") -> list[Contender]:
    """Ours first; only those whose name contains `only`."""
    every = [*recipes.contenders(tuning, only), *joint.contenders(tuning, only)]
    if only in f"{OURS} schedule":
        every += schedules.contenders(tuning)
    others = [*rivals.contenders(tuning), *fewer_steps.contenders(tuning)]
    return [*every, *(who for who in others if only in who.name)]


def converged_of(studio: Studio, model: str) -> ConvergedFilms:
    return ConvergedFilms(studio, JOURNALS, {"model": model_hash(MODELS[model].card.path), "versions": _versions()})


def _stage(stage: Stage, journal: Journal) -> dict[str, Any]:
    tuning = tuning_of(stage, journal)
    shown = MODELS[stage.model].measured_clips(stage.clips)
    converged = converged_of(tuning.studio, stage.model)
    everyone = contenders_of(tuning)
    points = measure(tuning, converged, everyone, shown)
    result: dict[str, Any] = {
        "clips": [asdict(clip) for clip in shown],
        "tuning_clips": [asdict(clip) for clip in tuning.clips],
        "recipes": {who.method: _recipes_of(who) for who in everyone if who.tool == OURS and who.method not in recipes.LEFT_OUT},
        "schedules": {one.label: one.sigmas for who in everyone for one in who.settings if who.method == "schedule"},
        "points": [asdict(point) for point in points],
    }
    if stage == _FIRST:
        result["same_method"] = _same_method(tuning, converged, shown[:3])
    return result


def _recipes_of(who: Contender) -> dict[str, Any]:
    """By setting, those that run on a take of the stage's own steps."""
    return {one.label: one.recipe.to_dict() for one in who.settings if one.recipe and not one.steps}


def _same_method(tuning: Tuning, converged: ConvergedFilms, shown: list[Clip]) -> list[dict[str, Any]]:
    rows = []
    for pair in same_method.pairs(tuning):
        entries = [(Contender(side, pair.name, (setting,)), setting) for side, setting in (("ours", pair.ours), ("theirs", pair.theirs))]
        ours, theirs = zip(*(list(compare(tuning, converged, clip, entries)) for clip in shown), strict=True)
        rows.append(
            {
                "pair": pair.name,
                "psnr": [[round(outcome.psnr, 3) for outcome in outcomes] for outcomes in (ours, theirs)],
                "computed": [[outcome.computed for outcome in outcomes] for outcomes in (ours, theirs)],
                "difference": round(max(abs(our.psnr - their.psnr) for our, their in zip(ours, theirs, strict=True)), 3),
            }
        )
    return rows


def _score(journal: Journal) -> dict[str, Any]:
    """What the demo's score loses under our best film of at least twice the speed: the mean of its four shares, in points."""
    first = result_of(_FIRST.name)
    ours = [Measured.read(point) for point in first["points"] if point["tool"] == OURS and point["speedup"] >= 2]
    best = max((point for point in ours if point.setting in first["recipes"].get(point.method, {})), key=lambda point: point.psnr)
    recipe = load_recipe(first["recipes"][best.method][best.setting])
    renderer = Renderer(MODELS["demo"].card)
    plain, cached = (_scored(renderer, journal, one) for one in (None, recipe))
    points = [100 * fmean((score.colour, score.shape, score.motion, score.background)) for score in (plain, cached)]
    drop = round(points[0] - points[1], 2)
    return {"recipe": f"{best.method}, {best.setting}", "speedup": best.speedup, "without": asdict(plain), "with": asdict(cached), "drop": drop}


def _scored(renderer: Renderer, journal: Journal, recipe: Recipe | None) -> Score:
    entry = f"score with {recipe and recipe.to_dict()}"
    if entry not in journal:
        clips = score_clips(renderer, _SCORED_CLIPS, num_inference_steps=_FIRST.steps, recipe=recipe)
        journal.note(entry, asdict(Score.of([clip.verdict for clip in clips])))
    return Score(**journal[entry])


def _demo_costs(journal: Journal) -> dict[str, Any]:
    found = result_of(_FIRST.name)["recipes"]
    return demo_costs({method: load_recipe(next(iter(settings.values()))) for method, settings in found.items() if settings})


def _foreign(model: str, journal: Journal) -> dict[str, Any]:
    stage = next(stage for stage in STAGES if (stage.model, stage.sampler, stage.steps) == (model, "euler", 50))
    foreign = MODELS[model].tuning_clips(max(FOREIGN_TAKES))
    return foreign_prompts(tuning_of(stage, journal), foreign, MODELS[model].measured_clips(FOREIGN_CLIPS))


def _stage_piece(stage: Stage) -> Callable[[Journal], dict[str, Any]]:
    return lambda journal: _stage(stage, journal)


def _foreign_piece(model: str) -> Callable[[Journal], dict[str, Any]]:
    return lambda journal: _foreign(model, journal)


# Those that read another piece's result come after it.
PIECES: dict[str, Callable[[Journal], dict[str, Any]]] = {
    **{stage.name: _stage_piece(stage) for stage in STAGES},
    **{f"foreign/{model}": _foreign_piece(model) for model in MODELS},
    "score/demo": _score,
    "costs/demo": _demo_costs,
    "costs/wan": lambda journal: wan_costs(),
}
