"""Files that rank 0 writes while the gang goes on: slow storage must not keep the ranks that wait for it in a collective."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ...files import write_atomic


class BackgroundFiles:
    """Writes small files whole, one after the other, in a thread of its own. A take has few of them, so none is ever refused."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="files")
        self._pending: dict[Path, Future[None]] = {}

    def write(self, path: Path, make: Callable[[], str | bytes]) -> None:
        """Write what `make` returns, which is called in that thread. Where the same `path` waits to be written from before, this is left out.

        Raises what went wrong with any file before.
        """
        for written in [path for path, future in self._pending.items() if future.done()]:
            self._pending.pop(written).result()
        if path not in self._pending:
            self._pending[path] = self._thread.submit(lambda: write_atomic(path, make()))

    def finish(self) -> None:
        """Wait until all is written; raises what went wrong."""
        while self._pending:
            _, future = self._pending.popitem()
            future.result()

    def drop(self) -> None:
        """Forget a take that failed, and what is not begun of its files."""
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()

    def wait(self) -> None:
        """Until nothing is being written any more, of takes that were dropped either."""
        self._thread.submit(lambda: None).result()
