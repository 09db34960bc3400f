"""Checking a job before anything is loaded or reserved, and what is left to do of it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..cache import Recipe, load_recipe
from ..pipeline.card import ModelCard, read_card
from ..pipeline.film_key import film_key
from ..pipeline.take import Take
from .config import JobConfig, resolve_takes
from .manifest import read_manifest

_DTYPES = ("float32", "bfloat16", "float16")
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
    """A job that passed every check."""

    job: JobConfig
    card: ModelCard
    recipe: Recipe | None
    fps: int
    takes: tuple[PlannedTake, ...]

    def config_of(self, planned: PlannedTake) -> dict[str, Any]:
        """The resolved config of one take, for its manifest."""
        job = asdict(self.job)
        shared = {key: job[key] for key in ("model", "cache", "parallel", "device", "dtype")}
        return {**shared, "fps": self.fps, "take": asdict(planned.take)}


def plan_job(job: JobConfig, *, force: bool = False) -> Plan:
    """Check all of a job. Raises ValueError with the offending value and the mend."""
    if not job.model:
        raise ValueError("The job names no model; set `model: demo`, or the path of a checkpoint in diffusers' format.")
    if not job.output:
        raise ValueError("The job names no output folder; set `output: ...`.")
    _check_choice("dtype", job.dtype, _DTYPES)
    _check_choice("device", job.device, _DEVICES)
    card = read_card(job.model)
    takes = resolve_takes(job, card)
    _check_parallel(job, card, takes)
    recipe = _check_recipe(job, card, takes)
    fps = card.fps if job.fps is None else job.fps
    if fps < 1:
        raise ValueError(f"fps is {fps}; it must be at least 1.")
    output = Path(job.output)
    _check_writable(output)
    planned = tuple(_plan_take(take, output.resolve() / take.name, film_key(card.path, take, recipe, job.dtype), force) for take in takes)
    return Plan(job, card, recipe, fps, planned)


def _plan_take(take: Take, folder: Path, key: str, force: bool) -> PlannedTake:
    manifest = read_manifest(folder)
    same = manifest is not None and manifest.film_key == key
    is_done = same and not force and (folder / "film.mp4").exists()
    return PlannedTake(take, folder, key, is_done, earlier=manifest.film_key if manifest is not None and not same else None)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} is '{value}'; it must be one of {', '.join(known)}.")


def _check_parallel(job: JobConfig, card: ModelCard, takes: list[Take]) -> None:
    parallel, degree = job.parallel, job.parallel.ulysses_degree
    if degree < 1 or card.num_heads % degree:
        fitting = [n for n in range(1, card.num_heads + 1) if card.num_heads % n == 0]
        raise ValueError(f"parallel.ulysses_degree is {degree}; it must divide the model's {card.num_heads} heads: {', '.join(map(str, fitting))}.")
    if parallel.threads < 0:
        raise ValueError(f"parallel.threads is {parallel.threads}; give a number of CPU threads a rank, or 0 to share out the cores.")
    for name in ("placement_timeout", "collective_timeout"):
        if getattr(parallel, name) <= 0:
            raise ValueError(f"parallel.{name} is {getattr(parallel, name):g}; it must be above 0 seconds.")
    for take in takes:
        window = min(w.stop - w.start for w in take.timeline_for(card).windows)
        tokens = card.num_tokens(window, take.height, take.width)
        if tokens < degree:
            raise ValueError(f"Take '{take.name}' has {tokens} tokens, too few for {degree} ranks; lower parallel.ulysses_degree.")


def _check_recipe(job: JobConfig, card: ModelCard, takes: list[Take]) -> Recipe | None:
    if job.cache.recipe == "none":
        if job.cache.changes():
            raise ValueError(f"cache.recipe is none, but cache sets {', '.join(job.cache.changes())}; name a recipe, or drop these.")
        return None
    recipe = load_recipe(job.cache.recipe, job.cache.changes())
    recipe.site.build().check(card.num_layers)
    for take in takes:
        kept = recipe.guards.first_steps + recipe.guards.last_steps
        if take.num_inference_steps <= kept:
            raise ValueError(
                f"Take '{take.name}' has {take.num_inference_steps} steps and recipe '{recipe.name}' always computes {kept}: nothing would be "
                f"reused. Use cache=none, more steps, or lower cache.guards.first_steps."
            )
    return recipe


def _check_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(f"Cannot write to the output folder '{output}' ({os.strerror(error.errno or 0)}); choose another `output`.") from None
