"""The ranks that render a job's takes together: placed, connected, watched and ended. Knows Ray; knows nothing of models."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ...parallel.groups.degrees import Degrees
from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.options import ModelOptions
from ..settings.config import ParallelConfig
from ..signals import uninterrupted
from .failures import Cause, Failure, GangError, cause_of, gang_error
from .orders import Order
from .rank import Rank
from .reports import Link, Loaded, Report, Seat, StepReport

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 3.0  # to wait, after a first failure, for another one that may have caused it
_LEAVE_SECONDS = 20.0  # for a rank to end a take that has failed; one that does not is ended, and another one takes its place
_REPLACE_SECONDS = 20.0  # for the cluster to find another place where it has lost a rank's
_END_SECONDS = 10.0  # for killed ranks to be gone
_UNEXPECTED = "Worker unexpectedly exits"  # followed by Ray's guesses, a paragraph of them
_MORE_MEMORY = "more ranks, model.offload=blocks, cache=none or a smaller take need less on each"


@dataclass
class _Member:
    """bundle: the number of its place in the placement group. seat: None until it has answered."""

    actor: Any
    bundle: int
    seat: Seat | None = None


class Gang:
    """One placement group, one actor a rank, one process group. Use as a context manager: leaving it ends every rank."""

    def __init__(self, degrees: Degrees, config: ParallelConfig, device: str) -> None:
        """device: `cpu` or `cuda`. Once entered, `threads` says how many CPU threads each rank has. step: of the take that is rendered, or was
        last; is_rendering: whether its ranks are at it, or were when something failed.
        """
        self.degrees, self.device, self._config = degrees, device, config
        self.threads: tuple[int, ...] = ()
        self._group: PlacementGroup | None = None
        self._members: list[_Member] = []
        self._model: tuple[ModelCard, ModelOptions, bool] | None = None
        self.step = 0
        self.is_rendering = False

    @property
    def num_ranks(self) -> int:
        return self.degrees.num_ranks

    def __enter__(self) -> Gang:
        try:
            self._place()
            self._seat(self._members)
            self._number()
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
            _end(self._members)
            if self._group is not None:
                remove_placement_group(self._group)
            _wait_for_the_end(self._members)
            self._members, self._group = [], None

    def load(self, card: ModelCard, options: ModelOptions, *, with_preview: bool) -> list[Loaded]:
        """Every rank loads the model; returns their reports in rank order. with_preview: takes are to be previewed."""
        self._model = (card, options, with_preview)
        return self._all([member.actor.load.remote(*self._model) for member in self._members], "while loading the model")

    def probe(self) -> list[Link]:
        """How fast the ranks reach each other, in rank order."""
        return self._all([member.actor.probe.remote() for member in self._members], "while measuring the links")

    def render(self, order: Order, silence: float | None = None) -> Iterator[Report]:
        """Render one take, passing on what rank 0 reports. silence: seconds after which a take that nothing is heard of counts as hung. Raises
        GangError as soon as a rank fails or dies.
        """
        self.step, self.is_rendering = 0, True
        shared = ray.put(order)
        streams = {member.actor.render.options(num_returns="streaming").remote(shared): rank for rank, member in enumerate(self._members)}
        while streams:
            _, event = self._hear(streams, f"after step {self.step}", self.step, silence)
            if isinstance(event, StepReport):
                self.step = event.step
            if event is not None:
                yield event
        self.is_rendering = False

    def heal(self, broken: int | None = None) -> list[Loaded]:
        """After a failed take: a whole gang again, of as many ranks. Those that died, or do not answer, are replaced, and the new ones load the
        model: their reports are returned. The others keep theirs, leave what is left of their process group, and form a new one. broken: a rank
        that is to be replaced as well.

        Nobody writes anything of the failed take any more once this returns. Raises GangError, after which it may be called again, where a new rank
        finds no place, or one fails meanwhile.
        """
        lost = self._leave(broken)
        _end(lost)
        _wait_for_the_end(lost)
        for member in lost:
            member.actor, member.seat = self._new_rank(member.bundle), None
        self._seat(lost)
        self._number()
        self._connect()
        loaded = []
        if self._model is not None:
            loaded = self._all([member.actor.load.remote(*self._model) for member in lost], "while loading the model")
        self.is_rendering = False
        return loaded

    def shrink(self, degrees: Degrees) -> None:
        """After a failed take, or after `heal` has failed: go on with fewer ranks, as `degrees` says, of those that live."""
        lost = self._leave()
        kept = [member for member in self._members if member not in lost]
        ended = [*lost, *kept[degrees.num_ranks :]]
        _end(ended)
        _wait_for_the_end(ended)
        self._members, self.degrees = kept[: degrees.num_ranks], degrees
        if len(self._members) < degrees.num_ranks:
            raise GangError(f"{len(self._members)} rank(s) are left, and {degrees.num_ranks} were asked for.", why=Cause.NO_PLACE)
        self._seat([])
        self._number()
        self._connect()
        self.is_rendering = False

    def _leave(self, broken: int | None = None) -> list[_Member]:
        """Every rank that can leaves what is left of the process group, and ends what it does; returns those that are of no use any more."""
        if self._model is not None and not self._model[1].can_rebind:  # weights are split over the old process group for good
            return list(self._members)
        waiting = {member.actor.leave.remote(): rank for rank, member in enumerate(self._members) if member.seat is not None}
        lost, deadline = set(range(len(self._members))), time.monotonic() + _LEAVE_SECONDS
        while waiting and (source := _ready(waiting, max(0.0, deadline - time.monotonic()))) is not None:
            rank = waiting[source]
            with suppress(RayError):
                _answer(source, waiting)
                lost -= {rank} - {broken}
        return [self._members[rank] for rank in sorted(lost)]

    @property
    def num_living(self) -> int:
        """How many ranks answer, at once: those that are loading or rendering do not."""
        answers = [member.actor.__ray_ready__.remote() for member in self._members]
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=_SETTLE_SECONDS)
        return sum(_is_well(answer) for answer in ready)

    def _place(self) -> None:
        needed = self._needed
        # What is free now counts: a node's totals say nothing of other jobs, and STRICT_PACK would wait for these to end.
        free = ray._private.state.available_resources_per_node().values()
        has_room = any(all(node.get(name, 0) >= self.num_ranks * count for name, count in needed.items()) for node in free)
        self._group = placement_group([needed] * self.num_ranks, strategy="STRICT_PACK" if has_room else "PACK")
        if not self._group.wait(self._config.placement_timeout):
            raise self._no_place(self._config.placement_timeout)
        self._members = [_Member(self._new_rank(bundle), bundle) for bundle in range(self.num_ranks)]

    @property
    def _needed(self) -> dict[str, float]:
        """What a rank needs of a node."""
        return {"GPU": 1.0, "CPU": 1.0} if self.device == "cuda" else {"CPU": 1.0}

    def _no_place(self, seconds: float) -> GangError:
        has, free = ray.cluster_resources(), ray.available_resources()
        wanted = [f"{self.num_ranks} {name}s (the cluster has {has.get(name, 0):g}, {free.get(name, 0):g} of them free)" for name in self._needed]
        return GangError(
            f"No place for {self.num_ranks} ranks within {seconds:g} s: they need {' and '.join(wanted)}. "
            f"Lower the degrees, wait, or raise parallel.placement_timeout.",
            why=Cause.NO_PLACE,
        )

    def _new_rank(self, bundle: int) -> Any:
        options: dict[str, Any] = {
            "num_cpus": self._needed["CPU"],
            "num_gpus": self._needed.get("GPU", 0),
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle),
        }
        return ray.remote(Rank).options(**options).remote(self.device)

    def _seat(self, members: list[_Member]) -> None:
        """Wait until Ray has started these ranks, and give all ranks their share of the cores of the node that each is on, or as many threads as the
        job says. Raises GangError where the cluster has lost the place of one, and finds no other.
        """
        answers, placed = [member.actor.seat.remote() for member in members], time.monotonic()
        while answers and ray.wait(answers, num_returns=len(answers), timeout=1.0)[1]:
            if placement_group_table(self._group)["state"] == "CREATED":
                placed = time.monotonic()
            elif time.monotonic() - placed > _REPLACE_SECONDS:
                raise self._no_place(_REPLACE_SECONDS)
        for member, seat in zip(members, self._all(answers, "while starting"), strict=True):
            member.seat = seat
        seats = [member.seat for member in self._members if member.seat is not None]
        neighbours = Counter(seat.node for seat in seats)
        self.threads = tuple(self._config.threads or max(1, seat.cores // neighbours[seat.node]) for seat in seats)
        self._all([member.actor.use_threads.remote(count) for member, count in zip(self._members, self.threads, strict=True)], "while starting")

    def _number(self) -> None:
        self._all([member.actor.take_number.remote(rank, self.num_ranks) for rank, member in enumerate(self._members)], "while starting")

    def _connect(self) -> None:
        """Let the ranks form the process group."""
        if self.num_ranks == 1:
            return
        actors, timeout = [member.actor for member in self._members], self._config.collective_timeout
        address, port = self._all([actors[0].open_store.remote(timeout)], "while opening the rendezvous")[0]
        self._all([actor.join.remote(address, port, timeout, self.degrees) for actor in actors], "while forming the process group")

    def _all(self, references: list[Any], when: str) -> list[Any]:
        """The results in rank order. Raises GangError as soon as a rank fails or dies."""
        waiting = dict(zip(references, range(len(references)), strict=True))
        results: list[Any] = [None] * len(references)
        while waiting:
            rank, result = self._hear(waiting, when)
            results[rank] = result
        return results

    def _hear(self, waiting: dict[Any, int], when: str, step: int | None = None, silence: float | None = None) -> tuple[int, Any]:
        """The rank that answers next, and its answer; None at the end of its stream. waiting: the reference or stream of each rank that has not
        ended yet; one that ends is removed. Raises GangError where the rank failed or died, and where none is heard for `silence` seconds. when,
        step: what the gang was doing, for that error.
        """
        source = _ready(waiting, silence)
        if source is None:
            raise GangError(f"Nothing was heard of the take for {(silence or 0) / 60:.3g} min {when}.", why=Cause.HUNG, step=step)
        rank = waiting[source]
        try:
            return rank, _answer(source, waiting)
        except RayError as error:
            seats = [member.seat.text if member.seat else "" for member in self._members]
            raise gang_error(_failures(_failure(rank, error), waiting), when, step, seats) from None


def _end(members: Sequence[_Member]) -> None:
    for member in members:
        try:
            ray.kill(member.actor)
        except Exception as error:  # Ray does not document which; the others must be ended in any case
            logger.warning("a rank on %s could not be ended: %s", member.seat.text if member.seat else "no node yet", error)


def _wait_for_the_end(members: Sequence[_Member]) -> None:
    """Ray calls an actor dead a little before its process is gone, so the processes on this node are waited for as well."""
    if not members:
        return
    deadline = time.monotonic() + _END_SECONDS
    ray.wait([member.actor.__ray_ready__.remote() for member in members], num_returns=len(members), timeout=_END_SECONDS)
    here = ray.get_runtime_context().get_node_id()
    seats = [member.seat for member in members if member.seat is not None]
    while any(psutil.pid_exists(seat.process) for seat in seats if seat.node == here) and time.monotonic() < deadline:
        time.sleep(0.05)


def _is_well(answer: Any) -> bool:
    try:
        ray.get(answer)
    except RayError:
        return False
    return True


def _failures(first: Failure, waiting: dict[Any, int]) -> list[Failure]:
    """The first failure and those of other ranks in the few seconds after it, as the first one may be the effect of another. A rank that died
    ends the wait: that is a cause, never an effect.
    """
    heard = [first]
    deadline = time.monotonic() + _SETTLE_SECONDS
    while waiting and not heard[-1].cause.is_death and time.monotonic() < deadline:
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
        return Failure(rank, Cause.PREEMPTED if error.preempted else Cause.DIED, _text(error))
    cause = error.cause if isinstance(error, RayTaskError) else None
    return Failure(rank, cause_of(cause) if isinstance(cause, BaseException) else Cause.RAISED, _text(error))


def _text(error: RayError) -> str:
    """What happened, without Ray's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayActorError):
        if "creation task" in lines[0]:
            return lines[-1]  # the error that its constructor raised
        if any(_UNEXPECTED in line for line in lines):
            return "its process ended without a word: it was killed, ran out of the node's memory, or crashed"
        return next((line for line in lines if "exit" in line.lower() or "killed" in line.lower()), lines[0])
    cause = error.cause if isinstance(error, RayTaskError) else None
    if isinstance(cause, Exception) and cause_of(cause) is Cause.OUT_OF_MEMORY:
        return f"out of memory ({' '.join(str(cause).split())}); {_MORE_MEMORY}"
    return f"{type(cause).__name__}: {str(cause).strip()}" if isinstance(cause, Exception) else lines[-1]
