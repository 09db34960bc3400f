"""`longtake doctor`: what this machine offers, and what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .said import console, given_path, stoppable


def doctor(
    ranks: Annotated[int, typer.Option(help="how many ranks to measure the links between", min=1)] = 2,
    folder: Annotated[Path, typer.Option(help="where films are to be written")] = Path(),
) -> None:
    """What this machine and its cluster offer, what is missing and the mend; exit code 1 if something is."""
    from ..doctor import examine

    shown, is_well = console(), True
    with stoppable("not everything was looked at"):
        for finding in examine(ranks, given_path(folder)):
            mark = ("ok  ", "green") if finding.mend is None else ("mend", "red")
            told = f": {finding.value}{'' if finding.mend is None else f' -> {finding.mend}'}"
            shown.print(Text.assemble(mark, " ", (finding.name, "bold"), told))
            is_well = is_well and finding.mend is None
    raise typer.Exit(0 if is_well else 1)
