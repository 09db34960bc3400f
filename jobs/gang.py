"""The ranks that render a job's takes together: placed, connected, watched and ended. Knows Ray; knows nothing of models."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..parallel import Degrees
from ..pipeline.card import ModelCard
from ..pipeline.options import ModelOptions
from .config import ParallelConfig
from .events import Event, Link, Loaded, Order, Stepped
from .rank import Rank

_SETTLE_SECONDS = 3.0  # after a first failure: time for the death that caused it to show


class GangError(RuntimeError):
    """A rank failed or died. The message names the rank and the step."""


class Gang:
    """One placement group, one actor a rank, one process group. Use as a context manager: leaving it ends every rank."""

    def __init__(self, degrees: Degrees, config: ParallelConfig, device: str) -> None:
        self.degrees, self.num_ranks, self.device, self._config = degrees, degrees.num_ranks, device, config
        self.threads = config.threads or max(1, (os.cpu_count() or 1) // self.num_ranks)
        self._group: PlacementGroup | None = None
        self._ranks: list[Any] = []
        self.step = 0

    def __enter__(self) -> Gang:
        try:
            self._place()
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every rank at once and give the resources back."""
        for actor in self._ranks:
            ray.kill(actor)
        self._ranks.clear()
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def load(self, card: ModelCard, options: ModelOptions) -> list[Loaded]:
        """Every rank loads the model; returns what each has to say, in rank order."""
        return self._all([actor.load.remote(card, options) for actor in self._ranks], "loading the model")

    def probe(self) -> list[Link]:
        """How fast the ranks reach each other, in rank order."""
        return self._all([actor.probe.remote() for actor in self._ranks], "measuring the links")

    def render(self, order: Order) -> Iterator[Event]:
        """Render one take, passing on what rank 0 reports. Raises GangError as soon as a rank fails or dies."""
        self.step = 0
        shared = ray.put(order)
        streams = {actor.render.options(num_returns="streaming").remote(shared): rank for rank, actor in enumerate(self._ranks)}
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1)
            stream = ready[0]
            try:
                event: Event = ray.get(next(stream))
            except StopIteration:
                del streams[stream]
                continue
            except RayError as error:
                raise self._failure(streams[stream], error, streams) from None
            if isinstance(event, Stepped):
                self.step = event.step
            yield event

    def _place(self) -> None:
        needed = {"GPU": 1.0, "CPU": 1.0} if self.device == "cuda" else {"CPU": 1.0}
        kind = "GPU" if self.device == "cuda" else "CPU"
        largest = max(node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"])
        strategy = "STRICT_PACK" if largest >= self.num_ranks else "PACK"
        self._group = placement_group([needed] * self.num_ranks, strategy=strategy)
        if not self._group.wait(self._config.placement_timeout):
            has, free = ray.cluster_resources().get(kind, 0), ray.available_resources().get(kind, 0)
            raise GangError(
                f"No place for {self.num_ranks} ranks within {self._config.placement_timeout:g} s: they need {self.num_ranks} {kind}s, the "
                f"cluster has {has:g}, {free:g} of them free. Lower the degrees, wait, or raise parallel.placement_timeout."
            )
        for rank in range(self.num_ranks):
            options: dict[str, Any] = {
                "num_cpus": needed["CPU"],
                "num_gpus": needed.get("GPU", 0),
                "max_restarts": 0,
                "max_task_retries": 0,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank),
                "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(self.threads)}},
            }
            self._ranks.append(ray.remote(Rank).options(**options).remote(rank, self.num_ranks, self.threads, self.device))

    def _connect(self) -> None:
        if self.num_ranks == 1:
            return
        timeout = self._config.collective_timeout
        address, port = self._all([self._ranks[0].open_store.remote(timeout)], "opening the rendezvous")[0]
        self._all([actor.join.remote(address, port, timeout, self.degrees) for actor in self._ranks], "forming the process group")

    def _all(self, references: list[Any], doing: str) -> list[Any]:
        """The results in rank order; the first failure, whichever rank's, ends the wait."""
        waiting = dict(zip(references, range(len(references)), strict=True))
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            try:
                ray.get(ready[0])
            except RayError as error:
                raise GangError(f"Rank {waiting[ready[0]]} failed while {doing}: {_cause(error)}") from None
            del waiting[ready[0]]
        return list(ray.get(references))

    def _failure(self, rank: int, error: RayError, streams: dict[Any, int]) -> GangError:
        """Name the rank that died, not the one that lost its peer and happened to be heard first."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        while not isinstance(error, RayActorError) and time.monotonic() < deadline:
            dead = [(other, died) for other, actor in enumerate(self._ranks) if (died := _death(actor)) is not None]
            if dead:
                rank, error = dead[0]
            time.sleep(0.1)
        return GangError(f"Rank {rank} {'died' if isinstance(error, RayActorError) else 'failed'} after step {self.step}: {_cause(error)}")


def _death(actor: Any) -> RayActorError | None:
    """Why the actor is dead, or None while it lives (busy or not)."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=0.2)
    except RayActorError as error:
        return error
    except GetTimeoutError:
        return None
    return None


def _cause(error: RayError) -> str:
    """The line of an error that says what happened, without Ray's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayActorError):
        return next((line for line in lines if "exit" in line.lower() or "killed" in line.lower()), lines[0])
    return lines[-1]
