"""The model's hash: of all bytes that it is loaded from. Hashes of weights are remembered, so that 28 GB are read once."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...files import write_atomic

_WORTH_SAYING = 2e9  # bytes: some seconds of reading
_SETTLED_SECONDS = 2.0  # a file that changed just now may change again within one tick of its file system's clock


def model_hash(folder: Path, tell: Callable[[str], None] = lambda line: None) -> str:
    """64 hex digits, of every file in the model's parts, of its index and of all weights (LoRA too) that lie beside them.

    The folder's card, licence and calibrated recipes are no part of the model. tell: called with a line before much is read.
    """
    digest = hashlib.sha256()
    memory, files = _Memory(), _files(folder)
    unknown = sum(path.stat().st_size for path in files if path.suffix == ".safetensors" and not memory.recall(path))
    if unknown >= _WORTH_SAYING:
        tell(f"reading the model's weights, {unknown / 1e9:.0f} GB, for their hash; it is remembered")
    for path in files:
        content = memory.hash(path) if path.suffix == ".safetensors" else _hash(path)
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    memory.write()
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    """The files that the hash is of, in the order of their names; a part may be a link to a folder elsewhere."""
    found = []
    for place, folders, names in os.walk(folder, followlinks=True):
        within = Path(place).relative_to(folder).parts
        folders[:] = [name for name in folders if not name.startswith(".") and (*within, name) != ("longtake",)]
        for name in names:
            if within or name == "model_index.json" or name.endswith(".safetensors"):
                found.append(Path(place, name))
    return sorted(path for path in found if not path.name.startswith(".") and path.is_file())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Memory:
    """Hashes by path, size and time of change, in one JSON file of the user's. Where it cannot be read or written, all is hashed again."""

    def __init__(self) -> None:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - pathlib's raises where there is no home
        self._path = Path(caches) / "longtake" / "weights.json"
        self._known = self._read()
        self._new: dict[str, list[str | int]] = {}

    def recall(self, path: Path) -> str:
        """Empty if it is not known, or the file has changed."""
        stat = path.stat()
        match self._known.get(str(path.resolve())):
            case [stat.st_size, stat.st_mtime_ns, str(known)]:
                return known
        return ""

    def hash(self, path: Path) -> str:
        if known := self.recall(path):
            return known
        where, stat = str(path.resolve()), path.stat()
        content = _hash(path)
        if time.time() - stat.st_mtime > _SETTLED_SECONDS:
            self._new[where] = [stat.st_size, stat.st_mtime_ns, content]
        return content

    def write(self) -> None:
        """Adds to what other processes have written meanwhile, and leaves out files that are gone."""
        if not self._new:
            return
        there = {where: known for where, known in {**self._read(), **self._new}.items() if Path(where).exists()}
        with suppress(OSError):  # a home that cannot be written to costs time, nothing else
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps(there, indent=1))

    def _read(self) -> dict[str, list[str | int]]:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
