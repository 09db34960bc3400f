"""What a job's folder tells: its events, and each take's manifest and files. Knows nothing of how it is shown.

Reads while others write: a last line that is half written, and kinds of events that this version does not know, are left out.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from .. import events as kinds
from ..events import Event, JobState, TakeState
from ..folder.journal import JOURNAL
from ..folder.manifest import Manifest, read_manifest

_MANIFEST = "manifest.json"
_BY_NAME = {
    re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower(): kind
    for name, kind in vars(kinds).items()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
}
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "list[str]": list,
    "list[int]": list,
    "dict[str, int]": dict,
    "dict[str, Any]": dict,
}
_FIELDS = {kind: {one.name for one in fields(kind)} for kind in _BY_NAME.values()}


_PROGRESS = re.compile(rb'{"event": ("stepped"|"decoded"), "time": "[^"]*", ("job": "[^"]*", "take": "[^"]*")')


def read_events(path: Path) -> list[Event]:
    """The events of a job's folder in the order of writing; none where there is no such file. Lines that cannot be read are left out, and
    so are all steps and all decoded frames of a take in a run but the last: a run of a day writes tens of thousands.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    newest_first: list[Event] = []
    told: set[tuple[bytes, ...]] = set()
    for line in reversed(lines):
        progress = _PROGRESS.match(line)
        if progress and progress.groups() in told:
            continue
        event = _event(line)
        if event is not None:
            newest_first.append(event)
            told |= {progress.groups()} if progress else set()
    return newest_first[::-1]


def _event(line: bytes) -> Event | None:
    try:
        values = json.loads(line)
        kind = _BY_NAME[values.pop("event")]
        known = {name: value for name, value in values.items() if name in _FIELDS[kind]}
        return kind(**{**known, **_typed(kind, known)})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _typed(kind: type[Event], values: dict[str, Any]) -> dict[str, Any]:
    """The values that JSON has no types for. Raises ValueError for what is not a time or a state, and where another value has another type
    than the event's.
    """
    for one in fields(kind):
        wanted = _JSON_TYPES.get(str(one.type))
        if wanted and one.name in values and not isinstance(values[one.name], wanted):
            raise ValueError(f"{one.name} is no {one.type}")
    typed: dict[str, Any] = {"time": datetime.fromisoformat(values["time"])}
    if typed["time"].tzinfo is None:
        raise ValueError("a time without a zone cannot be compared")
    if kind is kinds.TakeChanged:
        typed["state"] = TakeState(values["state"])
    if kind is kinds.JobEnded:
        typed["state"] = JobState(values["state"])
    return typed


@dataclass(frozen=True)
class TakeFolder:
    """What lies in a take's folder. manifest: None while there is none. unreadable: why the manifest or the folder cannot be read, else empty.
    files: times of change, in ns, by name. earlier: names of the folders that hold the take's earlier films, moved aside.
    """

    manifest: Manifest | None
    unreadable: str
    files: dict[str, int]
    earlier: tuple[str, ...] = ()


def read_folders(output: Path) -> dict[str, TakeFolder]:
    """Every folder that is a take's or may become one, by the take's name, in the order of names."""
    names = sorted(entry.name for entry in os.scandir(output) if Path(entry).is_dir() and not entry.name.startswith("."))
    aside: dict[str, list[str]] = {}
    for name in names:
        if "@" in name and (output / name / "film.mp4").is_file():
            aside.setdefault(name.partition("@")[0], []).append(name)
    return {name: _folder(output / name, tuple(aside.get(name, ()))) for name in names if "@" not in name}


def _folder(path: Path, earlier: tuple[str, ...]) -> TakeFolder:
    try:
        files = {entry.name: entry.stat().st_mtime_ns for entry in os.scandir(path) if entry.is_file() and not entry.name.startswith(".")}
        return TakeFolder(read_manifest(path) if _MANIFEST in files else None, "", files, earlier)
    except ValueError as error:
        return TakeFolder(None, str(error), files, earlier)
    except OSError as error:  # moved aside or removed since the folders were listed
        return TakeFolder(None, f"'{path}' cannot be read ({error.strerror}).", {}, earlier)


def check_job_folder(output: Path) -> None:
    """Raise ValueError, with the mend, for a folder that no job has written into."""
    if not output.is_dir():
        raise ValueError(f"There is no folder '{output}'; give the one that the job names as `output`.")
    if (output / JOURNAL).is_file() or next(output.glob(f"*/{_MANIFEST}"), None) is not None:
        return
    if (output / _MANIFEST).is_file():
        raise ValueError(f"'{output}' is the folder of one take; give the job's, '{output.absolute().parent}'.")
    raise ValueError(f"'{output}' is no job's folder (it holds neither {JOURNAL} nor a take); give the one that the job names as `output`.")
