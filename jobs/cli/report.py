"""`longtake report`: the page of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .said import checked, complain, given_path, say


def report(
    folder: Annotated[Path, typer.Argument(help="a job's output folder")],
) -> None:
    """Make a job's page, report/index.html in its folder, and print its path; a job that renders keeps it up to date by itself."""
    from ..report.reading import check_job_folder
    from ..report.write import write_report

    output = given_path(folder)
    checked(check_job_folder, output)
    try:
        say(str(write_report(output)))
    except OSError as error:
        complain("failed", f"The page of '{output}' cannot be written ({error}).")
        raise typer.Exit(1) from None
