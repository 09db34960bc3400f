"""A job that has passed every check that needs neither its weights nor a cluster, and what is left to do for each take."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from ...cache import Recipe, Replay
from ...parallel.groups.degrees import Degrees, choose_degrees
from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.film_key import delivery_key
from ...pipeline.options import ModelOptions
from ...pipeline.recipes.memory import Budget, choose_place
from ...pipeline.take import Take
from ..folder.access import JobRefused
from ..folder.folder import Todo, look
from .checks import check_degrees, check_device, demand
from .config import JobConfig, TakeSettings
from .values import field_types


@dataclass(frozen=True)
class PlannedTake:
    """A take and its folder. todo: what was left to do for it when the plan was made. rounds: the key of each, none for a take of a
    single round, unless it goes on from a film."""

    take: Take
    folder: Path
    film_key: str
    todo: Todo
    rounds: tuple[str, ...] = ()
    priority: int = 50

    @property
    def is_done(self) -> bool:
        return self.todo is Todo.NOTHING


@dataclass(frozen=True)
class Plan:
    """A job that passed every check. degrees: of a gang, None where they are chosen once the cluster is known; num_gangs: None for as many as it has
    room for.

    model: its hash. replay: the decisions to make again, None to let the recipe decide. why_no_cache: the reason where the job
    names no recipe and gets none, else empty. fps: frames a second, part of the delivery key. force: takes that are done are rendered again.
    """

    job: JobConfig
    card: ModelCard
    recipe: Recipe | None
    why_no_cache: str
    fps: Fraction
    takes: tuple[PlannedTake, ...]
    degrees: Degrees | None
    num_gangs: int | None
    model_options: ModelOptions
    model: str
    replay: Replay | None
    force: bool

    def choose_place(self, take: Take, degrees: Degrees) -> str:
        """Where a take's cache is kept, `device` or `host`. Raises ValueError if it is over the job's budget."""
        if self.recipe is None:
            return "device"
        budget = Budget(self.job.cache.budget_gb, self.job.cache.over_budget)
        return choose_place(self.recipe, self.card, take, degrees, self.model_options, budget)

    def choose_degrees(self, num_ranks: int, ranks_per_node: int) -> tuple[Degrees, str]:
        """The best degrees for so many ranks, and why. Raises JobRefused if the takes cannot be shared out over them."""
        try:
            least = 2 if self.model_options.shard == "gang" else 1  # ranks that share weights share tokens
            wanted = replace(demand(self.card, self._takes, self.recipe), min_sequence=least)
            return choose_degrees(num_ranks, wanted, ranks_per_node)
        except ValueError as error:
            raise JobRefused(str(error)) from None

    def check(self, degrees: Degrees, device: str) -> None:
        """All that depends on the gang's shape, given or chosen, and on its device, `auto` while it is unknown. Raises ValueError."""
        check_device(self.job, device)
        check_degrees(degrees, self.card, self._takes, self.recipe)
        self.model_options.check(degrees.sequence_degree)
        for take in self._takes:
            self.choose_place(take, degrees)

    @property
    def several_gangs(self) -> bool:
        """Whether there may be more than one."""
        return self.num_gangs != 1

    @property
    def least_ranks(self) -> int:
        """How many ranks must find a place for the job to begin, as far as it says so itself."""
        return (self.degrees.num_ranks if self.degrees else self.job.parallel.num_ranks or 1) * (self.num_gangs or 1)

    @property
    def output(self) -> Path:
        """The job's folder, absolute."""
        return Path(self.job.output)

    @property
    def delivery_key(self) -> str:
        return delivery_key(self.fps)

    def look(self, planned: PlannedTake) -> Todo:
        """What is left to do for the take now, by what its folder holds. Raises ValueError for a manifest that cannot be read."""
        stops = self.job.on_drift == "stop"
        return look(planned.folder, planned.film_key, self.delivery_key, self.job.save_latents, self.force, stops_on_drift=stops)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the job: what its takes share, and the takes."""
        shared = {key: value for key, value in asdict(self.job).items() if key not in field_types(TakeSettings)}
        return {**shared, "fps": str(self.fps), "takes": [asdict(take) for take in self._takes]}

    def config_of(self, planned: PlannedTake) -> dict[str, Any]:
        """The resolved config of one take, for its manifest."""
        job = asdict(self.job)
        shared = {key: job[key] for key in ("model", "cache", "parallel", "device", "attention_backend", "save_latents", "on_drift")}
        return {**shared, "fps": str(self.fps), "take": asdict(planned.take)}

    @property
    def _takes(self) -> list[Take]:
        return [planned.take for planned in self.takes]
