"""From a job as people write it to a plan: read, resolved and checked, with the hash of the model and a look into the output folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ...cache import Recipe, Trace, load_recipe
from ...pipeline.checkpoint.card import ModelCard, read_card
from ...pipeline.checkpoint.model_hash import model_hash
from ...pipeline.film.encoder import check_encoder
from ...pipeline.film.frame_rate import frame_rate
from ...pipeline.film_key import film_key, round_keys
from ...pipeline.recipes.check import check_beside_schedule, check_recipe
from ...pipeline.recipes.choose import default_recipe, find_recipe
from ...pipeline.take import Take
from ..folder.access import check_writable
from ..folder.folder import Todo
from .checks import check_degrees, check_device, check_num_gangs, check_on_drift, check_options, check_parallel, check_replay, priority_of
from .config import JobConfig, resolve_takes
from .plan import Plan, PlannedTake
from .prompts import where_prompts_begin, where_reseeds_begin


def plan_job(job: JobConfig, *, force: bool = False, say: Callable[[str], None] = lambda line: None) -> Plan:
    """Check a job and plan its takes. say: called with a line before what takes long, and
    for what the job leaves to be found out. Raises ValueError with the offending value and the mend."""
    if not job.model.path:
        raise ValueError("The job names no model; set `model: demo`, or the path of a checkpoint in diffusers' format.")
    if not job.output:
        raise ValueError("The job names no output folder; set `output: ...`.")
    options = check_options(job)
    degrees, num_gangs = check_parallel(job.parallel), check_num_gangs(job.parallel)
    card = read_card(job.model.path, job.model.name)
    fps = frame_rate(card.fps if job.fps is None else job.fps)
    output = Path(job.output).absolute()
    _check_chain(job, output)
    takes = resolve_takes(job, card, fps)
    check_on_drift(job, card, takes)
    for take, written in zip(takes, job.takes, strict=True):
        for line in (*where_prompts_begin(take, written.all_prompts, card, fps), *where_reseeds_begin(take, card, fps)):
            say(line)
    # Checks that do not need the model's hash come first: computing it may take minutes the first time.
    if degrees is not None:
        check_degrees(degrees, card, takes, None)
    named = _named_recipe(job, card, takes)
    trace = None if job.cache.replay is None else Trace.load(Path(job.cache.replay))
    check_encoder()
    job = replace(job, output=str(output))  # whoever renders it may work in another folder by then
    folders = [output / take.name for take in takes]
    check_writable(output, folders)
    model = model_hash(card.path, say)
    for take in takes:
        if take.schedule is not None:
            take.schedule.check_model(f"Take '{take.name}'", model)
    recipe, why = _choose_recipe(job, card, takes, named, model)
    replay = None if trace is None else check_replay(job, card, takes, recipe, trace, model)
    keys = [film_key(card, model, take, recipe, options, trace) for take in takes]
    rounds = [round_keys(card, model, take, recipe, options, trace) for take in takes]
    planned = [
        PlannedTake(take, folder, key, Todo.RENDER, each if len(each) > 1 or take.continue_from else (), priority_of(job, written))
        for take, folder, key, each, written in zip(takes, folders, keys, rounds, job.takes, strict=True)
    ]
    plan = Plan(job, card, recipe, why, fps, tuple(planned), degrees, num_gangs, options, model, replay, force)
    if degrees is not None:
        plan.check(degrees, job.device)
    elif job.device != "auto":
        check_device(job, job.device)
    plan = replace(plan, takes=tuple(replace(one, todo=plan.look(one)) for one in planned))
    _check_chain(job, output, plan.takes)
    return plan


def _check_chain(job: JobConfig, output: Path, planned: Sequence[PlannedTake] | None = None) -> None:
    """Raise ValueError for a take that goes on from a film of this job which the job is to render, or to move aside. planned: the takes with what is
    left to do for them, None while that is not known.
    """
    for take in job.takes:
        film = None if take.continue_from is None else Path(take.continue_from).absolute()
        for number, other in enumerate(job.takes):
            if film is None or not film.is_relative_to(output / other.name) or not other.name:
                continue
            where = f"Take '{take.name}': continue_from is '{take.continue_from}', the film of"
            if other is take:
                raise ValueError(f"{where} this very take, which would be moved away; give the take another name.")
            if not film.exists() or (planned is not None and not planned[number].is_done):
                raise ValueError(f"{where} take '{other.name}', which this job is to render; render that one by a job of its own first.")


def _named_recipe(job: JobConfig, card: ModelCard, takes: Sequence[Take]) -> Recipe | None:
    """The recipe that the job names, None where it names none."""
    cache = job.cache
    if cache.recipe in ("default", "none"):
        return None
    for take in takes:
        check_beside_schedule(load_recipe(cache.recipe), take)
    return find_recipe(cache.recipe, card, takes[0].num_inference_steps, cache.changes(), cache.dtype, scheduler=takes[0].scheduler)


def _choose_recipe(job: JobConfig, card: ModelCard, takes: Sequence[Take], named: Recipe | None, model: str) -> tuple[Recipe | None, str]:
    """The recipe that all takes are rendered with, or None, and why none where the job leaves the choice open. model: the model's hash."""
    recipe, why = named, ""
    if job.cache.recipe == "default":
        recipe, why = default_recipe(card, takes, model, job.cache.changes(), job.cache.dtype)
    if recipe is None and job.cache.changes():
        raise ValueError(f"cache.recipe is none here, but cache sets {', '.join(job.cache.changes())}; name a recipe, or drop these.")
    if recipe is not None:
        for take in takes:
            check_recipe(recipe, card, take, model)
    return recipe, why
