"""Snapshots of the take that a gang renders: when one is taken, and how rank 0 writes it while the gang goes on."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch

from ...parallel.groups.axis import Axis
from ...pipeline.loop.render import Renderer
from .orders import Snapshots

_COST = 0.02  # the most that taking snapshots may add to a take's time; one that takes long is taken less often


class SnapshotWriter:
    """Takes one whenever it is time, by rank 0's clock. Every rank has one, and asks it after each step and round. A context manager."""

    def __init__(self, settings: Snapshots, gang: Axis, device: str) -> None:
        self._settings, self._gang, self._device = settings, gang, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        self._writing: Future[None] | None = None
        self._due = time.monotonic() + settings.every

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until nothing is being written any more. What could not be written is of no interest now: the take is done, or has failed already."""
        self._thread.shutdown()

    def look(self, renderer: Renderer, *, is_border: bool = False) -> None:
        """Take a snapshot of the running take, if it is time. Called on every rank of the gang. Raises the error of an earlier one that could not be
        written.
        """
        if not self._settings.every:
            return
        if not (is_border and self._settings.at_borders) and not self._hear(self._is_due()):
            return
        began = time.monotonic()
        snapshot = renderer.snapshot()
        if snapshot is not None:
            self._finish()
            self._writing = self._thread.submit(snapshot.write, self._settings.folder)
        now = time.monotonic()
        self._due = now + max(self._settings.every, (now - began) / _COST)

    def _is_due(self) -> bool:
        return time.monotonic() >= self._due and (self._writing is None or self._writing.done())

    def _hear(self, is_due: bool) -> bool:
        """What rank 0 says, on every rank."""
        return bool(self._gang.sum(torch.tensor([float(is_due and self._gang.rank == 0)], device=self._device)).item())

    def _finish(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
