"""Files that rank 0 writes while the gang goes on: slow storage must not keep the ranks that wait for it in a collective."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ...files import write_atomic


class BackgroundFiles:
    """Writes small files whole, one after the other, in a thread of its own. Any number may wait: a take has few."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="files")
        self._pending: dict[Path, Future[None]] = {}

    def write(self, path: Path, make: Callable[[], str | bytes]) -> None:
        """Write what `make` returns, which is called in that thread. Does nothing while an earlier write of the same `path` is not done.

        Raises the error of an earlier file that could not be written.
        """
        for written in [path for path, future in self._pending.items() if future.done()]:
            self._pending.pop(written).result()
        if path not in self._pending:
            self._pending[path] = self._thread.submit(lambda: write_atomic(path, make()))

    def finish(self) -> None:
        """Wait until all is written; raises the error of a file that could not be."""
        while self._pending:
            _, future = self._pending.popitem()
            future.result()

    def drop(self) -> None:
        """After a failed take: cancel what has not begun of its files, and forget the errors of the others."""
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()

    def wait(self) -> None:
        """Wait until nothing is being written any more, not even files of a take that was dropped."""
        self._thread.submit(lambda: None).result()
