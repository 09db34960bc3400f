"""What became of a job and of its takes, by the events of all runs in its folder. Pure: events in, states out.

A run is one call of `longtake render`. Several may follow each other in one folder, or render different takes of it at the same time; one
that was killed has no last event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, TypeVar

from ..events import Decoded, Event, GangFormed, JobEnded, JobStarted, ModelLoaded, Note, Stepped, TakeChanged, TakeState

_Kind = TypeVar("_Kind", bound=Event)
_SILENCE = timedelta(minutes=15)  # in which a run may load its model or make a step, beside one that has begun meanwhile


class Standing(Enum):
    """How a run or a take stands, as the page says it. KILLED: a run whose end was never written."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"
    KILLED = "killed"


@dataclass(frozen=True)
class Run:
    """One run. job: its id. started: its first event; None, so that nothing is known of the job, where that is missing. began, last: times of
    its first and its last event.
    """

    job: str
    standing: Standing
    cause: str
    began: datetime
    last: datetime
    started: JobStarted | None
    gang: GangFormed | None
    load_seconds: float | None
    notes: tuple[Note, ...]

    @property
    def is_going_on(self) -> bool:
        return self.standing is Standing.RUNNING

    @property
    def takes(self) -> list[str]:
        return self.started.takes if self.started else []

    @property
    def config(self) -> dict[str, Any]:
        return self.started.config if self.started else {}


@dataclass(frozen=True)
class TakeHistory:
    """How a take stands. since: when that last changed. progress: the last step or frame of the run that renders it."""

    standing: Standing
    cause: str
    since: datetime
    progress: Stepped | Decoded | None


def runs_of(events: Sequence[Event]) -> list[Run]:
    """The runs that events belong to, the oldest first."""
    lines: dict[str, list[int]] = {}
    for number, event in enumerate(events):
        lines.setdefault(event.job, []).append(number)
    newest = max((numbers[0] for numbers in lines.values()), default=0)
    runs = []
    for numbers in lines.values():
        own, last = [events[number] for number in numbers], events[numbers[-1]]
        is_heard = numbers[-1] >= newest or events[-1].time - last.time < _SILENCE
        runs.append(_run(own, may_go_on=is_heard and not _is_followed(own, events[numbers[0] :])))
    return runs


def _is_followed(own: Sequence[Event], since: Sequence[Event]) -> bool:
    """Whether another run has begun with a take that this one had not ended: it could not while this one held the take's lock.

    own: the run's events. since: all events since its first one.
    """
    states = {event.take: event.state for event in own if isinstance(event, TakeChanged)}
    open_takes = {take for take, state in states.items() if state in (TakeState.WAITING, TakeState.RUNNING)}
    others = (event for event in since if isinstance(event, TakeChanged) and event.job != own[0].job)
    return any(event.take in open_takes and event.state in (TakeState.WAITING, TakeState.RUNNING) and event.time >= own[0].time for event in others)


def _run(events: Sequence[Event], *, may_go_on: bool) -> Run:
    """may_go_on: whether the run goes on if it has not written its end; else it was killed."""
    end = _last(events, JobEnded)
    load = _last(events, ModelLoaded)
    standing = Standing(end.state.value) if end else Standing.RUNNING if may_go_on else Standing.KILLED
    return Run(
        job=events[0].job,
        standing=standing,
        cause=end.cause if end else "" if may_go_on else "It did not write its end: it was killed, or its machine went down.",
        began=events[0].time,
        last=events[-1].time,
        started=_last(events, JobStarted),
        gang=_last(events, GangFormed),
        load_seconds=load.seconds if load else None,
        notes=tuple(event for event in events if isinstance(event, Note)),
    )


def current_run(runs: Sequence[Run]) -> Run | None:
    """The run that the page speaks of: of those that are going on the one with the latest event, or else the newest."""
    going_on = [run for run in runs if run.is_going_on]
    return max(going_on, key=lambda run: run.last) if going_on else runs[-1] if runs else None


def takes_of(events: Iterable[Event], runs: Sequence[Run]) -> dict[str, TakeHistory]:
    """The history of each take that an event tells of, by its name."""
    by_job = {run.job: run for run in runs}
    changes: dict[str, list[TakeChanged]] = {}
    progress: dict[tuple[str, str], Stepped | Decoded] = {}
    for event in events:
        if isinstance(event, TakeChanged):
            changes.setdefault(event.take, []).append(event)
            progress.pop((event.job, event.take), None)
        elif isinstance(event, Stepped | Decoded):
            progress[event.job, event.take] = event
    return {name: _take(told, by_job, progress) for name, told in changes.items()}


def _take(told: Sequence[TakeChanged], runs: Mapping[str, Run], progress: Mapping[tuple[str, str], Stepped | Decoded]) -> TakeHistory:
    last = told[-1]
    run = runs[last.job]
    standing, cause = Standing(last.state.value), last.cause
    if last.state is TakeState.RUNNING and not run.is_going_on:
        standing, cause = Standing.STOPPED, run.cause
    elif last.state is TakeState.WAITING and not run.is_going_on and any(one.state is TakeState.RUNNING and one.job == last.job for one in told):
        standing = Standing.STOPPED
    is_wanted_again = any(one.is_going_on and one.job != last.job and last.take in one.takes for one in runs.values())
    if is_wanted_again and standing in (Standing.FAILED, Standing.STOPPED):
        standing, cause = Standing.WAITING, ""
    return TakeHistory(standing, cause, last.time, progress.get((last.job, last.take)) if standing is Standing.RUNNING else None)


def _last(events: Sequence[Event], kind: type[_Kind]) -> _Kind | None:
    return next((event for event in reversed(events) if isinstance(event, kind)), None)
