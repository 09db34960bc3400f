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
    """A signal asked us to stop. A class of its own, as Python ends the process by SIGINT once KeyboardInterrupt itself has passed through
    an `exec` (any import may contain one), even if it is caught later. Catch KeyboardInterrupt: Ray raises that where it was waiting.
    """


class _Interrupt:
    """A handler that raises Stopped. Signals that come within a second of the first (another Ctrl-C, another SIGTERM) are dropped."""

    def __init__(self) -> None:
        self._raised = -math.inf

    def __call__(self, number: int, frame: Any) -> None:
        if time.monotonic() - self._raised > 1.0:
            self._raised = time.monotonic()
            raise Stopped


def interrupt_on_signals() -> None:
    """From now on each of STOPPING raises Stopped, but for those that were ignored when the process was started (nohup, a background job)."""
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
    """Holds signals back until the block has ended, which must not be cut short as it ends ranks or a cluster, and lets them come then.

    Where the block runs because of an exception, which ends the job in any case, signals that would only interrupt it are dropped. One that is
    ignored (as SIGHUP is under nohup) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    is_leaving = sys.exc_info()[0] is not None
    before = {number: handler for number in STOPPING if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda number, frame: held.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, before)  # as well: ray.shutdown replaces handlers unknown to Python
    try:
        yield
    finally:
        while (pending := signal.sigtimedwait(before, 0)) is not None:
            held.append(pending.si_signo)
        restore(before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for came in sorted(set(held)):
        if not (is_leaving and _only_interrupts(before[signal.Signals(came)])):
            signal.raise_signal(came)


def _only_interrupts(handler: Any) -> bool:
    return isinstance(handler, _Interrupt) or handler is signal.default_int_handler


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
