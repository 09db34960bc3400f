"""Telling people how a job is getting on: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..events import Decoded, Event, JobStarted, ModelLoaded, Note, Stepped, TakeChanged, TakeState
from ..signals import deaf_threads

_LINE_SECONDS = 5.0


def decisions_text(decisions: dict[str, int]) -> str:
    return f"computed {decisions['compute']}, reused {decisions['reuse']}" if decisions else "no cache"


def _ended(event: TakeChanged) -> str:
    """What is to be said of a take that is done or has failed; empty where it was done before."""
    if event.state is TakeState.FAILED:
        return f"take '{event.take}' failed: {event.cause}"
    return "" if event.seconds is None else f"take '{event.take}': {event.film} ({event.seconds:.1f} s, {decisions_text(event.decisions)})"


class Reporter(ABC):
    """Shows the events of a job, each handed to `event`. A context manager, which leaves the terminal as it was."""

    def __init__(self) -> None:
        self._takes: list[str] = []

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def event(self, event: Event) -> None:
        match event:
            case JobStarted():
                self._takes = event.takes
            case Note():
                self.say(event.text)
            case ModelLoaded():
                self.say(f"loaded in {event.seconds:.1f} s")
            case TakeChanged(state=TakeState.RUNNING):
                self.begin(event.take)
            case TakeChanged(state=TakeState.DONE | TakeState.FAILED):
                self.end(event)
            case Stepped() | Decoded():
                self.progress(event)
            case _:
                pass

    @abstractmethod
    def say(self, line: str) -> None: ...

    @abstractmethod
    def begin(self, take: str) -> None:
        """A take is being rendered from now on."""

    @abstractmethod
    def end(self, event: TakeChanged) -> None:
        """A take is done, in this run or an earlier one, or has failed."""

    @abstractmethod
    def progress(self, event: Stepped | Decoded) -> None: ...


@dataclass
class _Running:
    """began, last: when the take began, and when something was said of it, by time.monotonic. before: the steps that it goes on after, None
    until one is done.
    """

    label: str
    began: float
    last: float = 0.0
    before: int | None = None


class LineReporter(Reporter):
    """For logs: at most one line every few seconds of each take."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console
        self._running: dict[str, _Running] = {}

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def begin(self, take: str) -> None:
        self._running[take] = _Running(f"take {self._takes.index(take) + 1}/{len(self._takes)} '{take}'", time.monotonic())

    def end(self, event: TakeChanged) -> None:
        self._running.pop(event.take, None)
        if line := _ended(event):
            self.say(line)

    def progress(self, event: Stepped | Decoded) -> None:
        now, running = time.monotonic(), self._running[event.take]
        if isinstance(event, Stepped) and running.before is None:
            running.before = event.step - 1
        if now - running.last < _LINE_SECONDS:
            return
        running.last = now
        if isinstance(event, Stepped):
            left = (now - running.began) / (event.step - (running.before or 0)) * (event.num_steps - event.step)
            self.say(f"{running.label}: step {event.step}/{event.num_steps}, {decisions_text(event.decisions)}, {left:.0f} s left")
        else:
            self.say(f"{running.label}: frame {event.frames}/{event.num_frames} written")


class BarReporter(Reporter):
    """For terminals: one bar for the takes, one for the steps or frames of each running one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._all: TaskID | None = None
        self._running: dict[str, TaskID] = {}
        self._num_ended = 0

    def __enter__(self) -> Reporter:
        with deaf_threads():
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # the terminal may be gone, which is why the job ends
            self._progress.stop()

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def begin(self, take: str) -> None:
        if self._all is None:
            self._all = self._progress.add_task("takes", total=len(self._takes), completed=self._num_ended, note="")
        self._drop(take)
        self._running[take] = self._progress.add_task(take, total=None, note="")

    def _drop(self, take: str) -> None:
        if (bar := self._running.pop(take, None)) is not None:
            self._progress.remove_task(bar)

    def end(self, event: TakeChanged) -> None:
        self._num_ended += 1
        self._drop(event.take)
        if self._all is not None:
            self._progress.update(self._all, completed=self._num_ended)
        if line := _ended(event):
            self.say(line)

    def progress(self, event: Stepped | Decoded) -> None:
        if isinstance(event, Stepped):
            total, completed, note = event.num_steps, event.step, decisions_text(event.decisions)
        else:
            total, completed, note = event.num_frames, event.frames, "frames written"
        self._progress.update(self._running[event.take], total=total, completed=completed, note=note)


def reporter(console: Console) -> Reporter:
    return BarReporter(console) if console.is_terminal else LineReporter(console)
