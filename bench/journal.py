"""What a long benchmark has measured so far, so that one that was interrupted goes on where it was."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from ..files import write_atomic


class Journal:
    """Figures under names, a line each in the order of measuring; a line that was cut off is measured again.

    subject: what is measured, such as a model's hash and versions; figures of another subject are dropped, and the file begins anew. Raises
    ValueError while another journal is open on the same file, in this process or another one: what it notes would be lost.
    """

    def __init__(self, path: Path, subject: dict[str, Any]) -> None:
        self._path, self._figures = path, dict[str, Any]()
        self._lock = path.with_name(f"{path.name}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Something else measures into '{path.name}' already; wait for it, or measure another piece.") from None
        written = path.read_text() if path.exists() else ""
        head, *lines = written[: written.rfind("\n") + 1].splitlines() or [""]
        if head == json.dumps(subject):
            self._figures = dict(map(json.loads, lines))
            write_atomic(path, "\n".join([head, *lines, ""]))
        else:
            write_atomic(path, json.dumps(subject) + "\n")
        self.note("sittings", self._figures.get("sittings", 0) + 1)

    @property
    def sittings(self) -> int:
        """How many runs of the benchmark it took to measure."""
        return int(self["sittings"])

    def __contains__(self, name: str) -> bool:
        return name in self._figures

    def __getitem__(self, name: str) -> Any:
        return self._figures[name]

    def note(self, name: str, figures: Any) -> None:
        """Raises TypeError for figures that JSON cannot hold."""
        with self._path.open("a") as file:
            file.write(json.dumps([name, figures]) + "\n")
        self._figures[name] = figures

    def close(self) -> None:
        """Let others open it."""
        self._lock.close()

    def discard(self) -> None:
        """Once the results are written."""
        self._path.unlink(missing_ok=True)
        Path(self._lock.name).unlink(missing_ok=True)
        self.close()
