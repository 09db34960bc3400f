"""The command line. Bad input: one message and exit code 2; a failed job: 1; a stopped one: 130.

Verbs import what they need when they run: a list or a refusal must not wait for torch.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from ...pipeline.versions import package_versions
from .calibrate import calibrate
from .compare import compare
from .doctor import doctor
from .new import new
from .recipes import recipes
from .render import render
from .report import report
from .said import say
from .trace import traces
from .tune import tune

app = typer.Typer(name="longtake", help="Render long video clips with diffusion transformers on Ray clusters.", no_args_is_help=True)
for verb in (render, new, report, compare, recipes, calibrate, tune, doctor):
    app.command()(verb)
app.add_typer(traces, name="trace")


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"longtake {package_versions(['longtake'])['longtake']}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="show the version and end", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Render long video clips with diffusion transformers on Ray clusters."""


def main() -> None:
    if isinstance(sys.stdout, TextIOWrapper):  # a path or a prompt that the terminal cannot show ends no job
        sys.stdout.reconfigure(errors="backslashreplace")
    app()
