"""Rendering a job from Python: what `longtake render` does, with events and results as objects.

    from longtake import render

    result = render("job.yaml", on_event=print)
    for take in result.takes:
        print(take.name, take.film, take.manifest.seconds["take"])

Light to import: what renders is imported once there is something to render.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .events import Event, TakeState
from .folder.folder import FILM
from .folder.manifest import Manifest, read_manifest
from .settings.config import JobConfig, load_job
from .settings.plan import Plan
from .settings.planning import plan_job

if TYPE_CHECKING:
    from .driver import Driver

Job = str | Path | Mapping[str, Any] | JobConfig


@dataclass(frozen=True)
class TakeResult:
    """What became of a take. film, manifest: None unless it is done. cause: why it failed or was stopped; empty elsewhere. A film that was
    stopped where it passed a limit (on_drift: stop) is kept in the folder, and has failed.
    """

    name: str
    state: TakeState
    folder: Path
    film: Path | None
    manifest: Manifest | None
    cause: str = ""


@dataclass(frozen=True)
class JobResult:
    """All takes of a job, in its order. output: the job's folder."""

    output: Path
    takes: tuple[TakeResult, ...]

    def __getitem__(self, name: str) -> TakeResult:
        """The take of that name. Raises KeyError, with the names that there are."""
        for take in self.takes:
            if take.name == name:
                return take
        raise KeyError(f"{name}; the takes are {', '.join(take.name for take in self.takes)}")

    @property
    def failed(self) -> tuple[TakeResult, ...]:
        return tuple(take for take in self.takes if take.state is TakeState.FAILED)

    @property
    def marked(self) -> tuple[TakeResult, ...]:
        """Those done that passed a limit of the checks, `manifest.checks.marks`."""
        return tuple(take for take in self.takes if take.manifest and take.manifest.checks and take.manifest.checks.marks)


class JobFailed(RuntimeError):
    """Some takes of a job failed. result: what became of each."""

    def __init__(self, result: JobResult) -> None:
        causes = [f"take '{take.name}': {take.cause}" for take in result.failed]
        of_several = f"{len(causes)} of {len(result.takes)} takes failed: " if len(result.takes) > 1 else ""
        super().__init__(of_several + "; ".join(causes))
        self.result = result

    def __reduce__(self) -> tuple[type[JobFailed], tuple[JobResult]]:
        return JobFailed, (self.result,)


class Rendering:
    """A job that passed its checks. Iterate over its events to render it; `result` says at any time what became of its takes.

        with Rendering("job.yaml") as rendering:
            for event in rendering:
                ...

    Leaving the `with` block before the last event stops the job: its ranks are ended, finished takes stay. Works in any thread.
    """

    def __init__(self, job: Job, overrides: Sequence[str] = (), *, force: bool = False, say: Callable[[str], None] = lambda line: None) -> None:
        """job: a YAML file's path, a mapping of the same form, or a JobConfig; overrides: `key=value`, as on the command line. force: render
        takes that are done again. say: called with a line before what takes long (hashing a model's weights for the first time).

        Raises ValueError, with the offending value and the mend, for a job that fails a check. Nothing is loaded or reserved here.
        """
        self.plan: Plan = plan_job(load_job(job, overrides), force=force, say=say)
        self._driver: Driver | None = None
        self._is_in_block = False
        self._events: Generator[Event, None, None] | None = None

    def __iter__(self) -> Iterator[Event]:
        """Render, event by event. Raises JobFailed if takes failed, after the last event or once no gang can go on, and otherwise what
        `Driver.run` raises.
        """
        from .driver import Driver

        if self._events is not None:
            raise RuntimeError("This job was rendered already; make another Rendering to go on with it.")
        self._driver = Driver(self.plan)
        self._events = self._driver.run()
        return self._watched(self._events)

    def _watched(self, events: Generator[Event, None, None]) -> Iterator[Event]:
        try:
            for event in events:  # noqa: UP028 - `yield from` would close them before __exit__ can say why the job is stopped
                yield event
        except (RuntimeError, OSError) as error:
            if self.result.failed:
                raise JobFailed(self.result) from error
            raise
        except GeneratorExit:
            if not self._is_in_block:
                events.close()
            raise
        if self.result.failed:
            raise JobFailed(self.result)

    def __enter__(self) -> Self:
        self._is_in_block = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """A KeyboardInterrupt in the `with` block (Ctrl-C while an event is shown) becomes JobStopped, which names the take that was stopped."""
        self._is_in_block = False
        if self._events is None:
            return
        if isinstance(error, KeyboardInterrupt):
            self._events.throw(error)
        self._events.close()

    @property
    def result(self) -> JobResult:
        takes = []
        for planned in self.plan.takes:
            change = self._driver.changes.get(planned.take.name) if self._driver else None
            state, cause = (change.state, change.cause) if change else (TakeState.WAITING, "")
            is_done = state is TakeState.DONE
            film, manifest = (planned.folder / FILM, read_manifest(planned.folder)) if is_done else (None, None)
            takes.append(TakeResult(planned.take.name, state, planned.folder, film, manifest, "" if is_done else cause))
        return JobResult(self.plan.output, tuple(takes))


def render(job: Job, overrides: Sequence[str] = (), *, force: bool = False, on_event: Callable[[Event], None] = lambda event: None) -> JobResult:
    """Render a job; `longtake render` from Python. Takes that are done already are not rendered again, unless `force`.

    job: a YAML file's path, a mapping of the same form, or a JobConfig. overrides: `key=value`, as on the command line. on_event: called
    with each event (longtake.jobs.events). Uses a Ray that this process has joined and leaves it as it is; otherwise joins the cluster that
    RAY_ADDRESS names, or starts one here and ends it. Works in any thread.

    Raises ValueError, before anything is loaded, for a job that fails a check; JobFailed, with the result, if takes failed; GangError if the
    ranks cannot be placed or cannot load the model; ClusterError if Ray cannot be started. For an iterator of events, see Rendering.
    """
    with Rendering(job, overrides, force=force) as rendering:
        for event in rendering:
            on_event(event)
    return rendering.result
