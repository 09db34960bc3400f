"""`longtake calibrate`: numbers of a model, measured for a recipe that needs them, or the sigmas of a schedule."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from .said import checked, given_path, say, stoppable

if TYPE_CHECKING:
    from ...cache import Recipe
    from ...pipeline.checkpoint.card import ModelCard
    from ...pipeline.take import TimelineSettings

_RECIPES = "ertacache, lemica, magcache, meancache, planned, ra_cfgcache, smoothcache or teacache; or schedule"
_TIMELINE = "plan on windows, bands or a rollout as a job says it, 'rollout' or '{name: rollout, overlap: 12}', not on clips (planned, schedule)"
_WORTH_SAYING = 150  # characters of a setting that is printed; longer ones (numbers of every step) are in the file alone


@stoppable("nothing is written")
def calibrate(  # noqa: PLR0913, PLR0917 - options of a command
    model: Annotated[str, typer.Argument(help="'demo', or a checkpoint folder")],
    out: Annotated[Path | None, typer.Option(help="the file to write (YAML); in the model's folder, where jobs find it, if left out")] = None,
    recipe: Annotated[str, typer.Option(help=_RECIPES)] = "planned",
    steps: Annotated[int, typer.Option(help="denoising steps of the takes that are measured", min=3)] = 50,
    computed: Annotated[
        int | None, typer.Option(help="how many of them to compute (planned, lemica, meancache, schedule), two in five if left out")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="error to allow (smoothcache: alpha, ertacache: lambda)")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="what to render for measuring; repeat for several takes")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="of the takes that will use it, the model's usual one if left out")] = None,
    flow_shift: Annotated[float | None, typer.Option(help="of the takes that will use it, the model's own if left out")] = None,
    scheduler: Annotated[str | None, typer.Option(help="their sampler: euler, unipc or dpm++, the model's own if left out")] = None,
    noise: Annotated[str, typer.Option(help="frame: drawn as jobs draw it; diffusers: as stock pipelines do")] = "frame",
    timeline: Annotated[str | None, typer.Option(help=_TIMELINE)] = None,
) -> None:
    """Measure a model on a few takes without a cache, and write a recipe with its numbers, or a schedule."""
    from ...pipeline.checkpoint.card import read_card
    from ...pipeline.recipes.choose import numbers_path
    from ...pipeline.recipes.schedules import schedule_path

    card = checked(read_card, str(given_path(Path(model))))

    from ...pipeline.calibration import calibrate as calibration  # torch and diffusers, for checkpoints that can be calibrated
    from ...pipeline.calibration import schedule as scheduling

    shown = checked(_read_timeline, timeline, recipe, out, card) if timeline else None
    scale = card.guidance_scale if guidance_scale is None else guidance_scale
    takes = calibration.calibration_takes(card, prompt or [], steps, scale, flow_shift, scheduler, noise, shown)
    if recipe == "schedule":
        usual = schedule_path(card, scheduler, checked(scheduling.check_schedule, card, takes, computed=computed, threshold=threshold))
    else:
        method, *_ = checked(calibration.check_calibration, recipe, card, takes, computed=computed, threshold=threshold)
        usual = numbers_path(card, recipe, 0 if method.any_steps else steps, scheduler)
    target = given_path(out) if out else usual
    checked(_check_target, target, "schedule" if recipe == "schedule" else "cache.recipe", make=out is None)

    from ...files import write_atomic
    from ...pipeline.loop.render import Renderer

    if recipe not in ("planned", "schedule"):  # which say so themselves
        say(f"rendering {len(takes)} full take(s) of {steps} steps to measure '{model}'")
    log = logging.getLogger("longtake.pipeline.calibration")
    log.setLevel(logging.INFO)
    log.handlers[:] = [_Said()]
    renderer = checked(Renderer, card, device=_device())
    if recipe == "schedule":
        planned = checked(scheduling.plan_schedule, renderer, takes, computed=computed)
        write_atomic(target, planned.to_yaml())
        say(f"{target}: {planned.scheduler} in {planned.num_steps} steps, at sigmas {' '.join(f'{sigma:.4g}' for sigma in planned.sigmas)}")
        return
    made = checked(calibration.calibrate, recipe, renderer, takes, computed=computed, threshold=threshold)
    write_atomic(target, yaml.safe_dump(made.to_dict(), sort_keys=False))
    _say_parts(target, made)


def _read_timeline(written: str, recipe: str, out: Path | None, card: ModelCard) -> TimelineSettings:
    """Raises ValueError, with the mend, for what jobs would not take, and where the numbers would pass for those of the model's clips."""
    from ...cache.recipe.config import read_config
    from ..settings.config import TimelineConfig, resolve_timeline

    if recipe not in ("planned", "schedule"):
        raise ValueError(f"--timeline is for planned and schedule, not for {recipe}; leave it out.")
    if out is None:
        raise ValueError("Numbers for one timeline are not found by themselves; give --out, and that file as cache.recipe or schedule of the job.")
    try:
        given = yaml.safe_load(written)
    except yaml.YAMLError:
        given = None
    if not isinstance(given, str | dict):
        raise ValueError(f"--timeline is {written}; write a name, or settings as {{name: rollout, overlap: 12}}.")
    config = read_config(TimelineConfig, {"name": given} if isinstance(given, str) else given, "--timeline")
    shown = resolve_timeline(config, card, "calibration")
    if shown.shift != "none":
        raise ValueError(f"--timeline has shift={shown.shift}, for which no plans are made; leave it out: one for windows that stay serves both.")
    return shown


class _Said(logging.Handler):
    """Prints what calibrations log of their work."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def _say_parts(target: Path, made: Recipe) -> None:
    for part in made.parts:
        settings = ", ".join(f"{name}={value}" for name, value in vars(part.trigger.config).items() if len(str(value)) <= _WORTH_SAYING)
        say(f"{target}: {made.name}, {part.site.name}: {part.trigger.name}({settings})")


def _check_target(out: Path, setting: str, *, make: bool) -> None:
    """setting: of a job, which names the file where it lies elsewhere. make: whether to make the folder if it is not there."""
    from ...files import check_target

    try:
        if make:
            out.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot write beside the model ({error}); give --out, and that file as {setting}.") from None
    check_target(out, "--out", ".yaml", ".yml")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
