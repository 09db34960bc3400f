"""A take's folder: what it holds and lacks, and how a new film comes to lie in it.

Whoever writes holds the take's lock. A take is written in a hidden folder inside its own; when it is whole, its files move up, the manifest
last. So a manifest always lies beside the film that it describes, at whatever line a job is killed, and the next job removes what a killed
one left half-written. Films and all that lies with them are moved aside, never overwritten.
"""

from __future__ import annotations

from enum import Enum, auto
from fractions import Fraction
from itertools import count
from pathlib import Path

from ...files import partial_files, partial_name, remove
from .manifest import Manifest, read_manifest

FILM, LATENTS, PREVIEW = "film.mp4", "latents.safetensors", "preview.jpg"
ROUNDS = "rounds"  # a folder of what is kept of each round of a take of several
SNAPSHOTS = "snapshots"  # a folder of what a take can go on from that is not done yet
GROWING = "film.partial.mp4"  # what is done of a take of several rounds, to be played before the take is done, or after it was killed


class Todo(Enum):
    """What is left to do for a take, by what its folder holds.

    DELIVER: the film is rendered, but is to be written with another frame rate. KEEP_LATENTS: the film is rendered, but its latents were not
    kept, so that it is rendered again for them. STOPPED: the film was stopped where it passed a limit, and would be again.
    """

    NOTHING = auto()
    DELIVER = auto()
    KEEP_LATENTS = auto()
    RENDER = auto()
    STOPPED = auto()


def look(folder: Path, film_key: str, delivery_key: str, save_latents: bool, force: bool, *, stops_on_drift: bool = False) -> Todo:
    """What is left to do for the take of that film key. Raises ValueError for a manifest that cannot be read."""
    manifest = read_manifest(folder)
    if force or manifest is None or manifest.film_key != film_key or not (folder / FILM).is_file():
        return Todo.RENDER
    if manifest.state == "stopped":  # by limits that count in seconds of its frame rate
        return Todo.STOPPED if stops_on_drift and manifest.delivery_key == delivery_key else Todo.RENDER
    if save_latents and not (folder / LATENTS).is_file():
        return Todo.KEEP_LATENTS
    return Todo.NOTHING if manifest.delivery_key == delivery_key else Todo.DELIVER


def make_room(folder: Path, *, goes_on: bool) -> Path | None:
    """Make an empty folder for a take. Moves aside what lay in it and returns where that is now; None if nothing had to be. goes_on: whether the take
    goes on from what a run of it left there that did not end, which stays where it is.
    """
    sweep(folder)
    aside, stays = None, (PREVIEW, GROWING, ROUNDS, SNAPSHOTS) if goes_on else (PREVIEW,)
    if folder.exists() and any(path.name not in stays for path in folder.iterdir()):
        aside = _free_name(folder)
        folder.rename(aside)
    remove(folder / GROWING)
    folder.mkdir(parents=True, exist_ok=True)
    return aside


def _free_name(folder: Path) -> Path:
    manifest = read_manifest(folder)
    name = f"{folder.name}@{manifest.film_key[:8] if manifest else 'unfinished'}"
    names = (folder.with_name(name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(path for path in names if not path.exists())


def stage(folder: Path) -> Path:
    """Make a hidden folder inside the take's, to write the take into."""
    staging = partial_name(folder / "take")
    staging.mkdir()
    return staging


def publish(staging: Path, folder: Path, manifest: Manifest) -> None:
    """Move a whole take's files from the hidden folder into the take's, and write the manifest last; what is only for a take that is not done yet is
    removed.
    """
    for path in sorted(staging.iterdir()):
        path.replace(folder / path.name)
    staging.rmdir()
    remove(folder / GROWING)
    manifest.write(folder)
    remove(folder / SNAPSHOTS)


def deliver_again(folder: Path, fps: Fraction, delivery_key: str) -> None:
    """Give the kept film another frame rate; its pictures stay. While the file is replaced the manifest's delivery_key is empty.

    Raises ValueError for a film that cannot be read; delivery_key stays empty then.
    """
    from ...pipeline.film.retime import retime  # PyAV, which the checks of a job need not wait for

    manifest = read_manifest(folder)
    assert manifest is not None, "only a finished take is delivered again"
    sweep(folder)
    manifest.model_copy(update={"delivery_key": ""}).write(folder)
    retime(folder / FILM, folder / FILM, fps)
    checks = manifest.checks and manifest.checks.at(fps)
    manifest.model_copy(update={"delivery_key": delivery_key, "config": {**manifest.config, "fps": str(fps)}, "checks": checks}).write(folder)


def sweep(folder: Path) -> None:
    """Remove what a writer that has ended left half-written. What a dying rank writes after that is removed the next time."""
    for path in partial_files(folder):
        remove(path)
