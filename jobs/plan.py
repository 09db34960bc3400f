"""Checking a job before anything is loaded or reserved, and what is left to do of it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cache import Recipe, Replay, Trace
from ..parallel.degrees import Degrees, Demand, choose_degrees
from ..pipeline.caching import Budget, check_recipe, choose_place, default_recipe, find_recipe
from ..pipeline.card import ModelCard, model_hash, read_card
from ..pipeline.film_key import film_key
from ..pipeline.options import DTYPES, KERNELS, LAYOUTS, OFFLOADS, SHARDS, ModelOptions
from ..pipeline.take import Take
from .config import JobConfig, resolve_takes
from .manifest import read_manifest

_DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class PlannedTake:
    """is_done: its folder holds a film of the same key. earlier: the key of another film that lies there, if one does."""

    take: Take
    folder: Path
    film_key: str
    is_done: bool
    earlier: str | None


@dataclass(frozen=True)
class Plan:
    """A job that passed every check. degrees: None where they are to be chosen for the cluster that it finds.

    model: its hash. replay: the decisions to make again, None to let the recipe decide.
    """

    job: JobConfig
    card: ModelCard
    recipe: Recipe | None
    fps: int
    takes: tuple[PlannedTake, ...]
    degrees: Degrees | None
    model_options: ModelOptions
    model: str
    replay: Replay | None

    def choose_place(self, take: Take, degrees: Degrees) -> str:
        """Where a take's cache is kept. Raises ValueError if it is over the job's budget."""
        if self.recipe is None:
            return "device"
        return choose_place(self.recipe, self.card, take, degrees, self.model_options, _budget(self.job))

    def choose_degrees(self, num_ranks: int, ranks_per_node: int) -> tuple[Degrees, str]:
        """Raises ValueError if the takes cannot be shared out over so many ranks."""
        return choose_degrees(num_ranks, _demand(self.card, [planned.take for planned in self.takes]), ranks_per_node)

    def config_of(self, planned: PlannedTake) -> dict[str, Any]:
        """The resolved config of one take, for its manifest."""
        job = asdict(self.job)
        shared = {key: job[key] for key in ("model", "cache", "parallel", "device", "attention_backend")}
        return {**shared, "fps": self.fps, "take": asdict(planned.take)}


def plan_job(job: JobConfig, *, force: bool = False) -> Plan:
    """Check all of a job. Raises ValueError with the offending value and the mend."""
    if not job.model.path:
        raise ValueError("The job names no model; set `model: demo`, or the path of a checkpoint in diffusers' format.")
    if not job.output:
        raise ValueError("The job names no output folder; set `output: ...`.")
    options = _check_options(job)
    card = read_card(job.model.path)
    takes = resolve_takes(job, card)
    degrees = _check_parallel(job, card, takes)
    if degrees:
        options.check(degrees.sequence_degree)
    model = model_hash(card.path)
    recipe = _check_recipe(job, card, takes, model, degrees)
    if recipe is not None and degrees is not None:
        for take in takes:
            choose_place(recipe, card, take, degrees, options, _budget(job))
    replay = _check_replay(job, recipe, takes, model)
    fps = card.fps if job.fps is None else job.fps
    if fps < 1:
        raise ValueError(f"fps is {fps}; it must be at least 1.")
    output = Path(job.output)
    _check_writable(output)
    replayed = replay.trace if replay else None
    keys = [film_key(model, take, recipe, options.dtype, replayed) for take in takes]
    planned = tuple(_plan_take(take, output.resolve() / take.name, key, force) for take, key in zip(takes, keys, strict=True))
    return Plan(job, card, recipe, fps, planned, degrees, options, model, replay)


def _plan_take(take: Take, folder: Path, key: str, force: bool) -> PlannedTake:
    manifest = read_manifest(folder)
    same = manifest is not None and manifest.film_key == key
    is_done = same and not force and (folder / "film.mp4").exists()
    return PlannedTake(take, folder, key, is_done, earlier=manifest.film_key if manifest is not None and not same else None)


def _check_options(job: JobConfig) -> ModelOptions:
    choices = (
        ("model.dtype", job.model.dtype, DTYPES),
        ("model.shard", job.model.shard, SHARDS),
        ("model.offload", job.model.offload, OFFLOADS),
        ("parallel.layout", job.parallel.layout, LAYOUTS),
        ("parallel.kernel", job.parallel.kernel, KERNELS),
        ("parallel.degrees", job.parallel.degrees, ("given", "auto")),
        ("device", job.device, _DEVICES),
    )
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"{name} is '{value}'; it must be one of {', '.join(known)}.")
    if job.attention_backend is not None:
        from ..parallel.kernels import NativeKernel  # diffusers, which takes seconds to import

        NativeKernel(job.attention_backend)
    return ModelOptions(job.model.dtype, job.parallel.layout, job.parallel.kernel, job.attention_backend, job.model.shard, job.model.offload)


def _demand(card: ModelCard, takes: list[Take]) -> Demand:
    """What every take of a job can share out. All takes are rendered by one gang, so the least of each counts."""
    timelines = [take.timeline_for(card) for take in takes]
    tokens = [
        card.num_tokens(min(w.stop - w.start for w in line.windows), take.height, take.width) for take, line in zip(takes, timelines, strict=True)
    ]
    branches = 2 if all(take.is_guided(card) for take in takes) else 1
    return Demand(card.num_heads, min(tokens), branches, min(len(line.windows) for line in timelines))


def _check_parallel(job: JobConfig, card: ModelCard, takes: list[Take]) -> Degrees | None:
    parallel = job.parallel
    degrees = Degrees(parallel.cfg_degree, parallel.window_degree, parallel.ring_degree, parallel.ulysses_degree)
    for name in ("cfg_degree", "window_degree", "ring_degree", "ulysses_degree", "num_ranks"):
        value = getattr(parallel, name)
        if value is not None and value < 1:
            raise ValueError(f"parallel.{name} is {value}; it must be at least 1.")
    if parallel.threads < 0:
        raise ValueError(f"parallel.threads is {parallel.threads}; give a number of CPU threads a rank, or 0 to share out the cores.")
    for name in ("placement_timeout", "collective_timeout"):
        if getattr(parallel, name) <= 0:
            raise ValueError(f"parallel.{name} is {getattr(parallel, name):g}; it must be above 0 seconds.")
    if parallel.degrees == "auto":
        if degrees.num_ranks > 1:
            raise ValueError(f"parallel.degrees is auto, but degrees are given as well ({degrees}); drop one of the two.")
        return None
    if parallel.num_ranks is not None and parallel.num_ranks != degrees.num_ranks:
        raise ValueError(
            f"parallel.num_ranks is {parallel.num_ranks}, but the degrees ({degrees}) multiply to {degrees.num_ranks}; "
            f"make them agree, or set parallel=auto."
        )
    _check_degrees(degrees, card, takes)
    return degrees


def _check_degrees(degrees: Degrees, card: ModelCard, takes: list[Take]) -> None:
    ulysses, demand = degrees.ulysses_degree, _demand(card, takes)
    if card.num_heads % ulysses:
        fitting = [n for n in range(1, card.num_heads + 1) if card.num_heads % n == 0]
        raise ValueError(
            f"parallel.ulysses_degree is {ulysses}; it must divide the model's {card.num_heads} heads: {', '.join(map(str, fitting))}. "
            f"parallel.ring_degree takes any number."
        )
    if degrees.cfg_degree > demand.num_branches:
        why = "there are two branches at most" if demand.num_branches == 2 else "not every take has a second branch (guidance_scale 1, or embedded)"
        raise ValueError(f"parallel.cfg_degree is {degrees.cfg_degree}, but {why}; set it to {demand.num_branches}.")
    if degrees.window_degree > demand.num_windows:
        raise ValueError(f"parallel.window_degree is {degrees.window_degree}, but a take has only {demand.num_windows} window(s); lower it.")
    if demand.num_tokens < degrees.sequence_degree:
        raise ValueError(
            f"A take has {demand.num_tokens} tokens, too few for {degrees.sequence_degree} ranks; lower parallel.ulysses_degree or ring_degree."
        )


def _check_recipe(job: JobConfig, card: ModelCard, takes: list[Take], model: str, degrees: Degrees | None) -> Recipe | None:
    name = default_recipe(card, takes) if job.cache.recipe == "default" else job.cache.recipe
    if name == "none":
        if job.cache.changes():
            raise ValueError(f"cache.recipe is none here, but cache sets {', '.join(job.cache.changes())}; name a recipe, or drop these.")
        return None
    recipe = find_recipe(name, card, takes[0].num_inference_steps, job.cache.changes(), job.cache.dtype)
    for take in takes:
        check_recipe(recipe, card, take, model, degrees)
    return recipe


def _budget(job: JobConfig) -> Budget:
    if job.cache.over_budget not in ("refuse", "host"):
        raise ValueError(f"cache.over_budget is '{job.cache.over_budget}'; it must be refuse or host.")
    if job.cache.over_budget == "host" and job.device == "cpu":
        raise ValueError("cache.over_budget is host and device is cpu, whose memory is the host's; set cache.over_budget=refuse.")
    return Budget(job.cache.budget_gb, job.cache.over_budget)


def _check_replay(job: JobConfig, recipe: Recipe | None, takes: list[Take], model: str) -> Replay | None:
    if job.cache.replay is None:
        return None
    if recipe is None:
        raise ValueError("cache.replay needs the recipe of the take that it replays; set cache.recipe.")
    trace = Trace.load(Path(job.cache.replay))
    if trace.model != model:
        raise ValueError(f"The trace '{job.cache.replay}' comes from another model; replay one of this model, or drop cache.replay.")
    for take in takes:
        if take.num_inference_steps != trace.num_inference_steps:
            raise ValueError(
                f"The trace '{job.cache.replay}' is of {trace.num_inference_steps} steps, take '{take.name}' has {take.num_inference_steps}; "
                f"make them equal."
            )
    traced, kept = {entry.site for entry in trace.entries}, {part.site.build().label for part in recipe.parts}
    if traced != kept:
        raise ValueError(f"The trace '{job.cache.replay}' is of {', '.join(traced)}, recipe '{recipe.name}' keeps {', '.join(kept)}.")
    return Replay(trace)


def _check_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to the output folder '{output}' ({os.strerror(error.errno or 0)}); choose another `output`.") from None
