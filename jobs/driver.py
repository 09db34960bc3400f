"""Running a job from its plan to its films: starts or joins Ray, gives one gang take after take, writes manifests.

The truth about a job is its folder: what is done there is not done again.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from datetime import UTC, datetime

import ray

from ..parallel.groups.degrees import Degrees
from .cluster import ray_cluster
from .folder.folder import FILM, PREVIEW, JobRefused, Todo, deliver_again, locked, make_room, publish, stage, sweep
from .folder.manifest import Manifest
from .gang.gang import Gang, GangError
from .gang.orders import Order
from .gang.reports import Loaded, TakeReport
from .settings.plan import Plan, PlannedTake
from .show.progress import Reporter, decisions_text
from .signals import Stopped, uninterrupted


class JobStopped(Stopped):
    """Somebody stopped the job (Ctrl-C, SIGTERM, SIGHUP). The message names the take and the step."""


def run_job(plan: Plan, reporter: Reporter) -> None:
    """Render what the plan leaves to do. TakeReport takes stay, whatever happens.

    Raises JobRefused, before a weight is loaded, if another job writes the same takes or the cluster's gang does not fit them; GangError
    when a rank fails or dies; AddressError and ClusterError where Ray cannot be joined or started; and where somebody stops the job
    KeyboardInterrupt, as JobStopped in the midst of a take.
    """
    with ExitStack() as stack:
        stack.enter_context(locked([planned.folder for planned in plan.takes if not planned.is_done]))
        todo = [planned for planned in plan.takes if _needs_rendering(plan, planned, reporter)]
        if not todo:
            return
        stack.enter_context(ray_cluster(plan.degrees.num_ranks if plan.degrees else plan.job.parallel.num_ranks or 1))
        device, degrees = _shape(plan, reporter)
        gang = stack.enter_context(Gang(degrees, plan.job.parallel, device))
        threads = " or ".join(map(str, sorted(set(gang.threads))))
        reporter.say(f"cache: {_cache_text(plan)}")
        reporter.say(f"loading '{plan.job.model.path}' on {gang.num_ranks} rank(s) ({degrees}), {device}, {threads} thread(s) a rank")
        loaded = gang.load(plan.card, plan.model_options, with_preview=plan.job.preview_every > 0)
        reporter.say(f"loaded in {max(one.seconds for one in loaded):.1f} s")
        for number, planned in enumerate(todo, 1):
            reporter.take(planned.take.name, number, len(todo))
            _render(plan, planned, gang, loaded[0], reporter)


def _needs_rendering(plan: Plan, planned: PlannedTake, reporter: Reporter) -> bool:
    """What needs no model is done here and now; a take that was not done when it was planned may be by now."""
    name, film = planned.take.name, planned.folder / FILM
    todo = planned.todo if planned.is_done else plan.look(planned)
    if todo is Todo.NOTHING:
        reporter.say(f"take '{name}' is done already ({film}); --force renders it again")
        return False
    if todo is Todo.DELIVER:
        try:
            with uninterrupted():
                deliver_again(planned.folder, plan.fps, plan.delivery_key)
        except ValueError as error:
            reporter.say(f"take '{name}' is rendered again: its film cannot get another frame rate ({error})")
            return True
        reporter.say(f"take '{name}' is done already; its film has {float(plan.fps):g} frames a second now ({film})")
        return False
    if todo is Todo.KEEP_LATENTS:
        reporter.say(f"take '{name}' is done, but its latents were not kept; it is rendered again for them")
    return True


def _cache_text(plan: Plan) -> str:
    if plan.recipe is not None:
        return plan.recipe.name
    return f"none; {plan.why_no_cache}" if plan.why_no_cache else "none"


def _shape(plan: Plan, reporter: Reporter) -> tuple[str, Degrees]:
    """The device, and the degrees: those that the job gives, or the best for the ranks that it or the cluster has."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    wanted = plan.degrees.num_ranks if plan.degrees else plan.job.parallel.num_ranks or max(1, gpus)
    device = ("cuda" if gpus >= wanted else "cpu") if plan.job.device == "auto" else plan.job.device
    if plan.degrees:
        _check(plan, plan.degrees, device)
        return device, plan.degrees
    kind = "GPU" if device == "cuda" else "CPU"
    per_node = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
    num_ranks = plan.job.parallel.num_ranks or sum(per_node)
    degrees, why = plan.choose_degrees(num_ranks, max(1, *per_node))
    _check(plan, degrees, device)
    reporter.say(f"parallel=auto: {why}")
    return device, degrees


def _check(plan: Plan, degrees: Degrees, device: str) -> None:
    try:
        plan.check(degrees, device)
    except ValueError as error:
        raise JobRefused(str(error)) from None


def _render(plan: Plan, planned: PlannedTake, gang: Gang, loaded: Loaded, reporter: Reporter) -> None:
    take, folder = planned.take, planned.folder
    aside = make_room(folder)
    if aside is not None:
        reporter.say(f"take '{take.name}': what lay in its folder is now in {aside}")
    staging = stage(folder)
    began = time.monotonic()
    metadata = {
        "title": take.name,
        "comment": json.dumps({"film_key": planned.film_key, "seed": take.seed, "longtake": loaded.versions["longtake"]}),
    }
    job = plan.job
    place = plan.choose_place(take, gang.degrees)
    order = Order(
        take=take,
        recipe=plan.recipe,
        replay=plan.replay,
        place=place,
        model=plan.model,
        folder=staging,
        preview=folder / PREVIEW,
        fps=plan.fps,
        preview_every=job.preview_every,
        save_latents=job.save_latents,
        metadata=metadata,
    )
    try:
        finished = _watch(gang, order, reporter)
    except BaseException as error:
        with uninterrupted():
            gang.close()
            sweep(folder)
        if isinstance(error, KeyboardInterrupt):
            raise JobStopped(f"take '{take.name}' after step {gang.step} of {plan.card.num_calls(take.num_inference_steps)}") from None
        raise
    seconds = {**finished.seconds, "take": time.monotonic() - began, "loading": loaded.seconds}
    manifest = Manifest(
        take=take.name,
        state="done",
        film_key=planned.film_key,
        delivery_key=plan.delivery_key,
        seed=take.seed,
        config=plan.config_of(planned),
        recipe=plan.recipe.to_dict() if plan.recipe else None,
        ranks=gang.num_ranks,
        threads=loaded.threads,
        device=loaded.device,
        versions=loaded.versions,
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
        decisions=finished.decisions,
        cache_bytes=finished.cache_bytes,
        peak_memory_bytes=finished.peak_memory_bytes,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with uninterrupted():
        publish(staging, folder, manifest)
    reporter.say(f"take '{take.name}': {folder / FILM} ({seconds['take']:.1f} s, {decisions_text(finished.decisions)})")


def _watch(gang: Gang, order: Order, reporter: Reporter) -> TakeReport:
    finished: TakeReport | None = None
    for event in gang.render(order):
        reporter.event(event)
        if isinstance(event, TakeReport):
            finished = event
    if finished is None:
        raise GangError(f"Rank 0 ended take '{order.take.name}' without a film after step {gang.step}.")
    return finished
