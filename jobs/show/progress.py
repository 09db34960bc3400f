"""Telling people how a job is getting on: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..gang.reports import DecodeReport, Report, StepReport, TakeReport
from ..signals import deaf_threads

_LINE_SECONDS = 5.0


def decisions_text(decisions: dict[str, int]) -> str:
    return f"computed {decisions['compute']}, reused {decisions['reuse']}" if decisions else "no cache"


class Reporter(ABC):
    """Gets every event of every take, and plain lines between. A context manager, so that a terminal is left tidy."""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    @abstractmethod
    def say(self, line: str) -> None: ...

    @abstractmethod
    def take(self, name: str, number: int, num_takes: int) -> None:
        """A take begins; number counts from 1."""

    @abstractmethod
    def event(self, event: Report) -> None: ...


class LineReporter(Reporter):
    """For logs: at most one line every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = 0.0
        self._label, self._began = "", 0.0

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def take(self, name: str, number: int, num_takes: int) -> None:
        self._label, self._began, self._last = f"take {number}/{num_takes} '{name}'", time.monotonic(), 0.0

    def event(self, event: Report) -> None:
        now = time.monotonic()
        if isinstance(event, TakeReport) or now - self._last < _LINE_SECONDS:
            return
        self._last = now
        if isinstance(event, StepReport):
            left = (now - self._began) / event.step * (event.num_inference_steps - event.step)
            self.say(f"{self._label}: step {event.step}/{event.num_inference_steps}, {decisions_text(event.decisions)}, {left:.0f} s left")
        elif isinstance(event, DecodeReport):
            self.say(f"{self._label}: frame {event.frames}/{event.num_frames} written")


class BarReporter(Reporter):
    """For terminals: one bar for the takes, one for the steps or frames of the running one."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._takes: TaskID | None = None
        self._steps: TaskID | None = None

    def __enter__(self) -> Reporter:
        with deaf_threads():
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # the terminal may be gone: being stopped is what this ends by then
            self._progress.stop()

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def take(self, name: str, number: int, num_takes: int) -> None:
        if self._takes is None:
            self._takes = self._progress.add_task("takes", total=num_takes, note="")
        self._progress.update(self._takes, completed=number - 1)
        if self._steps is not None:
            self._progress.remove_task(self._steps)
        self._steps = self._progress.add_task(name, total=None, note="")

    def event(self, event: Report) -> None:
        assert self._steps is not None and self._takes is not None
        if isinstance(event, StepReport):
            note = decisions_text(event.decisions)
            self._progress.update(self._steps, total=event.num_inference_steps, completed=event.step, note=note)
        elif isinstance(event, DecodeReport):
            self._progress.update(self._steps, total=event.num_frames, completed=event.frames, note="frames written")
        else:
            self._progress.advance(self._takes)


def reporter(console: Console) -> Reporter:
    return BarReporter(console) if console.is_terminal else LineReporter(console)
