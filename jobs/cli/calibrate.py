"""`longtake calibrate`: numbers of a model, measured for a recipe that needs them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from .said import checked, given_path, say, stoppable

_WORTH_SAYING = 150  # characters of a setting that is printed; longer ones (numbers of every step) are in the file alone


@stoppable("nothing is written")
def calibrate(  # noqa: PLR0913, PLR0917 - options of a command
    model: Annotated[str, typer.Argument(help="'demo', or a checkpoint folder")],
    out: Annotated[Path | None, typer.Option(help="the recipe to write (YAML); in the model's folder, where jobs find it, if left out")] = None,
    recipe: Annotated[str, typer.Option(help="ertacache, lemica, magcache, meancache, planned, ra_cfgcache, smoothcache or teacache")] = "planned",
    steps: Annotated[int, typer.Option(help="denoising steps of the takes that will use the recipe", min=3)] = 50,
    computed: Annotated[int | None, typer.Option(help="how many of them to compute (planned, lemica, meancache), two in five if left out")] = None,
    threshold: Annotated[float | None, typer.Option(help="error to allow (smoothcache: alpha, ertacache: lambda)")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="what to render for measuring; repeat for several takes")] = None,
    guidance_scale: Annotated[float, typer.Option()] = 5.0,
    flow_shift: Annotated[float | None, typer.Option(help="of the takes that will use the recipe, the model's own if left out")] = None,
) -> None:
    """Measure a model on a few takes without a cache, and write a recipe with its numbers."""
    from ...pipeline.checkpoint.card import read_card
    from ...pipeline.recipes.choose import numbers_path

    card = checked(read_card, str(given_path(Path(model))))

    from ...pipeline.calibration import calibrate as calibration  # torch and diffusers, for checkpoints that can be calibrated

    takes = calibration.calibration_takes(card, prompt or [], steps, guidance_scale, flow_shift)
    method, *_ = checked(calibration.check_calibration, recipe, card, takes, computed=computed, threshold=threshold)
    target = given_path(out) if out else numbers_path(card, recipe, 0 if method.any_steps else steps)
    checked(_check_target, target, make=out is None)

    from ...files import write_atomic
    from ...pipeline.loop.render import Renderer

    say(f"rendering {len(takes)} full take(s) of {steps} steps to measure '{model}'")
    renderer = checked(Renderer, card, device=_device())
    made = checked(calibration.calibrate, recipe, renderer, takes, computed=computed, threshold=threshold)
    write_atomic(target, yaml.safe_dump(made.to_dict(), sort_keys=False))
    for part in made.parts:
        settings = ", ".join(f"{name}={value}" for name, value in vars(part.trigger.config).items() if len(str(value)) <= _WORTH_SAYING)
        say(f"{target}: {made.name}, {part.site.name}: {part.trigger.name}({settings})")


def _check_target(out: Path, *, make: bool) -> None:
    """make: whether to make the folder if it is not there."""
    from ...files import check_target

    try:
        if make:
            out.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"Cannot write beside the model ({error}); give --out, and that file as cache.recipe.") from None
    check_target(out, "--out", ".yaml", ".yml")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
