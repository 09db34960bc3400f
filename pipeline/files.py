"""Writing files whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path

_MARK = ".partial"


def partial_name(path: Path) -> Path:
    """Where a file is while it is written: hidden, beside its final name, with the same suffix; another one for each writer."""
    return path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}{_MARK}{path.suffix}")


def partial_files(folder: Path) -> list[Path]:
    """What writers have under way in a folder, or left there when they were killed."""
    return sorted(folder.glob(f".*{_MARK}*"))


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never half of it."""
    temporary = partial_name(path)
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
