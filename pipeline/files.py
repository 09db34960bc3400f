"""Writing files whole or not at all."""

from __future__ import annotations

from pathlib import Path


def partial_name(path: Path) -> Path:
    """Where a file is while it is written: hidden, beside its final name, with the same suffix."""
    return path.with_name(f".{path.stem}.partial{path.suffix}")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never half of it."""
    temporary = partial_name(path)
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
