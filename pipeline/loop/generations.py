"""Snapshots as numbered generations of files in one folder, of which only whole ones count. Knows files; knows nothing of what is in them.

A generation counts from the moment its index, which lists its files with their sizes and checksums, gets its final name. The generation
before it is kept, so that a damaged file costs some steps and not the take; older ones go once there are two.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ...files import remove, write_atomic

logger = logging.getLogger(__name__)

_KEPT = 2
_OURS = re.compile(r"\.?[a-z]+-(\d{6,})\.")


class SnapshotError(ValueError):
    """A take cannot go on from the snapshots that there are."""


class FileRecord(BaseModel):
    """size: in bytes."""

    model_config = ConfigDict(extra="forbid")

    name: str
    size: int
    sha256: str


class Generation(BaseModel):
    """The index of a generation. round, step: the take's next ones. files: by what they hold."""

    model_config = ConfigDict(extra="forbid")

    schema_version: Literal[1] = 1
    number: int
    film_key: str
    round: int = 0
    step: int
    num_inference_steps: int
    files: dict[str, FileRecord]


def next_number(folder: Path) -> int:
    """One more than any generation that was begun there, finished or not: no file of another one is ever written to."""
    return 1 + max((number for number, _ in _files(folder)), default=0)


def file_name(kind: str, number: int, suffix: str) -> str:
    return f"{kind}-{number:06d}{suffix}"


def publish(folder: Path, number: int, paths: Mapping[str, Path], *, film_key: str, round: int, step: int, num_inference_steps: int) -> None:  # noqa: A002
    """Write the index of a generation whose files are written, by what they hold; then remove all generations but the last two."""
    files = {kind: FileRecord(name=path.name, size=path.stat().st_size, sha256=_checksum(path)) for kind, path in paths.items()}
    index = Generation(number=number, film_key=film_key, round=round, step=step, num_inference_steps=num_inference_steps, files=files)
    write_atomic(folder / file_name("index", number, ".json"), index.model_dump_json(indent=2))
    indices = _indices(folder)
    kept = set(sorted(indices)[-_KEPT:])
    for old in indices.keys() - kept:
        indices[old].unlink()  # first: a generation that loses files must not count any more
    for other, path in _files(folder):
        if other not in kept:
            remove(path)


def last_whole(folder: Path) -> Generation:
    """The newest generation all of whose files are as they were written; where newer ones are damaged, a warning names what they lack.

    Raises SnapshotError, with the mend, if there is none.
    """
    damages = []
    for number, path in sorted(_indices(folder).items(), reverse=True):
        try:
            generation = Generation.model_validate_json(path.read_text())
        except (ValidationError, UnicodeDecodeError):
            damages.append(f"{path.name} is damaged, or of another version")
            continue
        damage = _damage(folder, generation) if generation.number == number else f"{path.name} is the index of another generation"
        if damage is None:
            if damages:
                logger.warning("%s: %s; going on from the snapshot before it, at step %d.", folder, "; ".join(damages), generation.step + 1)
            return generation
        damages.append(damage)
    found = f"There is no whole snapshot in '{folder}' ({'; '.join(damages)})" if damages else f"There is no snapshot in '{folder}'"
    raise SnapshotError(f"{found}; render the take from its start.")


def newest(folder: Path) -> Generation | None:
    """The newest generation by its index; whether its files are whole is seen by who reads them. None where no index can be read."""
    for _, path in sorted(_indices(folder).items(), reverse=True):
        try:
            return Generation.model_validate_json(path.read_bytes())
        except (ValidationError, OSError):
            continue
    return None


def _damage(folder: Path, generation: Generation) -> str | None:
    for record in generation.files.values():
        path = folder / record.name
        if not path.is_file():
            return f"{record.name} is missing"
        if path.stat().st_size != record.size:
            return f"{record.name} has {path.stat().st_size} bytes, not {record.size}"
        if _checksum(path) != record.sha256:
            return f"{record.name} is not what was written (its checksum differs)"
    return None


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[tuple[int, Path]]:
    """All files of generations, with their numbers; unfinished generations too."""
    return [(int(match[1]), path) for path in folder.glob("*") if (match := _OURS.match(path.name))]


def _indices(folder: Path) -> dict[int, Path]:
    return {number: path for number, path in _files(folder) if path.name == file_name("index", number, ".json")}
