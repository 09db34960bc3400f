"""What the page shows, as plain data. Pure: events and folders in, words and numbers out, which the templates lay out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..events import Decoded, Event, Stepped
from .checks import ShownChecks, shown_checks
from .history import Run, Standing, TakeHistory, current_run, runs_of, takes_of
from .reading import TakeFolder

STAGES = ("encode", "denoise", "decode", "write")  # of a take; the model is loaded once for all takes of a run
_OLD_NAMES = {"denoise": "denoising", "decode": "decoding", "load": "loading"}  # of manifests from before stages had the names above


@dataclass(frozen=True)
class Prompt:
    """frame: the first one that it holds for."""

    frame: int
    text: str


@dataclass(frozen=True)
class Stage:
    """share: percent of the take's own stages together; None for loading the model, which is not the take's alone."""

    name: str
    seconds: float
    share: float | None


@dataclass(frozen=True)
class Progress:
    text: str
    value: int
    of: int


@dataclass(frozen=True)
class Decisions:
    """How many calls of the model were decided which way, and what that saved, where it was measured."""

    counts: Mapping[str, int]
    speedup: float | None

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def percent(self, kind: str) -> float:
        return 100 * self.counts.get(kind, 0) / self.total

    @property
    def text(self) -> str:
        words = {"compute": "computed", "partial": "computed in part", "reuse": "reused"}
        return ", ".join(f"{count} {words.get(kind, kind)}" for kind, count in self.counts.items())


@dataclass(frozen=True)
class Shown:
    """A take as the page shows it. All links are relative to the page; empty where there is no such file. path: of the film, absolute.
    width, height: in pixels, 0 where they are not known. seconds: of the whole take.
    """

    name: str
    standing: Standing
    cause: str
    prompts: tuple[Prompt, ...]
    facts: tuple[tuple[str, str], ...]
    width: int
    height: int
    progress: Progress | None
    film: str
    path: str
    thumbnail: str
    sheet: str
    preview: str
    growing: str
    picture: str
    manifest: str
    decisions: Decisions | None
    checks: ShownChecks | None
    stages: tuple[Stage, ...]
    seconds: float | None
    config: str
    earlier: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Page:
    """A job's page. title: the folder's name. run: the one that the page is about; None where only versions that wrote no events rendered here."""

    title: str
    folder: str
    standing: Standing
    run: Run | None
    seconds: float | None
    machine: str
    model: str
    longtake: str
    config: str
    takes: tuple[Shown, ...]
    runs: tuple[Run, ...]
    written: datetime

    @property
    def counts(self) -> dict[Standing, int]:
        """How many takes there are of each standing, the most important first; without those of which there are none."""
        found = [take.standing for take in self.takes]
        return {standing: found.count(standing) for standing in _ORDER if standing in found}

    @property
    def marked(self) -> list[Shown]:
        """The takes that are done and passed a limit of the checks."""
        return [take for take in self.those(Standing.DONE) if take.checks and take.checks.marks]

    def those(self, *standings: Standing) -> list[Shown]:
        return [take for take in self.takes if take.standing in standings]


_ORDER = (Standing.RUNNING, Standing.FAILED, Standing.STOPPED, Standing.WAITING, Standing.DONE)


def page_of(output: Path, events: Sequence[Event], folders: Mapping[str, TakeFolder], written: datetime) -> Page:
    """output: the job's folder, absolute."""
    runs = runs_of(events)
    histories = takes_of(events, runs)
    run = current_run(runs)
    takes = tuple(_take(output, name, folders.get(name), histories.get(name), runs) for name in _names(run, runs, histories, folders))
    manifests = [folder.manifest for folder in folders.values() if folder.manifest]
    newest = max(manifests, key=lambda one: one.finished, default=None)
    started = run.started if run else None
    return Page(
        title=output.name,
        folder=str(output),
        standing=run.standing if run else Standing.DONE,
        run=run,
        seconds=(run.last - run.began).total_seconds() if run else None,
        machine=_machine(run) or (_shape(newest.device, newest.ranks, "", str(newest.threads)) if newest else ""),
        model=started.model if started else _model(newest.config) if newest else "",
        longtake=started.longtake if started else newest.versions.get("longtake", "") if newest else "",
        config=_lines(_shared(started.config)) if started else "",
        takes=takes,
        runs=tuple(reversed(runs)),
        written=written,
    )


def _model(config: Mapping[str, Any]) -> str:
    """The model's path in a manifest's config, where earlier versions had it as a text."""
    model = config.get("model", "")
    return str(model.get("path", "")) if isinstance(model, Mapping) else str(model)


def _machine(run: Run | None) -> str:
    if run is None or run.gang is None:
        return ""
    gang = run.gang
    degrees = ", ".join(f"{name.removesuffix('_degree')} {degree}" for name, degree in gang.degrees.items() if degree > 1)
    return _shape(gang.device, gang.num_ranks, degrees, " or ".join(map(str, sorted(set(gang.threads)))))


def _shape(device: str, num_ranks: int, degrees: str, threads: str) -> str:
    ranks = f"{num_ranks} rank{'' if num_ranks == 1 else 's'}{f' ({degrees})' if degrees else ''}"
    return f"{device}, {ranks}, {threads} CPU thread{'' if threads == '1' else 's'} a rank"


def _names(run: Run | None, runs: Sequence[Run], histories: Mapping[str, TakeHistory], folders: Mapping[str, TakeFolder]) -> list[str]:
    """Names of all takes: the current run's in its order, those of other runs that go on, and what else was begun or lies in the folder. What
    only an earlier run names, and never began, is wanted no more.
    """
    told = [name for one in (run, *reversed(runs)) if one and (one is run or one.is_going_on) for name in one.takes]
    begun = [name for name, history in histories.items() if history.standing not in (Standing.WAITING, Standing.DONE)]
    lying = [name for name, folder in folders.items() if folder.manifest or folder.unreadable]
    return list(dict.fromkeys([*told, *begun, *lying]))


def _take(output: Path, name: str, folder: TakeFolder | None, history: TakeHistory | None, runs: Sequence[Run]) -> Shown:
    folder = folder or TakeFolder(None, "", {})
    manifest = folder.manifest
    standing, cause = _standing(folder, history)
    config = manifest.config if manifest else _job_config(name, runs)
    take = config.get("take", {})
    decisions = Decisions(manifest.decisions, manifest.speedup) if manifest and any(manifest.decisions.values()) else None
    progress = history.progress if history and standing is Standing.RUNNING else None
    if progress is not None and isinstance(progress, Stepped) and any(progress.decisions.values()):
        decisions = Decisions(progress.decisions, None)

    def link(file: str) -> str:
        return f"{quote(f'../{name}/{file}')}?{folder.files[file]}" if file in folder.files else ""

    film = link("film.mp4")
    return Shown(
        name=name,
        standing=standing,
        cause=cause,
        prompts=tuple(Prompt(one["frame"], one["text"]) for one in take.get("prompts", ())),
        facts=tuple(_facts(take, config.get("fps"))),
        width=take.get("width", 0),
        height=take.get("height", 0),
        progress=_progress(progress),
        film=film,
        path=str(output / name / "film.mp4") if film else "",
        thumbnail=link("thumbnail.jpg"),
        sheet=link("contact_sheet.jpg"),
        preview="" if film else link("preview.jpg"),
        growing="" if film else link("film.partial.mp4"),
        picture=link("decisions.png"),
        manifest=link("manifest.json") if manifest else "",
        decisions=decisions,
        checks=shown_checks(manifest.checks, float(Fraction(config.get("fps", "1")))) if manifest and manifest.checks else None,
        stages=tuple(_stages(manifest.seconds)) if manifest else (),
        seconds=manifest.seconds.get("take") if manifest else None,
        config=_lines(config),
        earlier=tuple((one, quote(f"../{one}/film.mp4")) for one in folder.earlier),
    )


def _standing(folder: TakeFolder, history: TakeHistory | None) -> tuple[Standing, str]:
    if folder.unreadable:
        return Standing.FAILED, folder.unreadable
    ended = (Standing.FAILED if folder.manifest.why_stopped else Standing.DONE, folder.manifest.why_stopped) if folder.manifest else None
    if history is None:
        return ended or (Standing.WAITING, "")
    if history.standing is Standing.STOPPED and folder.manifest and ended and _is_since(folder.manifest.finished, history.since):
        return ended  # the job was killed between the manifest and the event that tells of it
    return history.standing, history.cause


def _is_since(finished: str, since: datetime) -> bool:
    """Whether a manifest's time is that moment or a later one; earlier versions wrote whole seconds."""
    try:
        time = datetime.fromisoformat(finished)
    except ValueError:
        return False
    return time.tzinfo is not None and time >= since.replace(microsecond=0)


def _job_config(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The take's resolved config in the newest run that names it, in the form that manifests have; empty where no run does."""
    for run in reversed(runs):
        for take in run.config.get("takes", ()):
            if take.get("name") == name:
                return {**_shared(run.config), "take": take}
    return {}


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "takes"}


def _facts(take: Mapping[str, Any], fps: str | None) -> Iterator[tuple[str, str]]:
    """take: its resolved config, empty where nothing is known of it. fps: frames a second."""
    if not take or fps is None:
        return
    rate = float(Fraction(fps))
    yield "Size", f"{take['width']}x{take['height']}"
    yield "Length", f"{take['num_frames'] / rate:.1f} s"
    yield "Frames", f"{take['num_frames']} at {rate:.5g} a second"
    yield "Steps", str(take["num_inference_steps"])
    yield "Seed", str(take["seed"])
    if film := take.get("continue_from"):
        yield "Goes on from", film["path"]


def _progress(event: Stepped | Decoded | None) -> Progress | None:
    if event is None:
        return None
    if isinstance(event, Stepped):
        return Progress(f"step {event.step} of {event.num_steps}", event.step, event.num_steps)
    return Progress(f"frame {event.frames} of {event.num_frames} written", event.frames, event.num_frames)


def _stages(seconds: Mapping[str, float]) -> Iterator[Stage]:
    known = {name: seconds.get(name, seconds.get(_OLD_NAMES.get(name, name))) for name in ("load", *STAGES)}
    own = sum(known[name] or 0.0 for name in STAGES) or 1.0
    for name, value in known.items():
        if value is not None:
            yield Stage(name, value, None if name == "load" else 100 * value / own)


def _lines(config: Mapping[str, Any], prefix: str = "") -> str:
    """Settings one a line, by the dotted names that change them on the command line."""
    lines = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            lines.append(_lines(value, f"{prefix}{key}."))
        else:
            lines.append(f"{prefix}{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}")
    return "\n".join(lines)
