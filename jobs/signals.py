"""The signals that stop a job: Ctrl-C, SIGTERM (kill, docker stop, Slurm, `ray job stop`) and SIGHUP (its terminal was closed)."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked us to stop. Not KeyboardInterrupt itself: had that passed through an exec, as any import may have one, Python would
    end the process by SIGINT, whatever became of the exception. Catch KeyboardInterrupt: where Ray waited, it raises that instead.
    """


def interrupt_on_signals() -> None:
    """Each of them raises Stopped from now on; one that was ignored when we were started (nohup, a background job) stays so."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def ignore_signals() -> None:
    """For a process that is stopping already and has only its last line to say."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds the signals back until the block has ended: whoever ends ranks or a cluster must come to the end of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        restore(before)
    if held:
        raise Stopped


def restore(handlers: dict[signal.Signals, Any]) -> None:
    """handlers: as signal.getsignal gave them."""
    for number, handler in handlers.items():
        if handler is not None:  # one that Python did not set cannot be set again
            signal.signal(number, handler)


def _interrupt(number: int, frame: Any) -> None:
    raise Stopped
