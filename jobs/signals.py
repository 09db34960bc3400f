"""The signals that stop a job: Ctrl-C, SIGTERM (kill, docker stop, Slurm, `ray job stop`) and SIGHUP (its terminal was closed)."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked us to stop. Not KeyboardInterrupt itself: had that passed through an exec, as any import may have one, Python would
    end the process by SIGINT, whatever became of the exception. Catch KeyboardInterrupt: where Ray waited, it raises that instead.
    """


class _Interrupt:
    """Raises Stopped; what comes within a second of it (a second Ctrl-C, another SIGTERM) says the same again and is dropped."""

    def __init__(self) -> None:
        self._raised = -math.inf

    def __call__(self, number: int, frame: Any) -> None:
        if time.monotonic() - self._raised > 1.0:
            self._raised = time.monotonic()
            raise Stopped


def interrupt_on_signals() -> None:
    """Each of them raises Stopped from now on; one that was ignored when we were started (nohup, a background job) stays so."""
    interrupt = _Interrupt()
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def ignore_signals() -> None:
    """For a process that is stopping already and has only its last line to say."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds the signals back until the block has ended: whoever ends ranks or a cluster must come to the end of it. Where that happens
    because of an exception, they have nothing to add and are dropped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    is_leaving = sys.exc_info()[0] is not None
    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # as well: ray.shutdown sets handlers aside, of which Python hears nothing
    try:
        yield
    finally:
        while (pending := signal.sigtimedwait(STOPPING, 0)) is not None:
            held.append(pending.si_signo)
        restore(before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if held and not is_leaving:
        raise Stopped


@contextmanager
def deaf_threads() -> Iterator[None]:
    """Threads that are started in the block never get these signals: the main thread, which may hold them back, gets all of them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def restore(handlers: dict[signal.Signals, Any]) -> None:
    """handlers: as signal.getsignal gave them."""
    for number, handler in handlers.items():
        if handler is not None:  # one that Python did not set cannot be set again
            signal.signal(number, handler)
