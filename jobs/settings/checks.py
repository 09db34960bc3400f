"""The checks that a job must pass before a model is loaded or Ray resources are reserved; some need the gang's shape, given or chosen.

Pure: no files, no cluster. Every refusal is a ValueError with the offending value and the mend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from ...cache import Recipe, Replay, Trace
from ...parallel.groups.degrees import Degrees, Demand
from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.options import DTYPES, KERNELS, LAYOUTS, OFFLOADS, SHARDS, ModelOptions
from ...pipeline.recipes.check import check_gang, derives_branch, hands_on_tokens
from ...pipeline.take import Take
from .config import JobConfig, ParallelConfig, TakeConfig

_DEGREES = ("cfg_degree", "window_degree", "ring_degree", "ulysses_degree")
_DEVICES = ("auto", "cpu", "cuda")
_MOST_GANGS = 1000
_LONGEST_TIMEOUT = 1e6  # seconds, eleven days


def check_options(job: JobConfig) -> ModelOptions:
    """The options of the job's model. Raises ValueError for a value that is not one of those allowed, and for a number that is not finite."""
    choices = (
        ("model.dtype", job.model.dtype, DTYPES),
        ("model.shard", job.model.shard, SHARDS),
        ("model.offload", job.model.offload, OFFLOADS),
        ("parallel.layout", job.parallel.layout, LAYOUTS),
        ("parallel.kernel", job.parallel.kernel, KERNELS),
        ("cache.over_budget", job.cache.over_budget, ("refuse", "host")),
        ("device", job.device, _DEVICES),
        ("on_drift", job.on_drift, ("mark", "stop")),
    )
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"{name} is '{value}'; it must be one of {', '.join(known)}.")
    for name, number in _floats(job):
        if not math.isfinite(number):
            raise ValueError(f"{name} is {number}; it must be a finite number.")
    if job.preview_every < 0:
        raise ValueError(f"preview_every is {job.preview_every}; give the steps between previews, or 0 for none.")
    _check_retries(job)
    if job.cache.budget_gb is not None and job.cache.budget_gb <= 0:
        raise ValueError(f"cache.budget_gb is {job.cache.budget_gb:g}; it must be above 0. To render without a cache, set cache=none.")
    if job.attention_backend is not None:
        from ...parallel.attention.kernels import NativeKernel  # diffusers, which takes seconds to import

        NativeKernel(job.attention_backend)
    return ModelOptions(job.model.dtype, job.parallel.layout, job.parallel.kernel, job.attention_backend, job.model.shard, job.model.offload)


def _check_retries(job: JobConfig) -> None:
    if job.snapshot_every < 0:
        raise ValueError(f"snapshot_every is {job.snapshot_every:g}; give the seconds between snapshots, or 0 for none.")
    retries = job.retries
    for name in ("take", "job", "preemptions"):
        if getattr(retries, name) < 0:
            raise ValueError(f"retries.{name} is {getattr(retries, name)}; give a number of times, 0 for none.")
    if retries.wait_minutes < 0:
        raise ValueError(f"retries.wait_minutes is {retries.wait_minutes:g}; give minutes, 0 for none.")
    if not 0 < retries.hung_minutes <= _LONGEST_TIMEOUT / 60:
        raise ValueError(f"retries.hung_minutes is {retries.hung_minutes:g}; give minutes, more than 0 and at most {_LONGEST_TIMEOUT / 60:g}.")


def _floats(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every float of a config, with its dotted name there."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _floats(item, f"{name}[{index}]")
    else:
        inner = {field.name: getattr(value, field.name) for field in fields(value)} if is_dataclass(value) else value
        for key, item in inner.items() if isinstance(inner, dict) else ():
            yield from _floats(item, f"{name}.{key}" if name else str(key))


def check_num_gangs(parallel: ParallelConfig) -> int | None:
    """How many gangs a job asks for, None for as many as find a place."""
    if parallel.num_gangs == "auto":
        return None
    if not parallel.num_gangs.isascii() or not parallel.num_gangs.isdigit() or not 1 <= int(parallel.num_gangs) <= _MOST_GANGS:
        raise ValueError(f"parallel.num_gangs is '{parallel.num_gangs}'; it must be auto, or a number from 1 to {_MOST_GANGS}.")
    return int(parallel.num_gangs)


def priority_of(job: JobConfig, take: TakeConfig) -> int:
    priority = next((one.priority for one in (take, job) if one.priority is not None), 50)
    if not 0 <= priority <= 100:
        raise ValueError(f"Take '{take.name}': priority is {priority}; it must be from 0 to 100.")
    return priority


def check_on_drift(job: JobConfig, card: ModelCard, takes: Sequence[Take]) -> None:
    """Raise ValueError where there is nothing to stop: what is denoised in one round is done before anything of it can be seen."""
    if job.on_drift == "stop" and all(len(take.timeline_for(card).rounds) == 1 for take in takes):
        raise ValueError("on_drift is stop, and no take has several rounds, after which it could be stopped; set on_drift=mark, or timeline=rollout.")


def check_parallel(parallel: ParallelConfig) -> Degrees | None:
    """The degrees that a job gives, None where they are to be chosen."""
    if parallel.degrees not in (None, "auto"):
        raise ValueError(f"parallel.degrees is '{parallel.degrees}'; it must be auto, or be left out beside {', '.join(_DEGREES)}.")
    given = {name: value for name in _DEGREES if (value := getattr(parallel, name)) is not None}
    for name, value in (*given.items(), ("num_ranks", parallel.num_ranks)):
        if value is not None and value < 1:
            raise ValueError(f"parallel.{name} is {value}; it must be at least 1.")
    if parallel.threads < 0:
        raise ValueError(f"parallel.threads is {parallel.threads}; give a number of CPU threads a rank, or 0 to share out the cores.")
    for name in ("placement_timeout", "collective_timeout"):
        if not 0 < getattr(parallel, name) <= _LONGEST_TIMEOUT:
            raise ValueError(f"parallel.{name} is {getattr(parallel, name):g}; it must be above 0 seconds and at most {_LONGEST_TIMEOUT:g}.")
    if not given:
        return None
    degrees = Degrees(**given)
    if parallel.degrees is not None:
        raise ValueError(f"parallel.degrees is {parallel.degrees}, but degrees are given as well ({degrees}); drop one of the two.")
    if parallel.num_ranks is not None and parallel.num_ranks != degrees.num_ranks:
        raise ValueError(
            f"parallel.num_ranks is {parallel.num_ranks}, but the degrees ({degrees}) multiply to {degrees.num_ranks}; "
            f"make them agree, or set parallel=auto."
        )
    return degrees


def check_replay(job: JobConfig, card: ModelCard, takes: Sequence[Take], recipe: Recipe | None, trace: Trace, model: str) -> Replay:
    """The decisions of a trace, to be made again. Raises ValueError if it is of another model, of another number of steps or of other sites."""
    if recipe is None:
        raise ValueError("cache.replay needs the recipe of the take that it replays; set cache.recipe.")
    if trace.model != model:
        raise ValueError(f"The trace '{job.cache.replay}' comes from another model; replay one of this model, or drop cache.replay.")
    for take in takes:
        num_calls = card.sampled_by(take.scheduler).num_calls(take.num_inference_steps)
        if num_calls != trace.num_inference_steps:
            raise ValueError(
                f"The trace '{job.cache.replay}' is of {trace.num_inference_steps} steps, take '{take.name}' has {num_calls}; make them equal."
            )
    traced, kept = {entry.site for entry in trace.entries}, {part.site.build().label for part in recipe.parts}
    if traced != kept:
        raise ValueError(
            f"The trace '{job.cache.replay}' has decisions at {', '.join(traced)}, recipe '{recipe.name}' caches at {', '.join(kept)}; "
            f"set cache.recipe to the one of the trace, or replay another trace."
        )
    return Replay(trace)


def demand(card: ModelCard, takes: Sequence[Take], recipe: Recipe | None) -> Demand:
    """How many heads, tokens, branches, and windows or segments can be shared out over ranks. One gang renders all takes, so the smallest counts."""
    timelines = [take.timeline_for(card) for take in takes]
    tokens = [card.num_tokens(take.fewest_shown(card), take.height, take.width) for take in takes]
    is_derived = recipe is not None and derives_branch(recipe)
    branches = 2 if all(take.is_guided(card) for take in takes) and not is_derived else 1
    hands_on = recipe is not None and hands_on_tokens(recipe, takes, card)
    num_windows = 1 if hands_on else min(timeline.most_windows for timeline in timelines)
    has_ring = not any(timeline.is_banded for timeline in timelines)
    return Demand(card.num_heads, min(tokens), branches, num_windows, has_ring=has_ring)


def check_degrees(degrees: Degrees, card: ModelCard, takes: Sequence[Take], recipe: Recipe | None) -> None:
    if recipe is not None:
        check_gang(recipe, degrees, takes, card)
    ulysses, shared = degrees.ulysses_degree, demand(card, takes, recipe)
    if card.num_heads % ulysses:
        fitting = [n for n in range(1, card.num_heads + 1) if card.num_heads % n == 0]
        raise ValueError(
            f"parallel.ulysses_degree is {ulysses}; it must divide the model's {card.num_heads} heads: {', '.join(map(str, fitting))}. "
            + ("parallel.ring_degree may be any number." if shared.has_ring else "parallel.window_degree may be any number of segments.")
        )
    if degrees.ring_degree > 1 and not shared.has_ring:
        raise ValueError(
            f"parallel.ring_degree is {degrees.ring_degree}, and timeline banded has no ring; set it to 1, and spread the take's segments over "
            f"parallel.window_degree."
        )
    if degrees.cfg_degree > shared.num_branches:
        why = "there are two branches at most" if shared.num_branches == 2 else "not every take has a second branch (guidance_scale 1, or embedded)"
        raise ValueError(f"parallel.cfg_degree is {degrees.cfg_degree}, but {why}; set it to {shared.num_branches}.")
    if degrees.window_degree > shared.num_windows:
        what = "window(s)" if shared.has_ring else "window(s) or segment(s)"
        raise ValueError(f"parallel.window_degree is {degrees.window_degree}, but a take has only {shared.num_windows} {what}; lower it.")
    if shared.num_tokens < degrees.sequence_degree:
        raise ValueError(
            f"A take has {shared.num_tokens} tokens, too few for {degrees.sequence_degree} ranks; lower parallel.ulysses_degree or ring_degree."
        )


def check_device(job: JobConfig, device: str) -> None:
    """device: `cpu` or `cuda`, as given or as found."""
    if job.cache.over_budget == "host" and device == "cpu":
        raise ValueError(f"cache.over_budget is host and device is {device}, whose memory is the host's; set cache.over_budget=refuse.")
