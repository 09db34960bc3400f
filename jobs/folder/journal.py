"""`events.jsonl` in a job's output folder: what happened there, a line an event, over all jobs that wrote there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from ..events import Decoded, Event, Stepped

JOURNAL = "events.jsonl"
_PROGRESS_SECONDS = 1.0  # steps and frames that follow the last one sooner are not written


class Journal:
    """Appends events, each in one write, so that jobs that write at the same time keep each other's lines whole. A context manager."""

    def __init__(self, output: Path) -> None:
        """Raises OSError where the folder takes no file."""
        self._file = os.open(output / JOURNAL, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        size = os.fstat(self._file).st_size
        self._is_torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"  # a writer was killed in the middle of a line
        self._told = 0.0

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._file)

    def append(self, event: Event) -> None:
        if isinstance(event, Stepped | Decoded):
            if time.monotonic() - self._told < _PROGRESS_SECONDS:
                return
            self._told = time.monotonic()
        os.write(self._file, f"{chr(10) if self._is_torn else ''}{event.to_json()}\n".encode())
        self._is_torn = False
