"""Jobs' folders as a page finds them: events, and takes with manifests and films."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from longtake.jobs.events import Event, JobStarted, TakeChanged, TakeState
from longtake.jobs.folder.journal import JOURNAL, Journal
from longtake.jobs.folder.manifest import Manifest
from longtake.jobs.report.page import Page, page_of
from longtake.jobs.report.reading import read_events, read_folders
from longtake.pipeline.film.checks.figures import Checks
from longtake.pipeline.film.checks.film import FilmChecks
from longtake.pipeline.film.checks.film import Plan as ChecksPlan
from longtake.pipeline.film.stills import ContactSheet
from longtake.pipeline.film.write import FilmWriter
from PIL import Image

BEGAN = datetime(2026, 11, 26, 5, tzinfo=UTC)
HTML = "<script>document.title = 'owned'</script><img src=x onerror=alert(1)> {{ 7 * 7 }} & \"quotes\""
LONG = "moths around a lamp in a glasshouse at night, " * 20
NAMES = ["harbour", "html", "glasshouse", "tram", "eclipse", "ships", "closing", "a" * 100]
SETTINGS = {"model": {"path": "/models/wan"}, "cache": {"recipe": "teacache"}, "fps": "8"}


def minute(number: float) -> datetime:
    return BEGAN + timedelta(minutes=number)


def take(name: str) -> dict[str, Any]:
    prompts = [{"frame": 0, "text": {"html": HTML, "glasshouse": LONG}.get(name, f"a film of {name}")}]
    return {"name": name, "prompts": prompts, "seed": 3, "num_frames": 16, "width": 64, "height": 48, "num_inference_steps": 50}


def started(job: str, names: list[str], at: float = 0) -> JobStarted:
    config = {**SETTINGS, "takes": [take(name) for name in names]}
    return JobStarted(job=job, time=minute(at), longtake="0.1.0", model="/models/wan", output="/renders", takes=names, config=config)


def changed(job: str, name: str, state: TakeState, at: float, cause: str = "") -> TakeChanged:
    return TakeChanged(job=job, take=name, state=state, time=minute(at), cause=cause)


@cache
def checks() -> Checks:
    """Of a film that grows darker, and jumps where two chunks are joined."""
    frames = np.random.default_rng(0).integers(118, 124, (96, 48, 64, 3)) - np.linspace(0, 12, 96)[:, None, None, None]
    frames[49:, :20] = 220
    told = FilmChecks(ChecksPlan(96, Fraction(8), first=24, stride=4, joins=(25, 49, 73)))
    told.add(torch.from_numpy(frames.round().astype(np.uint8)))
    return told.result()


def deliver(folder: Path, finished: datetime = BEGAN, *, with_film: bool = True, **changes: Any) -> None:
    """A take's folder as the driver leaves it."""
    folder.mkdir(exist_ok=True)
    if with_film:
        frames = np.random.default_rng(0).integers(0, 255, (16, 48, 64, 3), np.uint8)
        frames[:, :, 20:40] = np.arange(16, dtype=np.uint8)[:, None, None, None] * 16
        with FilmWriter(folder / "film.mp4", width=64, height=48, fps=8) as film:
            film.write(frames)
        sheet = ContactSheet(16)
        sheet.add(frames)
        sheet.save(folder / "contact_sheet.jpg")
        sheet.thumbnail(folder / "thumbnail.jpg")
        Image.new("RGB", (400, 32), "white").save(folder / "decisions.png")
    name = folder.name.partition("@")[0]
    values: dict[str, Any] = {"state": "done", "checks": checks(), **changes}
    Manifest(
        take=name,
        film_key="8f" * 32,
        seed=3,
        config={**SETTINGS, "take": take(name)},
        recipe=None,
        ranks=2,
        threads=4,
        device="cpu",
        versions={"longtake": "0.1.0"},
        seconds={"load": 4.0, "encode": 0.5, "denoise": 8.0, "decode": 1.0, "write": 0.5, "take": 10.2},
        decisions={"compute": 40, "partial": 10, "reuse": 50},
        speedup=2.25,
        cache_bytes=0,
        peak_memory_bytes=0,
        finished=finished.isoformat(timespec="seconds"),
        **values,
    ).write(folder)


def record(output: Path, *events: Event) -> None:
    for event in events:
        with Journal(output) as journal:  # anew for each, as it leaves out steps that follow too soon
            journal.append(event)


def page_in(output: Path) -> Page:
    return page_of(output, read_events(output / JOURNAL), read_folders(output), BEGAN)


def standings(output: Path) -> dict[str, str]:
    return {one.name: one.standing.value for one in page_in(output).takes}
