"""The command `longtake tune`: what is to be searched, checked before anything is loaded; what was found, as a recipe and a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from ..cache import Recipe, load_recipe
from ..cache.recipe.calibration import Calibration
from ..cache.recipe.config import suggestion
from ..cache.recipe.knobs import describe_knobs
from ..cache.recipe.read import recipe_names
from ..files import check_target, write_atomic
from ..parallel.groups.degrees import Degrees
from ..pipeline.options import ModelOptions
from ..pipeline.recipes.check import check_recipe
from ..pipeline.recipes.choose import find_recipe
from ..pipeline.take import Take
from ..pipeline.tuning.search import Goal, Trial, confirm, search
from .settings.config import CacheConfig, expanded, load_job
from .settings.plan import Plan
from .settings.planning import plan_job

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuning:
    """A search that passed every check. job: the path of its YAML. skipped: why shipped recipes are no candidates, a line each."""

    job: str
    plan: Plan
    proxy: Take
    device: str
    goal: Goal
    candidates: tuple[Recipe, ...]
    skipped: tuple[str, ...]
    out: Path

    @property
    def picture(self) -> Path:
        return self.out.with_suffix(".png")

    def __str__(self) -> str:
        take = self.proxy
        clip = f"{take.num_frames} frame(s), {take.width}x{take.height}, {take.num_inference_steps} steps, guidance {take.guidance_scale:g}"
        return f"the start of take '{take.name}' ({clip}, seed {take.seed}) on one rank, {self.device}"


def plan_tuning(job: str, goal: Goal, *, take: str | None, recipes: Sequence[str], out: Path | None, force: bool) -> Tuning:
    """Raises ValueError with the value and the mend. take: its name, the first one if None. recipes: the candidates, all shipped if empty."""
    config = load_job(job)
    cache = CacheConfig("none", dtype=config.cache.dtype, budget_gb=config.cache.budget_gb, over_budget=config.cache.over_budget)
    plan = plan_job(replace(config, cache=cache))
    names = [planned.take.name for planned in plan.takes]
    if take is not None and take not in names:
        raise ValueError(f"The job has no take '{take}'. {suggestion(take, names)}")
    proxy = plan.takes[names.index(take) if take else 0].take.proxy(plan.card)
    target = out or Path(expanded(job, "The job file")).parent / "tuned.yaml"
    _check_target(target, force)
    candidates, skipped = _candidates(plan, recipes)
    return Tuning(job, plan, proxy, _device(plan.job.device), goal, tuple(candidates), tuple(skipped), target)


def _check_target(out: Path, force: bool) -> None:
    check_target(out, "--out", ".yaml", ".yml")
    there = [str(path) for path in (out, out.with_suffix(".png")) if path.exists()]
    if there and not force:
        raise ValueError(f"{' and '.join(there)} would be overwritten; give another --out, or --force.")


def _candidates(plan: Plan, names: Sequence[str]) -> tuple[list[Recipe], list[str]]:
    """The recipes that the job could use, and why it could not use the others. Raises ValueError if it cannot use one that was asked for."""
    fitting, skipped = [], []
    for name in dict.fromkeys(names or recipe_names()):
        try:
            fitting.append(_fitted(name, plan))
        except ValueError as error:
            if names:
                raise
            skipped.append(str(error))
    if not fitting:
        raise ValueError(f"No recipe works on this job: {skipped[0]}")
    return fitting, skipped


def _fitted(name: str, plan: Plan) -> Recipe:
    """The recipe with its numbers. Raises ValueError if it does not work on one of the job's takes, or would hold more than the job's budget on
    a rank of its gang; where the gang is chosen later, on one rank, as it is tried here.
    """
    degrees = plan.degrees or Degrees()
    first = plan.takes[0].take
    fitted = find_recipe(name, plan.card, first.num_inference_steps, dtype=plan.job.cache.dtype, scheduler=first.scheduler)
    if load_recipe(name).calibrated and fitted.calibration is None:  # its numbers were published for this model: bind it to this one
        fitted = replace(fitted, calibration=Calibration(plan.model))
    for planned in plan.takes:
        check_recipe(fitted, plan.card, planned.take, plan.model, degrees)
        replace(plan, recipe=fitted).choose_place(planned.take, degrees)
    return fitted


def _device(wanted: str) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but this machine offers none; run `longtake tune` where one is, or set device: cpu.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def run_tuning(tuning: Tuning, num_trials: int, say: Say) -> bool:
    """Search, and write the recipe and the picture; False, with nothing written, if no trial reaches the goal."""
    from ..pipeline.loop.render import Renderer
    from ..pipeline.tuning.proxy import ProxyBench

    for reason in tuning.skipped:
        say(f"skipped: {reason}")
    say(f"proxy: {tuning}; {len(tuning.candidates)} recipe(s), at most {num_trials} trial(s) each")
    options: ModelOptions = replace(tuning.plan.model_options, shard="none")  # there is no gang to share the weights with
    bench = ProxyBench(Renderer(tuning.plan.card, options, device=tuning.device), tuning.proxy)
    say(f"without a cache: {bench.seconds:.2f} s")
    trials = []
    for trial in search(tuning.candidates, bench.measure, tuning.goal, num_trials):
        trials.append(trial)
        say(_line(trial, tuning.goal))
    if any(map(tuning.goal.is_reached, trials)):
        say("timing the best again")
    best = confirm(trials, bench.measure, tuning.goal)
    if best is None:
        reusing = [trial for trial in trials if trial.computed < 1] or trials
        nearest = max(reusing, key=tuning.goal.held)
        say(f"nothing tried reaches {tuning.goal} and saves time; the nearest: {_named(nearest.recipe)}, {nearest}")
        return False
    found = replace(best.recipe, name=f"{best.recipe.name.removesuffix('-tuned')}-tuned")
    write_atomic(tuning.picture, _picture(trials, best, tuning))
    write_atomic(tuning.out, _written(found, best, tuning))
    say(f"{tuning.out}: {_named(found)}, {best}; all trials in {tuning.picture}")
    say(f"use it: longtake render {tuning.job} cache={tuning.out}")
    return True


def _named(recipe: Recipe) -> str:
    knobs = describe_knobs(recipe)
    return f"{recipe.name} ({knobs})" if knobs else recipe.name


def _line(trial: Trial, goal: Goal) -> str:
    mark = "+" if goal.is_reached(trial) else " "
    return f"{mark} {_named(trial.recipe):44} {trial.psnr:6.2f} dB {trial.speedup:5.2f}x {trial.computed:4.0%} computed"


def _written(recipe: Recipe, best: Trial, tuning: Tuning) -> str:
    """The recipe as YAML, under what was measured of it."""
    about = (
        f"Found by `longtake tune` on {datetime.now(UTC).date().isoformat()} for {tuning.goal} or more: {best}.",
        f"Measured on {tuning}, against the same without a cache.",
    )
    return "".join(f"# {line}\n" for line in about) + yaml.safe_dump(recipe.to_dict(), sort_keys=False, width=120)


def _picture(trials: Sequence[Trial], best: Trial, tuning: Tuning) -> bytes:
    """PNG: PSNR against speed-up of all trials, a line a recipe, with the goal and the best one."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots()
    top = max((trial.psnr for trial in trials if trial.psnr < float("inf")), default=100.0) + 1
    shown = [replace(trial, psnr=min(trial.psnr, top)) for trial in trials]  # PSNR is infinite where nothing was reused
    colours, markers = cycle(colormaps["tab20"](range(20))), cycle("osD^v<>")
    for name in dict.fromkeys(trial.recipe.name for trial in trials):
        tried = sorted((trial for trial in shown if trial.recipe.name == name), key=lambda trial: trial.psnr)
        points = [trial.speedup for trial in tried], [trial.psnr for trial in tried]
        axes.plot(*points, marker=next(markers), color=next(colours), markersize=5, linewidth=1, label=name)
    star: dict[str, Any] = {"marker": "*", "markersize": 15, "color": "gold", "markeredgecolor": "black", "linestyle": "none", "zorder": 3}
    axes.plot([best.speedup], [min(best.psnr, top)], label=f"best: {_named(best.recipe)}", **star)
    line: dict[str, Any] = {"color": "0.3", "linestyle": "--", "label": f"goal: {tuning.goal}"}
    if tuning.goal.psnr is not None:
        axes.axhline(tuning.goal.psnr, **line)
    if tuning.goal.speedup is not None:
        axes.axvline(tuning.goal.speedup, **line)
    axes.set(xlabel="speed-up of denoising", ylabel="PSNR against no cache, dB", title=f"{tuning.job}: {tuning}")
    axes.title.set_fontsize("small")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
