"""Persistent worker processes for benchmarks and parity tests: importing diffusers costs seconds, forming a gloo group does not.

They are forked off one server that has done the imports: once for all of them, and their pages are shared.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ..parallel.groups.degrees import Degrees
from ..parallel.groups.mesh import Mesh, leave_gang

_IMPORTED_ONCE = [__name__, "longtake.pipeline.loop.render"]
_START_SECONDS = 240.0  # a cold disk makes the imports slow: that is no hang of a run


def _serve(rank: int, pipe: Connection, timeout: timedelta) -> None:
    torch.set_num_threads(1)
    pipe.send("ready")
    while (task := pipe.recv()) is not None:
        function, arguments, degrees, rendezvous = task
        try:
            if degrees.num_ranks > 1:
                dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=degrees.num_ranks, timeout=timeout)
            try:
                mesh = Mesh(degrees, dist.group.WORLD if degrees.num_ranks > 1 else None)
                if degrees.num_ranks > 1:
                    dist.barrier()  # a rank that leaves while another still connects breaks that one
                pipe.send((True, function(mesh, *arguments)))
            finally:
                leave_gang()
        except Exception:
            pipe.send((False, traceback.format_exc()))


class GlooPool:
    """`run(function, degrees, *arguments)` calls `function(mesh, *arguments)` on all ranks of a mesh and returns their results.

    A number in place of degrees stands for so many ranks on the Ulysses axis.
    """

    def __init__(self, size: int, timeout: float = 90.0) -> None:
        """timeout: seconds, for every collective and every run."""
        self._size, self._timeout = size, timedelta(seconds=timeout)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        self._runs = 0
        self._start()
        return self

    def _start(self) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED_ONCE)
        self._pipes, self._processes = [], []
        for rank in range(self._size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, theirs, self._timeout), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for rank, pipe in enumerate(self._pipes):
            self._receive(rank, pipe, _START_SECONDS)

    def _receive(self, rank: int, pipe: Connection, seconds: float) -> Any:
        if not pipe.poll(seconds):
            raise TimeoutError(f"rank {rank} of the pool did not answer within {seconds:g} s: a hang")
        return pipe.recv()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    def __exit__(self, *error: object) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join(10)
        self._kill()
        self._folder.cleanup()

    def run(self, function: Callable[..., Any], degrees: Degrees | int, *arguments: Any) -> list[Any]:
        degrees = Degrees(ulysses_degree=degrees) if isinstance(degrees, int) else degrees
        num_ranks = degrees.num_ranks
        assert num_ranks <= self._size, f"the pool has {self._size} processes"
        self._runs += 1
        rendezvous = Path(self._folder.name) / str(self._runs)
        for pipe in self._pipes[:num_ranks]:
            pipe.send((function, arguments, degrees, rendezvous))
        try:
            results = [self._receive(rank, pipe, self._timeout.total_seconds() + 10) for rank, pipe in enumerate(self._pipes[:num_ranks])]
        except (TimeoutError, EOFError):  # an answer that comes late must not pass for that of a later run
            self._kill()
            self._start()
            raise
        failed = [f"rank {rank}:\n{text}" for rank, (ok, text) in enumerate(results) if not ok]
        if failed:
            raise AssertionError("\n".join(failed))
        return [value for _, value in results]
