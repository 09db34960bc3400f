"""Writing the page: one file that needs no network and no server, beside the films that it links to."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...files import write_atomic
from ..folder.journal import JOURNAL
from .checks import HEIGHT, STRIP, WIDTH
from .history import Standing
from .page import page_of
from .reading import read_events, read_folders

FOLDER = "report"  # in a job's folder; no take may have this name


def write_report(output: Path) -> Path:
    """Write `report/index.html` in a job's folder, from what lies there now; returns its path. A reader sees the old page or the new one."""
    output = output.absolute()
    page = page_of(output, read_events(output / JOURNAL), read_folders(output), datetime.now(UTC))
    target = output / FOLDER / "index.html"
    target.parent.mkdir(exist_ok=True)
    text = _templates().get_template("page.html").render(page=page, Standing=Standing)
    write_atomic(target, text.encode(errors="backslashreplace"))  # names of files need not be text
    return target


@cache
def _templates() -> Environment:
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.filters.update(duration=duration, when=when)
    environment.globals.update(WIDTH=WIDTH, HEIGHT=HEIGHT, STRIP=STRIP)
    return environment


def duration(seconds: float) -> str:
    """3.2 s, 4 min 05 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{max(0.0, seconds):.1f} s"  # a clock may have been set back
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def when(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
