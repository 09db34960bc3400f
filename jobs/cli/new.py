"""`longtake new`: a job file to begin with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from .said import checked, given_path, say


def new(
    job: Annotated[Path, typer.Argument(help="the YAML file to write")],
    model: Annotated[str, typer.Option(help="'demo', or a checkpoint folder in diffusers' format")] = "demo",
) -> None:
    """Write a job file that renders as it is, with what else can be set in comments."""
    path = given_path(job)
    checked(_write, path, model)
    say(f"{path}: render it with `longtake render {shlex.quote(str(path))}`")


def _write(path: Path, model: str) -> None:
    from ...files import check_target, write_atomic
    from ...pipeline.checkpoint.card import read_card
    from ..settings.config import expanded
    from ..settings.quick import job_file

    check_target(path, "The job file", ".yaml", ".yml")
    if not path.name.isprintable():
        raise ValueError(f"The job file's name is {path.name!r}; give one of letters that can be printed.")
    if path.exists():
        raise ValueError(f"'{path}' is there already; give another name, or remove it.")
    where = expanded(model, "--model")
    card = read_card(where)
    found = "demo" if where == "demo" else str(Path(where).absolute())
    write_atomic(path, job_file(found, card, path.name))
