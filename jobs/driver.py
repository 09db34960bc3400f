"""Running a job from its plan to its films: starts or joins Ray, gives one gang take after take, writes manifests.

The truth about a job is its folder: what is done there is not done again.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..files import remove
from ..parallel.groups.degrees import Degrees
from ..pipeline.checkpoint.card import ModelCard
from ..pipeline.take import Take
from ..pipeline.versions import package_versions
from .control.policy import Answer, Policy
from .control.unfinished import GoesOn, goes_on, is_own, kept_rounds
from .events import Decoded, Event, GangFormed, JobEnded, JobStarted, JobState, ModelLoaded, Note, Stepped, TakeChanged, TakeState
from .folder.access import JobRefused, locked
from .folder.folder import FILM, GROWING, PREVIEW, SNAPSHOTS, Todo, deliver_again, make_room, publish, stage, sweep
from .folder.journal import Journal
from .folder.manifest import Manifest, read_manifest
from .gang.failures import Cause, GangError, cause_of
from .gang.orders import Order, Snapshots
from .gang.reports import Loaded, StepReport, TakeReport
from .report.write import write_report
from .settings.plan import Plan, PlannedTake
from .signals import Stopped, uninterrupted

if TYPE_CHECKING:
    from .gang.gang import Gang

AnyEvent = TypeVar("AnyEvent", bound=Event)
logger = logging.getLogger(__name__)

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
        self._loaded: list[Loaded] = []
        self._policy = Policy(plan.job.retries, can_offload=False)
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
        event = kind(job=self.job, **fields)
        assert self._journal is not None, "an event before the job began"
        self._journal.append(event)
        if isinstance(event, TakeChanged):
            self.changes[event.take] = event
        self._show(event)
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
        from .gang.gang import Gang

        with ExitStack() as held:
            where = held.enter_context(ray_cluster(plan.degrees.num_ranks if plan.degrees else plan.job.parallel.num_ranks or 1))
            device, degrees, why = self._shape(can_grow=where != STARTED_HERE)
            yield self._tell(Note, text=f"Ray: {where}")
            if why:
                yield self._tell(Note, text=f"parallel=auto: {why}")
            yield self._tell(Note, text=f"cache: {_cache_text(plan)}")
            for text in dict.fromkeys(_sampler_text(plan.card, planned.take) for planned in todo):
                yield self._tell(Note, text=f"sampler: {text}")
            gang = held.enter_context(Gang(degrees, plan.job.parallel, device))
            yield self._tell(GangFormed, device=device, num_ranks=gang.num_ranks, degrees=asdict(degrees), threads=list(gang.threads))
            threads = " or ".join(map(str, sorted(set(gang.threads))))
            ranks = f"{gang.num_ranks} rank(s)" + (f" ({degrees})" if gang.num_ranks > 1 else "")
            yield self._tell(Note, text=f"loading '{plan.job.model.path}' on {ranks}, {device}, {threads} thread(s) a rank")
            self._loaded = gang.load(plan.card, plan.model_options, with_preview=plan.job.preview_every > 0)
            yield self._tell(ModelLoaded, seconds=round(max(one.seconds for one in self._loaded), 3))
            self._policy = Policy(plan.job.retries, can_offload=device == "cuda" and plan.model_options.offload == "none")
            for planned in todo:
                yield from self._take(planned, gang)

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

    def _shape(self, *, can_grow: bool) -> tuple[str, Degrees, str]:
        """The device, the degrees, and why these; the reason is empty where the job gives them. Chosen for the job's ranks, or all GPUs.

        can_grow: whether the cluster may get more GPUs while the ranks wait for their places, as one with an autoscaler does.
        """
        import ray

        plan = self.plan
        gpus = int(ray.cluster_resources().get("GPU", 0))
        wanted = plan.degrees.num_ranks if plan.degrees else plan.job.parallel.num_ranks or max(1, gpus)
        device = ("cuda" if gpus >= wanted else "cpu") if plan.job.device == "auto" else plan.job.device
        degrees, why = plan.degrees, ""
        if degrees is None and device == "cpu" and plan.job.parallel.num_ranks is None:
            reason = "as there is no GPU" if not gpus else "as device is cpu"
            degrees, why = Degrees(), f"one rank on the CPU, {reason}; parallel.num_ranks makes it more"
        elif degrees is None:
            kind = "GPU" if device == "cuda" else "CPU"
            per_node = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
            degrees, why = plan.choose_degrees(plan.job.parallel.num_ranks or max(1, gpus), max(1, *per_node))
        if device == "cuda" and gpus < degrees.num_ranks and not can_grow:
            raise JobRefused(f"{degrees.num_ranks} rank(s) need a GPU each, and this machine has {gpus}; set device=cpu or auto, or use fewer ranks.")
        try:
            plan.check(degrees, device)
        except ValueError as error:
            raise JobRefused(str(error)) from None
        return device, degrees, why

    def _take(self, planned: PlannedTake, gang: Gang) -> Iterator[Event]:
        """Render the take, and try again what may be tried again."""
        take, afresh = planned.take, self.plan.force  # of what this run leaves behind, later attempts do not begin afresh
        while not (take.name in self.changes and self.changes[take.name].state.is_final):
            try:
                yield from self._film(planned, gang, afresh=afresh)
                self._policy.succeeded(take.name)
            except (GangError, OSError) as error:
                yield from self._broke_off(planned, gang, error)
                afresh = False
            except BaseException as error:
                with uninterrupted():
                    gang.close()
                    sweep(planned.folder)
                if self.changes[take.name].state.is_final:  # stopped while that was shown
                    raise
                where = f"take '{take.name}' after step {gang.step if gang.is_rendering else 0} of {take.num_steps(self.plan.card)}"
                self._tell(TakeChanged, take=take.name, state=TakeState.WAITING, cause=f"stopped {where}")
                if isinstance(error, KeyboardInterrupt):
                    raise JobStopped(where) from None
                raise

    def _film(self, planned: PlannedTake, gang: Gang, *, afresh: bool) -> Iterator[Event]:
        take, folder = planned.take, planned.folder
        began, finished = time.monotonic(), None
        yield self._tell(TakeChanged, take=take.name, state=TakeState.RUNNING)
        aside = make_room(folder, goes_on=not afresh and is_own(self.plan, planned))
        if aside is not None:
            yield self._tell(Note, take=take.name, text=f"take '{take.name}': what lay in its folder is now in {aside}")
        before = goes_on(self.plan, planned, None if afresh else aside)
        if before.text:
            yield self._tell(Note, take=take.name, text=before.text)
        staging = stage(folder)
        silence = 60 * self.plan.job.retries.hung_minutes
        for report in gang.render(self._order(planned, gang, staging, before), silence):
            if isinstance(report, TakeReport):
                finished = report
                continue
            yield self._tell(Stepped if isinstance(report, StepReport) else Decoded, take=take.name, **asdict(report))
        if finished is None:
            raise GangError(f"Rank 0 ended take '{take.name}' without a film after step {gang.step}.")
        manifest = self._manifest(planned, gang, finished, time.monotonic() - began)
        ended: dict[str, Any] = {"state": TakeState.DONE, "film": str(folder / FILM)}
        if manifest.state == "stopped":
            ended = {"state": TakeState.FAILED, "cause": manifest.why_stopped}
        with uninterrupted():
            publish(staging, folder, manifest)
            event = self._tell(TakeChanged, take=take.name, seconds=manifest.seconds["take"], decisions=manifest.decisions, **ended)
        yield event
        for mark in finished.checks.marks:
            yield self._tell(Note, take=take.name, text=f"take '{take.name}' is marked: {mark}")

    def _broke_off(self, planned: PlannedTake, gang: Gang, error: GangError | OSError) -> Iterator[Event]:
        """A take was broken off: what the policy says is done, the gang is whole again, unless it was done already with the take."""
        name, cause = planned.take.name, error.why if isinstance(error, GangError) else cause_of(error)
        verdict = self._policy.decide(name, cause)
        what = str(error) if isinstance(error, GangError) else f"{type(error).__name__}: {error}"
        state = TakeState.FAILED if verdict.answer is Answer.FAIL else TakeState.WAITING
        told = f"{what} ({verdict.why})" if verdict.why else what
        try:
            yield self._tell(TakeChanged, take=name, state=state, cause=told, count=verdict.count, limit=verdict.limit)
            if state is TakeState.WAITING:
                yield self._tell(Note, take=name, text=f"take '{name}': {told}")
            if gang.is_rendering:
                yield from self._mend(gang, error if isinstance(error, GangError) else None)
            if verdict.answer is Answer.OFFLOAD:
                self.plan = replace(self.plan, model_options=replace(self.plan.model_options, offload="blocks"))
                self._loaded = gang.load(self.plan.card, self.plan.model_options, with_preview=self.plan.job.preview_every > 0)
            if verdict.answer is Answer.AFRESH:
                remove(planned.folder / SNAPSHOTS)
            sweep(planned.folder)
            time.sleep(verdict.seconds)
        except BaseException:
            with uninterrupted():
                gang.close()
                sweep(planned.folder)
            raise

    def _mend(self, gang: Gang, error: GangError | None) -> Iterator[Event]:
        """Make the gang whole again, or go on with the ranks that live. Raises GangError where neither can be."""
        began = time.monotonic()
        is_broken = error is not None and error.why is Cause.RAISED and gang.device == "cuda"  # such an error may leave the device unusable
        for is_last in (False, False, True):
            try:
                loaded = gang.heal(error.rank if is_broken and error else None)
                break
            except GangError as worse:
                if worse.why is Cause.NO_PLACE or is_last:
                    yield from self._shrink(gang, worse)
                    return
        new = f", {len(loaded)} of them new, which loaded the model in {max(one.seconds for one in loaded):.1f} s" if loaded else ""
        yield self._tell(Note, text=f"the gang is whole again after {time.monotonic() - began:.1f} s: {gang.num_ranks} rank(s){new}")

    def _shrink(self, gang: Gang, error: GangError) -> Iterator[Event]:
        for num_ranks in range(gang.num_living, 0, -1):
            try:
                degrees, why = self.plan.choose_degrees(num_ranks, num_ranks)
                self.plan.check(degrees, gang.device)
            except ValueError:
                continue
            gang.shrink(degrees)
            yield self._tell(Note, text=f"the gang goes on with {num_ranks} rank(s) ({degrees}; {why}): {error}")
            return
        raise error

    def _order(self, planned: PlannedTake, gang: Gang, staging: Path, before: GoesOn) -> Order:
        plan, take, kept = self.plan, planned.take, kept_rounds(self.plan, planned)
        told = {"film_key": planned.film_key, "seed": take.seed, "longtake": self._loaded[0].versions["longtake"]}
        every = plan.job.snapshot_every
        snapshots = Snapshots(planned.folder / SNAPSHOTS, every, at_borders=kept is not None and not kept.stand_alone, goes_on=before.has_snapshot)
        return Order(
            take=take,
            recipe=plan.recipe,
            replay=plan.replay,
            place=plan.choose_place(take, gang.degrees),
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

    def _manifest(self, planned: PlannedTake, gang: Gang, finished: TakeReport, seconds: float) -> Manifest:
        """seconds: that the whole take needed, from its first event to its last file, without what earlier attempts did of it."""
        plan, loaded = self.plan, self._loaded[0]
        stages = {"load": loaded.seconds, **finished.seconds, "take": seconds}
        return Manifest(
            take=planned.take.name,
            state="done" if finished.checks.num_frames == planned.take.num_frames else "stopped",
            film_key=planned.film_key,
            delivery_key=plan.delivery_key,
            seed=planned.take.seed,
            config=plan.config_of(planned),
            recipe=plan.recipe.to_dict() if plan.recipe else None,
            ranks=gang.num_ranks,
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
