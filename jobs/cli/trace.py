"""`longtake trace`: what was computed and what reused in a take, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .said import checked, given_path, say

traces = typer.Typer(help="Look at the decisions of rendered takes.", no_args_is_help=True)


@traces.command("show")
def show_trace(
    trace: Annotated[Path, typer.Argument(help="a take's folder, or its trace.json")],
    png: Annotated[Path | None, typer.Option(help="draw it as well, here")] = None,
) -> None:
    """Which steps were computed (#), in part (~) or reused (.), by segment, branch and site."""
    from ...files import check_target
    from ..show.decisions import show

    loaded, picture = checked(_load_trace, trace), None if png is None else given_path(png)
    if picture is not None:
        checked(check_target, picture, "--png", ".png", ".jpg", ".jpeg")
    for line in show(loaded):
        say(line)
    if picture is not None:
        loaded.plot(picture)


@traces.command("diff")
def diff_traces(
    a: Annotated[Path, typer.Argument(help="a take's folder, or its trace.json")], b: Annotated[Path, typer.Argument(help="the other one")]
) -> None:
    """The first decision in which two takes differ; exit code 1 if there is one."""
    from ..show.decisions import diff

    line = diff(checked(_load_trace, a), checked(_load_trace, b))
    say(line)
    raise typer.Exit(0 if line.startswith("equal") else 1)


def _load_trace(path: Path) -> Any:
    from ...cache import Trace

    path = given_path(path)
    if (path / "manifest.json").is_file() and not (path / "trace.json").is_file():
        raise ValueError(f"The take in '{path}' was rendered without a cache, so there are no decisions to look at.")
    return Trace.load(path / "trace.json" if path.is_dir() else path)
