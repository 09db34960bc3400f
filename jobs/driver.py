"""Running a job from its plan to its films: starts or joins Ray, sets gangs to work on what is not done, and says what they tell.

The truth about a job is its folder: what is done there is not done again.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from ..files import remove
from ..parallel.groups.degrees import Degrees
from ..pipeline.checkpoint.card import ModelCard
from ..pipeline.take import Take
from ..pipeline.versions import package_versions
from .control.policy import Policy
from .control.queue import TakeQueue
from .events import Event, JobEnded, JobStarted, JobState, Note, TakeChanged, TakeState
from .folder.access import JobRefused, locked
from .folder.folder import FILM, SNAPSHOTS, Todo, deliver_again
from .folder.journal import Journal
from .folder.manifest import read_manifest
from .report.write import write_report
from .settings.plan import Plan, PlannedTake
from .signals import Stopped, uninterrupted

if TYPE_CHECKING:
    from .control.crew import Crew, Shape

AnyEvent = TypeVar("AnyEvent", bound=Event)
logger = logging.getLogger(__name__)

_LISTEN_SECONDS = 0.5  # to wait for an event, until it is looked whether any gang is still at work
_PAGE_SECONDS = 2.0  # at least, from one page to the next; longer where writing one takes more than a twentieth of that


class JobStopped(Stopped):
    """Somebody stopped the job (Ctrl-C, SIGTERM, SIGHUP). The message names the take and the step."""


class Driver:
    """One run of a job. `run` renders what the plan leaves to do. Every event is written to the folder's journal before it is yielded; the job's
    page is rewritten every few seconds.

    changes: each take's last change of state.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.job = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self._journal: Journal | None = None
        self.changes: dict[str, TakeChanged] = {}
        self._noting = Lock()
        self._heard: SimpleQueue[Event] = SimpleQueue()  # from the gangs' threads
        self._next_page = 0.0
        self._complaint = ""  # about the page, which is told once

    def run(self) -> Generator[Event, None, None]:
        """Finished takes stay, whatever happens. After a failure a take is tried again as the policy says; after one that has failed for good the
        job goes on with the next one.

        Raises JobRefused, before a weight is loaded, if another job writes the same takes or the cluster's gang does not fit them; GangError
        when the gang cannot go on, not even with fewer ranks; AddressError and ClusterError where Ray cannot be joined or started;
        KeyboardInterrupt where somebody stops the job, as JobStopped in the midst of a take. Closing the iterator stops the job in the same way.
        """
        plan = self.plan
        with ExitStack() as held:
            held.enter_context(locked([planned.folder for planned in plan.takes if not planned.is_done]))
            self._journal = held.enter_context(Journal(self.plan.output))
            names = [planned.take.name for planned in plan.takes]
            begins = {
                "longtake": package_versions(["longtake"])["longtake"],
                "model": plan.job.model.path,
                "output": str(self.plan.output),
                "takes": names,
                "config": plan.config,
            }
            try:
                yield self._tell(JobStarted, **begins)
                yield from self._takes()
            except (KeyboardInterrupt, GeneratorExit) as error:
                self._tell(JobEnded, state=JobState.STOPPED, cause=str(error))
                raise
            except Exception as error:
                self._tell(JobEnded, state=JobState.FAILED, cause=str(error))
                raise
            failed = [change for change in self.changes.values() if change.state is TakeState.FAILED]
            state = JobState.FAILED if failed else JobState.DONE
            yield self._tell(JobEnded, state=state, cause="; ".join(f"take '{change.take}': {change.cause}" for change in failed))

    def _tell(self, kind: type[AnyEvent], **fields: Any) -> AnyEvent:
        event = self._note(kind, **fields)
        self._show(event)
        return event

    def _note(self, kind: type[AnyEvent], **fields: Any) -> AnyEvent:
        event = kind(job=self.job, **fields)
        assert self._journal is not None, "an event before the job began"
        with self._noting:
            self._journal.append(event)
            if isinstance(event, TakeChanged):
                self.changes[event.take] = event
        return event

    def _show(self, event: Event) -> None:
        """Write the job's page, not too often. Where it cannot be written the job goes on: nothing of a film depends on it."""
        began = time.monotonic()
        if began < self._next_page and not isinstance(event, JobEnded):
            return
        try:
            write_report(self.plan.output)
        except Exception as error:  # whatever it is: what an earlier version or somebody else left in the folder is no reason to render no film
            if str(error) != self._complaint:
                logger.warning("The page of '%s' cannot be written (%s: %s); the job goes on.", self.plan.output, type(error).__name__, error)
            self._complaint = str(error)
        now = time.monotonic()
        self._next_page = now + max(_PAGE_SECONDS, 20 * (now - began))

    def _takes(self) -> Iterator[Event]:
        plan, todo = self.plan, []
        for planned in plan.takes:
            name = planned.take.name
            state, why = self._before(planned)
            if why and state is not TakeState.FAILED:
                yield self._tell(Note, take=name, text=f"take '{name}' {why}")
            is_done = state is TakeState.DONE
            film = str(planned.folder / FILM) if is_done else ""
            yield self._tell(TakeChanged, take=name, state=state, cause="was done before" if is_done else why, film=film)
            todo += [] if state.is_final else [planned]
        if not todo:
            return

        from .cluster import STARTED_HERE, ray_cluster  # Ray and torch, for which a job that is done need not wait
        from .control.crew import Crew

        with ray_cluster(plan.least_ranks) as where:
            shape, num_gangs, reasons = self._shape(len(todo), can_grow=where != STARTED_HERE)
            yield self._tell(Note, text=f"Ray: {where}")
            for text in reasons:
                yield self._tell(Note, text=text)
            yield self._tell(Note, text=f"cache: {_cache_text(plan)}")
            for text in dict.fromkeys(_sampler_text(plan.card, planned.take) for planned in todo):
                yield self._tell(Note, text=f"sampler: {text}")
            can_offload = shape.device == "cuda" and plan.model_options.offload == "none"
            queue, policy = TakeQueue(todo), Policy(plan.job.retries, can_offload=can_offload)
            crews = [Crew(number, plan, shape, queue, policy, self._hear) for number in range(1, num_gangs + 1)]
            yield from self._work(crews, queue)

    def _work(self, crews: list[Crew], queue: TakeQueue) -> Iterator[Event]:
        """All that the gangs tell, until the queue is empty or no gang can go on."""
        try:
            for crew in crews:
                crew.start()
            while any(crew.is_alive() for crew in crews) or not self._heard.empty():
                with suppress(Empty):
                    event = self._heard.get(timeout=_LISTEN_SECONDS)
                    self._show(event)
                    yield event
        except BaseException as error:
            where = ", ".join(text for crew in crews if (text := crew.where))
            with uninterrupted():
                queue.close()
                for crew in crews:
                    crew.stop()
            if where and isinstance(error, KeyboardInterrupt):
                raise JobStopped(where) from None
            raise
        errors = [crew.error for crew in crews if crew.error is not None]
        if errors and len(queue):
            raise errors[0]

    def _hear(self, kind: type[Event], **fields: Any) -> None:
        """Called by the gangs' threads: the event is in the journal at once, and yielded when its turn comes."""
        self._heard.put(self._note(kind, **fields))

    def _before(self, planned: PlannedTake) -> tuple[TakeState, str]:
        """How a take stands before anything is rendered, and what to say of it. A new frame rate, which needs no model, is given here and now.

        Looks again at what was not done when the job was planned: another job may have rendered it since.
        """
        plan, film = self.plan, planned.folder / FILM
        todo = planned.todo if planned.is_done else plan.look(planned)
        if todo is Todo.NOTHING:
            remove(planned.folder / SNAPSHOTS)  # of a driver that was killed right after the film was whole
            return TakeState.DONE, f"is done already ({film}); --force renders it again"
        if todo is Todo.STOPPED:
            manifest = read_manifest(planned.folder)
            assert manifest is not None, "what was stopped has a manifest"
            return TakeState.FAILED, f"{manifest.why_stopped}; another seed or prompt may do, on_drift=mark or --force render it again"
        if todo is Todo.DELIVER:
            try:
                with uninterrupted():
                    deliver_again(planned.folder, plan.fps, plan.delivery_key)
            except ValueError as error:
                return TakeState.WAITING, f"is rendered again: its film cannot get another frame rate ({error})"
            return TakeState.DONE, f"is done already; its film has {float(plan.fps):g} frames a second now ({film})"
        why = "is done, but its latents were not kept; it is rendered again for them" if todo is Todo.KEEP_LATENTS else ""
        return TakeState.WAITING, why

    def _shape(self, num_takes: int, *, can_grow: bool) -> tuple[Shape, int, list[str]]:
        """The shape of each gang, how many gangs there are, and why, where the job leaves it open. Chosen for the job's ranks, or all GPUs.

        can_grow: whether the cluster may get more GPUs while the ranks wait for their places, as one with an autoscaler does.
        """
        import ray

        from .control.crew import Shape

        plan, parallel = self.plan, self.plan.job.parallel
        has = ray.cluster_resources()
        gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 1))
        asked = plan.degrees.num_ranks if plan.degrees else parallel.num_ranks
        num_gangs = min(plan.num_gangs or num_takes, num_takes)
        wanted = asked or max(1, gpus // (plan.num_gangs or 1))
        device = ("cuda" if gpus >= wanted else "cpu") if plan.job.device == "auto" else plan.job.device
        degrees, why = plan.degrees, list[str]()
        if degrees is None and device == "cpu" and asked is None:
            reason = "as there is no GPU" if not gpus else "as device is cpu"
            degrees = Degrees()
            why.append(f"parallel=auto: one rank on the CPU, {reason}; parallel.num_ranks makes it more")
        elif degrees is None:
            kind = "GPU" if device == "cuda" else "CPU"
            per_node = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
            degrees, reason = plan.choose_degrees(wanted, max(1, *per_node))
            why.append(f"parallel=auto: {reason}")
        if device == "cuda" and gpus < degrees.num_ranks and not can_grow:
            raise JobRefused(f"{degrees.num_ranks} rank(s) need a GPU each, and this machine has {gpus}; set device=cpu or auto, or use fewer ranks.")
        if plan.num_gangs is None:
            places = gpus if device == "cuda" else cpus
            num_gangs = max(1, min(num_takes, places // degrees.num_ranks))
            why.append(f"num_gangs=auto: {num_gangs}, for {num_takes} take(s) and {places} {'GPU' if device == 'cuda' else 'CPU'}(s)")
        try:
            plan.check(degrees, device)
        except ValueError as error:
            raise JobRefused(str(error)) from None
        return Shape(degrees, device), num_gangs, why


def _cache_text(plan: Plan) -> str:
    if plan.recipe is not None:
        return f"{plan.recipe.name}{f', decisions of {plan.job.cache.replay}' if plan.replay else ''}"
    return f"none; {plan.why_no_cache}" if plan.why_no_cache else "none"


def _sampler_text(card: ModelCard, take: Take) -> str:
    """The sampler by its class in diffusers, and the schedule's sigmas where there is one."""
    sampler = card.sampled_by(take.scheduler).scheduler
    if take.schedule is None:
        return f"{sampler}, {take.num_inference_steps} steps"
    return f"{sampler}, a schedule of {take.schedule.num_steps} steps, at sigmas {' '.join(f'{sigma:.4g}' for sigma in take.schedule.sigmas)}"
