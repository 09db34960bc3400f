"""What happens to a job, as events: shown while it renders, handed to callers from Python, and kept as lines of `events.jsonl`.

Plain data. Events go from the job to people and programs; what the driver asks of the ranks, and what these answer, is in gang/.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from enum import Enum
from typing import Any


class TakeState(Enum):
    """Where a take stands. DONE and FAILED are final within a job; a take that was stopped in the middle is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self in (TakeState.DONE, TakeState.FAILED)


class JobState(Enum):
    """How a job ended: with all takes done, with a failure, or because somebody stopped it."""

    DONE = "done"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Event:
    """time: in UTC. job: the id of the run of the job; rendering again into the same folder is another run. take: its name, empty where the
    event concerns the whole job.
    """

    job: str
    take: str = ""
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_json(self) -> str:
        """One line: `event` (the kind, `take_changed` for TakeChanged), `time`, `job`, `take`, then the fields of that kind."""
        kind = re.sub(r"(?<!^)([A-Z])", r"_\1", type(self).__name__).lower()
        time = self.time.isoformat(timespec="milliseconds")
        own = {one.name: _plain(getattr(self, one.name)) for one in fields(self) if one.name not in ("time", "job", "take")}
        return json.dumps({"event": kind, "time": time, "job": self.job, "take": self.take, **own})


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


@dataclass(frozen=True, kw_only=True)
class JobStarted(Event):
    """The first event of a run. longtake: its version. model, output: paths. takes: names of all takes, in the order of rendering. config: the
    resolved job.
    """

    longtake: str
    model: str
    output: str
    takes: list[str]
    config: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Note(Event):
    """A line for people: what was chosen, and why; what was moved aside."""

    text: str


@dataclass(frozen=True, kw_only=True)
class GangFormed(Event):
    """The ranks of a gang are placed and connected. gang: its number, from 1 on. device: `cpu` or `cuda`. degrees: by name. threads: CPU threads of
    each rank.
    """

    gang: int = 1
    device: str
    num_ranks: int
    degrees: dict[str, int]
    threads: list[int]


@dataclass(frozen=True, kw_only=True)
class ModelLoaded(Event):
    """All ranks of a gang have loaded the model. seconds: of the slowest one."""

    gang: int = 1
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TakeChanged(Event):
    """A take entered `state`. gang: the number of the one that renders it from now on, else 0. cause: why it failed, was stopped, is tried again or
    had nothing left to do, else empty. count, limit: which retry of how many, or how many are used up; 0 where none is counted. film: its path, once
    it is done. seconds: from its beginning to its end in this run; decisions: how many of its model calls were computed, reused ...; None and empty
    if it was done before.
    """

    state: TakeState
    gang: int = 0
    cause: str = ""
    count: int = 0
    limit: int = 0
    film: str = ""
    seconds: float | None = None
    decisions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stepped(Event):
    """A denoising step is done, `step` of the take's `num_steps` so far, which a rollout has in every chunk. decisions: how many calls were
    computed, reused ... so far; empty without a cache.
    """

    step: int
    num_steps: int
    decisions: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Decoded(Event):
    """`frames` of the film's `num_frames` are written so far."""

    frames: int
    num_frames: int


@dataclass(frozen=True, kw_only=True)
class JobEnded(Event):
    """The last event of a run. cause: empty where all takes are done."""

    state: JobState
    cause: str = ""
