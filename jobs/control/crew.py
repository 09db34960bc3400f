"""One gang at work, in a thread of its own: it takes from the queue what waits, tries again what the policy says, and tells what happens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event as Flag
from threading import Thread
from typing import Any

from ...files import remove
from ...parallel.groups.degrees import Degrees
from ..events import Decoded, GangFormed, ModelLoaded, Note, Stepped, TakeChanged, TakeState
from ..folder.folder import FILM, GROWING, PREVIEW, SNAPSHOTS, make_room, publish, stage, sweep
from ..folder.manifest import Manifest
from ..gang.failures import Cause, GangError, cause_of
from ..gang.gang import Gang
from ..gang.orders import Order, Snapshots
from ..gang.reports import Loaded, StepReport, TakeReport
from ..settings.plan import Plan, PlannedTake
from .policy import Answer, Policy
from .queue import TakeQueue
from .unfinished import GoesOn, goes_on, is_own, kept_rounds

Tell = Callable[..., None]  # of an event's class and its fields


@dataclass(frozen=True)
class Shape:
    """Of each gang. device: `cpu` or `cuda`."""

    degrees: Degrees
    device: str


class Crew(Thread):
    """number: of the gang, from 1 on. error: what ended it before the queue was empty, None where nothing did; running: the take that it is at.

    `stop` ends it from another thread: its take waits again then.
    """

    def __init__(self, number: int, plan: Plan, shape: Shape, queue: TakeQueue, policy: Policy, tell: Tell) -> None:
        super().__init__(name=f"gang-{number}", daemon=True)
        self.number = number
        self.running: PlannedTake | None = None
        self.error: BaseException | None = None
        self._plan, self._queue, self._policy, self._tell = plan, queue, policy, tell
        self._gang = Gang(shape.degrees, plan.job.parallel, shape.device)
        self._loaded: list[Loaded] = []
        self._stopped = Flag()

    def run(self) -> None:
        try:
            with self._gang:
                self._form()
                while (planned := self._queue.next()) is not None:
                    self.running = planned
                    self._take(planned)
                    self._is_over()
        except BaseException as error:  # whatever it is, the driver raises it, once no other gang can go on
            self.error = error
        finally:
            if self.running is not None:
                self._give_back(self.running)

    def _is_over(self) -> None:
        """The running take is done, or has failed for good."""
        if self.running is not None:
            self.running = None
            self._queue.done()

    def stop(self) -> None:
        """End the gang, and wait until it has ended. The queue must be closed."""
        self._stopped.set()
        self._gang.close()
        if self.is_alive():
            self.join()

    @property
    def where(self) -> str:
        """The running take and its step, in words; empty where there is none."""
        if (planned := self.running) is None:
            return ""
        step = self._gang.step if self._gang.is_rendering else 0
        return f"take '{planned.take.name}' after step {step} of {planned.take.num_steps(self._plan.card)}"

    def _give_back(self, planned: PlannedTake) -> None:
        sweep(planned.folder)
        cause = f"stopped {self.where}" if self._stopped.is_set() else f"{self.where}: {self.error}"
        self._tell(TakeChanged, take=planned.take.name, state=TakeState.WAITING, cause=cause)
        self._queue.put_back(planned)

    def _form(self) -> None:
        plan, gang = self._plan, self._gang
        self._tell(
            GangFormed, gang=self.number, device=gang.device, num_ranks=gang.num_ranks, degrees=asdict(gang.degrees), threads=list(gang.threads)
        )
        threads = " or ".join(map(str, sorted(set(gang.threads))))
        ranks = f"{gang.num_ranks} rank(s)" + (f" ({gang.degrees})" if gang.num_ranks > 1 else "")
        self._say(f"loading '{plan.job.model.path}' on {ranks}, {gang.device}, {threads} thread(s) a rank")
        self._load()
        self._tell(ModelLoaded, gang=self.number, seconds=round(max(one.seconds for one in self._loaded), 3))

    def _load(self) -> None:
        self._loaded = self._gang.load(self._plan.card, self._plan.model_options, with_preview=self._plan.job.preview_every > 0)

    def _say(self, text: str, take: str = "") -> None:
        of_several = f"gang {self.number}: " if self._plan.several_gangs else ""
        self._tell(Note, take=take, text=f"{of_several}{text}")

    def _take(self, planned: PlannedTake) -> None:
        """Render the take, and try again what may be tried again, until it is done or has failed."""
        afresh, is_over = self._plan.force, False  # of what this run leaves behind, later attempts do not begin afresh
        while not is_over:
            try:
                self._film(planned, afresh=afresh)
                is_over = True
                self._policy.succeeded(planned.take.name)
            except (GangError, OSError) as error:
                if self._stopped.is_set():
                    raise
                is_over, afresh = self._broke_off(planned, error), False

    def _film(self, planned: PlannedTake, *, afresh: bool) -> None:
        take, folder = planned.take, planned.folder
        began, finished = time.monotonic(), None
        self._tell(TakeChanged, take=take.name, gang=self.number, state=TakeState.RUNNING)
        aside = make_room(folder, goes_on=not afresh and is_own(self._plan, planned))
        if aside is not None:
            self._say(f"take '{take.name}': what lay in its folder is now in {aside}", take.name)
        before = goes_on(self._plan, planned, None if afresh else aside)
        if before.text:
            self._say(before.text, take.name)
        staging = stage(folder)
        for report in self._gang.render(self._order(planned, staging, before), 60 * self._plan.job.retries.hung_minutes):
            if isinstance(report, TakeReport):
                finished = report
                continue
            self._tell(Stepped if isinstance(report, StepReport) else Decoded, take=take.name, **asdict(report))
        if finished is None:
            raise GangError(f"Rank 0 ended take '{take.name}' without a film after step {self._gang.step}.")
        manifest = self._manifest(planned, finished, time.monotonic() - began)
        ended: dict[str, Any] = {"state": TakeState.DONE, "film": str(folder / FILM)}
        if manifest.state == "stopped":
            ended = {"state": TakeState.FAILED, "cause": manifest.why_stopped}
        publish(staging, folder, manifest)
        self._tell(TakeChanged, take=take.name, seconds=manifest.seconds["take"], decisions=manifest.decisions, **ended)
        for mark in finished.checks.marks:
            self._say(f"take '{take.name}' is marked: {mark}", take.name)

    def _broke_off(self, planned: PlannedTake, error: GangError | OSError) -> bool:
        """A take was broken off: what the policy says is done, and the gang is whole again, unless it was done already with the take. Returns whether
        the take has failed for good.
        """
        name, cause = planned.take.name, error.why if isinstance(error, GangError) else cause_of(error)
        verdict = self._policy.decide(name, cause)
        what = str(error) if isinstance(error, GangError) else f"{type(error).__name__}: {error}"
        state = TakeState.FAILED if verdict.answer is Answer.FAIL else TakeState.WAITING
        told = f"{what} ({verdict.why})" if verdict.why else what
        self._tell(TakeChanged, take=name, state=state, cause=told, count=verdict.count, limit=verdict.limit)
        if state is TakeState.WAITING:
            self._say(f"take '{name}': {told}", name)
        else:
            self._is_over()
        if self._gang.is_rendering:
            self._mend(error if isinstance(error, GangError) else None)
        if verdict.answer is Answer.OFFLOAD:
            self._plan = replace(self._plan, model_options=replace(self._plan.model_options, offload="blocks"))
            self._load()
        if verdict.answer is Answer.AFRESH:
            remove(planned.folder / SNAPSHOTS)
        sweep(planned.folder)
        if self._stopped.wait(verdict.seconds):
            raise error
        return state is TakeState.FAILED

    def _mend(self, error: GangError | None) -> None:
        """Make the gang whole again, or go on with the ranks that live. Raises GangError where neither can be."""
        began, gang = time.monotonic(), self._gang
        is_broken = error is not None and error.why is Cause.RAISED and gang.device == "cuda"  # such an error may leave the device unusable
        for is_last in (False, False, True):
            try:
                loaded = gang.heal(error.rank if is_broken and error else None)
                break
            except GangError as worse:
                if self._stopped.is_set():
                    raise
                if worse.why is Cause.NO_PLACE or is_last:
                    self._shrink(worse)
                    return
        new = f", {len(loaded)} of them new, which loaded the model in {max(one.seconds for one in loaded):.1f} s" if loaded else ""
        self._say(f"the gang is whole again after {time.monotonic() - began:.1f} s: {gang.num_ranks} rank(s){new}")

    def _shrink(self, error: GangError) -> None:
        gang = self._gang
        for num_ranks in range(gang.num_living, 0, -1):
            try:
                degrees, why = self._plan.choose_degrees(num_ranks, num_ranks)
                self._plan.check(degrees, gang.device)
            except ValueError:
                continue
            gang.shrink(degrees)
            self._say(f"the gang goes on with {num_ranks} rank(s) ({degrees}; {why}): {error}")
            return
        raise error

    def _order(self, planned: PlannedTake, staging: Path, before: GoesOn) -> Order:
        plan, take, kept = self._plan, planned.take, kept_rounds(self._plan, planned)
        told = {"film_key": planned.film_key, "seed": take.seed, "longtake": self._loaded[0].versions["longtake"]}
        every = plan.job.snapshot_every
        snapshots = Snapshots(planned.folder / SNAPSHOTS, every, at_borders=kept is not None and not kept.stand_alone, goes_on=before.has_snapshot)
        return Order(
            take=take,
            recipe=plan.recipe,
            replay=plan.replay,
            place=plan.choose_place(take, self._gang.degrees),
            model=plan.model,
            film_key=planned.film_key,
            folder=staging,
            preview=planned.folder / PREVIEW,
            growing=planned.folder / GROWING,
            kept=kept,
            fps=plan.fps,
            preview_every=plan.job.preview_every,
            save_latents=plan.job.save_latents,
            metadata={"title": take.name, "comment": json.dumps(told)},
            stops_on_drift=plan.job.on_drift == "stop",
            snapshots=snapshots if every or before.has_snapshot else None,
        )

    def _manifest(self, planned: PlannedTake, finished: TakeReport, seconds: float) -> Manifest:
        """seconds: that the whole take needed, from its first event to its last file, without what earlier attempts did of it."""
        plan, loaded = self._plan, self._loaded[0]
        stages = {"load": loaded.seconds, **finished.seconds, "take": seconds}
        return Manifest(
            take=planned.take.name,
            state="done" if finished.checks.num_frames == planned.take.num_frames else "stopped",
            film_key=planned.film_key,
            delivery_key=plan.delivery_key,
            seed=planned.take.seed,
            config=plan.config_of(planned),
            recipe=plan.recipe.to_dict() if plan.recipe else None,
            ranks=self._gang.num_ranks,
            threads=loaded.threads,
            device=loaded.device,
            versions=loaded.versions,
            seconds={stage: round(value, 3) for stage, value in stages.items()},
            decisions=finished.decisions,
            speedup=finished.speedup,
            checks=finished.checks,
            cache_bytes=finished.cache_bytes,
            peak_memory_bytes=finished.peak_memory_bytes,
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
