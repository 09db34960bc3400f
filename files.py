"""Writing files whole or not at all. Below all rooms: knows names and bytes, imports nothing of ours."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = ".partial"
_UMASK = os.umask(0o077)  # it can only be read by setting it
os.umask(_UMASK)


def partial_name(path: Path) -> Path:
    """The name of a file while it is written: hidden, beside its final name, with the same suffix; another one for each writer."""
    return path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}{_MARK}{path.suffix}")


def partial_files(folder: Path) -> list[Path]:
    """What writers have under way in a folder, or left there when they were killed."""
    return sorted(folder.glob(f".*{_MARK}*"))


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it; what another process removes meanwhile is no error."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never half of it."""
    temporary = partial_name(path)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """As `write_atomic`, for files that a library writes: gives the name to write under, which becomes `path` when the block ends.

    That name is in a hidden folder of its own: a library may write under temporary names there, and all of them are removed with the folder.
    """
    folder = partial_name(path)
    folder.mkdir()
    try:
        yield folder / path.name
        (folder / path.name).chmod(0o666 & ~_UMASK)  # libraries may have made it for its owner alone
        (folder / path.name).replace(path)
    finally:
        remove(folder)


def check_target(path: Path, option: str, *suffixes: str) -> None:
    """Raise ValueError, with the mend, where a command could not write its file at its end. option: what names the file."""
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder '{path.parent}' to write '{path}' in; make it first.")
    if path.is_dir():
        raise ValueError(f"{option} is '{path}', which is a folder; give the name of a file.")
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} is '{path}'; its name must end in {' or '.join(suffixes)}, {path.with_suffix(suffixes[0])} for example.")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=_MARK):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write '{path}' ({os.strerror(error.errno or 0)}); give another folder by {option}.") from None
