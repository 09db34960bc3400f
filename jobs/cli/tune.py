"""`longtake tune`: the recipe that serves a job best, found by trying."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .said import checked, given_path, say, stoppable


@stoppable("nothing is written")
def tune(
    job: Annotated[str, typer.Argument(help="the job's YAML file")],
    psnr: Annotated[
        float | None, typer.Option(help="find the fastest recipe whose film has at least this PSNR in dB against the film without a cache")
    ] = None,
    speedup: Annotated[float | None, typer.Option(help="find the best recipe that is at least so many times as fast")] = None,
    take: Annotated[str | None, typer.Option(help="the take to try recipes on; the first one if left out")] = None,
    recipe: Annotated[list[str] | None, typer.Option(help="a candidate, name or YAML path; repeat for several; else all shipped ones")] = None,
    trials: Annotated[int, typer.Option(help="settings to try of a recipe", min=1)] = 4,
    out: Annotated[Path | None, typer.Option(help="the recipe to write; tuned.yaml beside the job if left out")] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite an earlier one")] = False,
) -> None:
    """Search recipes and their thresholds on a short proxy of a job; write the best as a recipe, with a picture of all that was tried."""
    from ...pipeline.tuning.search import Goal
    from ..tune import plan_tuning, run_tuning

    goal = checked(Goal, psnr, speedup)
    names, target = [_recipe(one) for one in recipe or []], None if out is None else given_path(out)
    tuning = checked(plan_tuning, job, goal, take=take, recipes=names, out=target, force=force)
    is_reached = checked(run_tuning, tuning, trials, say)
    raise typer.Exit(0 if is_reached else 1)


def _recipe(name: str) -> str:
    """A recipe's name, or its path with `~` and environment variables filled in."""
    return str(given_path(Path(name))) if name.endswith((".yaml", ".yml")) else name
