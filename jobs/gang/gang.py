"""The ranks that render a job's takes together: placed, connected, watched and ended. Knows Ray; knows nothing of models."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import ray
import torch
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ...parallel.groups.axis import CollectiveError
from ...parallel.groups.degrees import Degrees
from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.options import ModelOptions
from ..settings.config import ParallelConfig
from ..signals import uninterrupted
from .failures import Failure, FailureKind, GangError, gang_error
from .orders import Order
from .rank import Rank
from .reports import Link, Loaded, Report, Seat, StepReport

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 3.0  # to wait, after a first failure, for another one that may have caused it
_END_SECONDS = 10.0  # for killed ranks to be gone
_MORE_MEMORY = "more ranks, model.offload=blocks, cache=none or a smaller take need less on each"


class Gang:
    """One placement group, one actor a rank, one process group. Use as a context manager: leaving it ends every rank."""

    def __init__(self, degrees: Degrees, config: ParallelConfig, device: str) -> None:
        """device: `cpu` or `cuda`. Once entered, `threads` says how many CPU threads each rank has. step: of the take that is rendered, or was
        last; is_rendering: whether its ranks are at it, or were when something failed.
        """
        self.degrees, self.num_ranks, self.device, self._config = degrees, degrees.num_ranks, device, config
        self.threads: tuple[int, ...] = ()
        self._group: PlacementGroup | None = None
        self._ranks: list[Any] = []
        self._seats: list[Seat] = []
        self._options = ModelOptions()
        self._dead: Failure | None = None  # a rank that is known to have died
        self.step = 0
        self.is_rendering = False

    def __enter__(self) -> Gang:
        try:
            self._place()
            self._share_cores()
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every rank, give the resources back and wait until the ranks are gone: none of them writes anything after that."""
        with uninterrupted():
            for rank, actor in enumerate(self._ranks):
                try:
                    ray.kill(actor)
                except Exception as error:  # Ray does not document which; the other ranks must be ended in any case
                    logger.warning("rank %d could not be ended: %s", rank, error)
            if self._group is not None:
                remove_placement_group(self._group)
            self._wait_for_the_end()
            self._ranks, self._seats, self._group = [], [], None

    def _wait_for_the_end(self) -> None:
        """Ray calls an actor dead a little before its process is gone, so the processes on this node are waited for as well."""
        if not self._ranks:
            return
        deadline = time.monotonic() + _END_SECONDS
        ray.wait([actor.__ray_ready__.remote() for actor in self._ranks], num_returns=len(self._ranks), timeout=_END_SECONDS)
        here = ray.get_runtime_context().get_node_id()
        while any(psutil.pid_exists(seat.process) for seat in self._seats if seat.node == here) and time.monotonic() < deadline:
            time.sleep(0.05)

    def load(self, card: ModelCard, options: ModelOptions, *, with_preview: bool) -> list[Loaded]:
        """Every rank loads the model; returns their reports in rank order. with_preview: takes are to be previewed."""
        self._options = options
        return self._all([actor.load.remote(card, options, with_preview) for actor in self._ranks], "while loading the model")

    def probe(self) -> list[Link]:
        """How fast the ranks reach each other, in rank order."""
        return self._all([actor.probe.remote() for actor in self._ranks], "while measuring the links")

    def render(self, order: Order) -> Iterator[Report]:
        """Render one take, passing on what rank 0 reports. Raises GangError as soon as a rank fails or dies."""
        self.step, self.is_rendering = 0, True
        shared = ray.put(order)
        streams = {actor.render.options(num_returns="streaming").remote(shared): rank for rank, actor in enumerate(self._ranks)}
        while streams:
            _, event = self._hear(streams, f"after step {self.step}", self.step)
            if isinstance(event, StepReport):
                self.step = event.step
            if event is not None:
                yield event
        self.is_rendering = False

    @property
    def can_reform(self) -> bool:
        """Whether `reform` may be asked for after a failed take: no rank is known to have died, and the model can be bound again."""
        return self._dead is None and self._options.can_rebind

    def reform(self) -> None:
        """After a failed take: the same ranks, with the model that they hold, leave what is left of their process group and form a new one.

        Returns once every rank has ended that take and writes nothing of it any more. Raises GangError where `can_reform` is False, and where
        a rank fails or dies meanwhile: the gang is of no use then.
        """
        if self._dead is not None:
            raise gang_error([self._dead], "and cannot join another process group", None)
        if not self._options.can_rebind:
            raise GangError(
                "The gang cannot form another process group: model.shard is gang, and the weights stay split over the group that they were loaded in."
            )
        self._all([actor.leave.remote() for actor in self._ranks], "while leaving its process group")
        self._connect()
        self.is_rendering = False

    def _place(self) -> None:
        needed = {"GPU": 1.0, "CPU": 1.0} if self.device == "cuda" else {"CPU": 1.0}
        # What is free now counts: a node's totals say nothing of other jobs, and STRICT_PACK would wait for these to end.
        free = ray._private.state.available_resources_per_node().values()
        has_room = any(all(node.get(name, 0) >= self.num_ranks * count for name, count in needed.items()) for node in free)
        self._group = placement_group([needed] * self.num_ranks, strategy="STRICT_PACK" if has_room else "PACK")
        if not self._group.wait(self._config.placement_timeout):
            has, free = ray.cluster_resources(), ray.available_resources()
            wanted = [f"{self.num_ranks} {name}s (the cluster has {has.get(name, 0):g}, {free.get(name, 0):g} of them free)" for name in needed]
            raise GangError(
                f"No place for {self.num_ranks} ranks within {self._config.placement_timeout:g} s: they need {' and '.join(wanted)}. "
                f"Lower the degrees, wait, or raise parallel.placement_timeout."
            )
        for rank in range(self.num_ranks):
            options: dict[str, Any] = {
                "num_cpus": needed["CPU"],
                "num_gpus": needed.get("GPU", 0),
                "max_restarts": 0,
                "max_task_retries": 0,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank),
            }
            self._ranks.append(ray.remote(Rank).options(**options).remote(rank, self.num_ranks, self.device))

    def _share_cores(self) -> None:
        """Each rank gets its share of the cores of the node that Ray placed it on, or as many threads as the job says."""
        self._seats = self._all([actor.seat.remote() for actor in self._ranks], "while starting")
        neighbours = Counter(seat.node for seat in self._seats)
        self.threads = tuple(self._config.threads or max(1, seat.cores // neighbours[seat.node]) for seat in self._seats)
        self._all([actor.use_threads.remote(count) for actor, count in zip(self._ranks, self.threads, strict=True)], "while starting")

    def _connect(self) -> None:
        if self.num_ranks == 1:
            return
        timeout = self._config.collective_timeout
        address, port = self._all([self._ranks[0].open_store.remote(timeout)], "while opening the rendezvous")[0]
        self._all([actor.join.remote(address, port, timeout, self.degrees) for actor in self._ranks], "while forming the process group")

    def _all(self, references: list[Any], when: str) -> list[Any]:
        """The results in rank order. Raises GangError as soon as a rank fails or dies."""
        waiting = dict(zip(references, range(len(references)), strict=True))
        results: list[Any] = [None] * len(references)
        while waiting:
            rank, result = self._hear(waiting, when)
            results[rank] = result
        return results

    def _hear(self, waiting: dict[Any, int], when: str, step: int | None = None) -> tuple[int, Any]:
        """The rank that answers next, and its answer; None at the end of its stream. waiting: the reference or stream of each rank that has not
        ended yet; one that ends is removed. Raises GangError where the rank failed or died. when, step: what the gang was doing, for that error.
        """
        source = _ready(waiting, None)
        assert source is not None
        rank = waiting[source]
        try:
            return rank, _answer(source, waiting)
        except RayError as error:
            failures = _failures(_failure(rank, error), waiting)
            self._dead = self._dead or next((failure for failure in failures if failure.kind is FailureKind.DIED), None)
            raise gang_error(failures, when, step) from None


def _failures(first: Failure, waiting: dict[Any, int]) -> list[Failure]:
    """The first failure and those of other ranks in the few seconds after it, as the first one may be the effect of another. A rank that died
    ends the wait: that is a cause, never an effect.
    """
    heard = [first]
    deadline = time.monotonic() + _SETTLE_SECONDS
    while waiting and heard[-1].kind is not FailureKind.DIED and time.monotonic() < deadline:
        if (source := _ready(waiting, deadline - time.monotonic())) is None:
            break
        rank = waiting[source]
        try:
            _answer(source, waiting)
        except RayError as error:
            heard.append(_failure(rank, error))
    return heard


def _ready(waiting: dict[Any, int], timeout: float | None) -> Any | None:
    """A reference or stream with an answer that has arrived, or None where none arrives within `timeout` seconds."""
    ready, _ = ray.wait(list(waiting), num_returns=1, timeout=timeout)
    return ready[0] if ready else None


def _answer(source: Any, waiting: dict[Any, int]) -> Any:
    """The answer that has arrived; a stream stays in `waiting` until it ends. Raises RayError, after which nothing more comes."""
    if not isinstance(source, ray.ObjectRefGenerator):
        del waiting[source]
        return ray.get(source)
    try:
        return ray.get(next(source))
    except StopIteration:
        del waiting[source]
        return None
    except RayError:
        del waiting[source]
        raise


def _failure(rank: int, error: RayError) -> Failure:
    if isinstance(error, RayActorError):
        return Failure(rank, FailureKind.DIED, _cause(error))
    is_effect = isinstance(getattr(error, "cause", None), CollectiveError)
    return Failure(rank, FailureKind.LOST_EXCHANGE if is_effect else FailureKind.RAISED, _cause(error))


def _cause(error: RayError) -> str:
    """What happened, without Ray's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayActorError):
        created = "creation task" in lines[0]  # the error that its constructor raised is in the last line
        return lines[-1] if created else next((line for line in lines if "exit" in line.lower() or "killed" in line.lower()), lines[0])
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(cause):
        return f"out of memory ({' '.join(str(cause).split())}); {_MORE_MEMORY}"
    return f"{type(cause).__name__}: {str(cause).strip()}" if isinstance(cause, Exception) else lines[-1]
