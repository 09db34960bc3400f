"""A job as people write it: YAML and dotted overrides into structured configs, resolved against a model's card."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ...cache.recipe.config import suggestion
from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.earlier_film import check_film, find_film
from ...pipeline.recipes.schedules import find_schedule
from ...pipeline.take import PromptError, Take, TimelineSettings
from .prompts import PromptConfig, SeedConfig, resolve_prompts, resolve_reseeds, timed_prompts
from .values import SHORTHANDS, field_types, override, parse_file


@dataclass
class TimelineConfig:
    """How a take's frames are shown to the model.

    name: `full`, `windows`, `rollout` or `banded`. window: the frames of a call, or those that a segment of a banded take attends to, the model's own
    clip length if left out. overlap: how many frames a window shares with the next one, or a chunk of a rollout is shown of those before it, a third
    of the window if left out. anchors: how many of the take's first latent frames each chunk of a rollout is shown as well, or each segment of a
    banded take attends to as well, which are part of its window; none if left out. context: of a rollout, `joint`, as if left out, or
    `isolated`, for models that were trained so: the context attends to itself alone, and is computed once a chunk instead of at every step.
    on_prompt: of a rollout whose prompt changes, `recache`, as if left out, shows the next chunk the same frames with the new text, `flush` cuts
    them to the last two and one anchor. shift: of windows, `none`, as if left out, or `bit_reversed`: they begin elsewhere at each step, so that
    their seams are nowhere for long.
    """

    name: str = "full"
    window: int | None = None
    overlap: int | None = None
    anchors: int | None = None
    context: str | None = None
    on_prompt: str | None = None
    shift: str | None = None


@dataclass
class CacheConfig:
    """The cache of all takes.

    recipe: a name, a YAML path, `none`, or `default`: `planned` where it was calibrated on the model, none elsewhere and beside a schedule.
    replay: path of a trace whose decisions are made again. dtype: in which features are kept: `model`, `bfloat16`, `float16` or `float8`.
    budget_gb: the most that a rank's cache may hold, in 1e9 bytes; over_budget: what to do with a cache that would hold more, `refuse` it or
    keep it in the memory of the `host`. trigger, site, predictor, guards: settings of the recipe's parts that differ from its file.
    """

    recipe: str = "default"
    replay: str | None = None
    dtype: str | None = None
    budget_gb: float | None = None
    over_budget: str = "refuse"
    trigger: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)
    guards: dict[str, Any] = field(default_factory=dict)

    def changes(self) -> dict[str, dict[str, Any]]:
        return {part: settings for part in ("trigger", "site", "predictor", "guards") if (settings := getattr(self, part))}


@dataclass
class ParallelConfig:
    """The shape of the gang. Where none of the four degrees is given they are chosen (degrees: `auto`, or left out) for `num_ranks` ranks: if
    that is left out as well, for all GPUs of the cluster, or for one rank on the CPU where there are none. A degree that is left out beside
    others is 1.

    layout: how tokens are split over the ranks, `even` or by whole latent `frames`. kernel: `native` or `xfuser`. threads: CPU threads a
    rank, 0 to share out the cores. placement_timeout: seconds until Ray must have placed the ranks; collective_timeout: seconds that ranks
    wait for each other. num_gangs: how many such gangs render at the same time, each a take of its own, or `auto`: as many as find a place.
    """

    degrees: str | None = None
    num_ranks: int | None = None
    cfg_degree: int | None = None
    window_degree: int | None = None
    ring_degree: int | None = None
    ulysses_degree: int | None = None
    layout: str = "even"
    kernel: str = "native"
    threads: int = 0
    placement_timeout: float = 60.0
    collective_timeout: float = 60.0
    num_gangs: str = "1"


@dataclass
class ModelConfig:
    """The model, and how ranks hold it.

    path: `demo`, or a checkpoint's folder. name: the model's name, by which the published numbers of recipes are found; if left out, the
    one that its README.md states, or else its folder's. shard: `gang` splits the weights over the ranks that share a take's tokens, `none`
    keeps all of them on each rank. offload: `blocks` keeps the blocks' weights off the accelerator while they are not used (on CPU: in
    files), `none` does not.
    """

    path: str = ""
    name: str = ""
    dtype: str = "float32"
    shard: str = "none"
    offload: str = "none"


@dataclass
class RetryConfig:
    """What is tried again after a failure, from the take's last snapshot. take: how often the same take; job: how often all of its takes together;
    preemptions: how often the cluster may take nodes away from the job, which counts as no retry. wait_minutes: how long a full disk, or storage that
    does not answer, is waited for. hung_minutes: after how long a take that nothing is heard of counts as hung.
    """

    take: int = 3
    job: int = 30
    preemptions: int = 100
    wait_minutes: float = 60.0
    hung_minutes: float = 30.0


@dataclass
class TakeSettings:
    """What a job sets for all takes and each take may set for itself; None falls back to the job, then to the model.

    scheduler: the sampler, `euler`, `unipc` or `dpm++`, the model's own if left out. schedule: the sigmas that it steps at: `planned`, which was
    made for the model by `longtake calibrate`, a YAML path, or `none`, as if left out, for those that the sampler makes itself. priority: 0 to 100,
    50 if left out: takes of a higher one are begun first.
    """

    seed: int | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    scheduler: str | None = None
    schedule: str | None = None
    negative_prompt: str | None = None
    noise: str | None = None
    timeline: TimelineConfig | None = None
    priority: int | None = None


@dataclass
class TakeConfig(TakeSettings):
    """One take. name: of its folder. prompt, or prompts for one that changes: one of the two. continue_from: path of a film that it goes on from.
    reseed: of a rollout, other seeds from a frame or a time on.
    """

    name: str = ""
    prompt: str | None = None
    prompts: list[PromptConfig] = field(default_factory=list)
    continue_from: str | None = None
    reseed: list[SeedConfig] = field(default_factory=list)

    @property
    def all_prompts(self) -> list[PromptConfig]:
        """The prompt alone, or the prompts."""
        return self.prompts if self.prompt is None else [PromptConfig(text=self.prompt)]


@dataclass
class JobConfig(TakeSettings):
    """A job: its takes and what they share.

    preview_every: steps between previews, 0 for none. snapshot_every: seconds, at least, between snapshots that a take which was interrupted goes on
    from, 0 for none. save_latents: keep latents.safetensors beside the film. on_drift: what becomes of a take that
    freezes, loops, drifts or jumps past a limit: `mark`, it is said in manifest and report, or `stop`, it ends with the round that does, and fails.

    attention_backend: one of diffusers' (native, flash, _flash_3_hub, sage ...), its default if left out. fps: the film's frames a second
    (24, 23.976, 24000/1001), the model's own if left out. `~` and environment variables in paths are filled in.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    output: str = ""
    takes: list[TakeConfig] = field(default_factory=list)
    cache: CacheConfig = field(default_factory=CacheConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    retries: RetryConfig = field(default_factory=RetryConfig)
    device: str = "auto"
    attention_backend: str | None = None
    fps: str | None = None
    preview_every: int = 10
    snapshot_every: float = 60.0
    save_latents: bool = False
    on_drift: str = "mark"


RESERVED_NAMES = ("events.jsonl", "report")  # the job's own, beside the takes' folders
_LONGEST_NAME = 200  # characters; file systems take 255, and other films of the take are kept beside it under longer names
_LONGEST_SHOWN = 60  # characters of a value in a message
_TIMELINE_SETTINGS = {
    "full": (),
    "windows": ("window", "overlap", "shift"),
    "rollout": ("window", "overlap", "anchors", "context", "on_prompt"),
    "banded": ("window", "anchors"),
}
_FALLBACKS = TakeSettings(seed=0, num_inference_steps=50, negative_prompt="", noise="frame", timeline=TimelineConfig())


def load_job(job: str | Path | Mapping[str, Any] | JobConfig, overrides: Sequence[str] = ()) -> JobConfig:
    """A job from a YAML file's path, from a mapping of the same form, or from a config; overrides: `key=value`, as on the command line.

    Raises ValueError for a missing file, broken YAML, unknown keys and wrong types, with the value and the mend.
    """
    for change in overrides:
        if not isinstance(change, str) or "=" not in change:
            raise ValueError(f"'{change}' is no override; write key=value, cache=none or parallel.ulysses_degree=4 for example.")
    where = f"'{job}'" if isinstance(job, str | Path) else "The job"
    values = _values(job)
    for change in overrides:
        key, text = change.split("=", 1)
        override(values, key, text, JobConfig)
        _spell_out(values)
    _check_keys(values, JobConfig, "The job")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(JobConfig), OmegaConf.create(_escaped(values))))
    except OmegaConfBaseException as error:
        key = f" (at '{error.full_key}')" if error.full_key else ""
        raise ValueError(f"{where}: {str(error).splitlines()[0]}{key}.") from None
    assert isinstance(config, JobConfig)
    _check_reach(config, overrides)
    return _with_paths(config)


def _values(job: str | Path | Mapping[str, Any] | JobConfig) -> dict[str, Any]:
    """The job as nested dicts and lists, a copy that may be changed."""
    if isinstance(job, str | Path):
        return _read(str(job))
    if not isinstance(job, Mapping | JobConfig):
        raise ValueError(f"A job is a YAML file's path, a mapping or a JobConfig, not a {type(job).__name__}.")
    values = _plain(asdict(job) if isinstance(job, JobConfig) else job)
    _spell_out(values)
    return values


def _plain(value: Any) -> Any:
    """A copy of nested mappings and sequences as dicts and lists; paths as texts."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if type(value).__module__ == "numpy":
        return _plain(value.tolist())
    return str(value) if isinstance(value, Path) else value


def _read(path: str) -> dict[str, Any]:
    file = Path(expanded(path, "The job file"))
    if not file.is_file():
        raise ValueError(f"There is no job file '{path}'; give the path of a YAML file, configs/demo.yaml for example.")
    try:
        values = parse_file(file.read_bytes(), JobConfig)
    except OSError as error:
        raise ValueError(f"The job file '{path}' cannot be read ({error.strerror}); check its permissions.") from None
    except ValueError as error:
        raise ValueError(f"'{path}' {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"'{path}' must be a mapping with model, output and takes.")
    _spell_out(values)
    return values


def _spell_out(values: Any) -> None:
    """`cache: fbcache` becomes `cache: {recipe: fbcache}`, and `timeline: windows` likewise, in the job and in its takes."""
    for group in (values, *(values.get("takes") or () if isinstance(values.get("takes"), list) else ())):
        for key, inner in SHORTHANDS.items():
            if isinstance(group, dict) and isinstance(group.get(key), str):
                group[key] = {inner: group[key]}


def _escaped(value: Any) -> Any:
    """Jobs do not use OmegaConf's interpolations: `${...}` in a text is escaped, so that it stays as it is written."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    if isinstance(value, dict):
        return {key: _escaped(inner) for key, inner in value.items()}
    return [_escaped(inner) for inner in value] if isinstance(value, list) else value


def _check_reach(job: JobConfig, overrides: Sequence[str]) -> None:
    """Raise ValueError for an override of a setting of all takes that changes none of them, as each sets its own value."""
    for change in overrides:
        name = re.split(r"[.=\[]", change)[0]
        if job.takes and name in field_types(TakeSettings) and all(getattr(take, name) is not None for take in job.takes):
            key = change.split("=", 1)[0]
            raise ValueError(f"'{change}' reaches no take: every take sets {name} itself; write takes.*.{key}=..., or takes.0.{key}=... for one.")


def _with_paths(job: JobConfig) -> JobConfig:
    """The job with `~` and environment variables in its paths filled in."""
    replay = job.cache.replay
    cache = replace(
        job.cache,
        recipe=_name_or_path(job.cache.recipe, "cache.recipe"),
        replay=None if replay is None else expanded(replay, "cache.replay"),
    )
    model = replace(job.model, path=expanded(job.model.path, "model"))
    schedule = job.schedule and _name_or_path(job.schedule, "schedule")
    takes = [
        replace(
            take,
            schedule=take.schedule and _name_or_path(take.schedule, "schedule"),
            continue_from=None if take.continue_from is None else expanded(take.continue_from, "continue_from"),
        )
        for take in job.takes
    ]
    return replace(job, output=expanded(job.output, "output"), model=model, cache=cache, schedule=schedule, takes=takes)


def _name_or_path(text: str, what: str) -> str:
    return expanded(text, what) if text.endswith((".yaml", ".yml")) else text


def expanded(path: str, what: str) -> str:
    """A path with `~` and environment variables filled in. Raises ValueError for a variable or a user that does not exist."""
    filled = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - pathlib's raises, and takes paths apart
    if path.startswith("~") and filled.startswith("~") and not Path(path).exists():
        raise ValueError(f"{what} is '{path}', and there is no such user; write the path without '~'.")
    if (missing := re.search(r"\$(\w+|\{\w+\})", filled)) and not Path(filled).exists():
        raise ValueError(f"{what} is '{path}', and there is no environment variable {missing[0]}; set it, or write the path itself.")
    return filled


_NESTED = {
    "model": ModelConfig,
    "takes": TakeConfig,
    "prompts": PromptConfig,
    "reseed": SeedConfig,
    "timeline": TimelineConfig,
    "cache": CacheConfig,
    "parallel": ParallelConfig,
    "retries": RetryConfig,
}


_ENTRIES = {"takes": "{name: one, prompt: fog}", "prompts": "{frame: 0, text: fog}", "reseed": "{at: 12s, seed: 7}"}
_LISTS = tuple(_ENTRIES)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _check_keys(values: dict[str, Any], config_class: type, where: str) -> None:
    known = [f.name for f in fields(config_class)]
    for key, value in values.items():
        if key not in known:
            raise ValueError(f"{where} has no setting '{key}'. {suggestion(str(key), known)}")
        if key in _NESTED:
            if isinstance(value, list) != (key in _LISTS) and not (value is None and key not in _LISTS):
                wanted = "a list; write `- ` before each of its entries" if key in _LISTS else "a mapping; drop the `- ` before its entries"
                raise ValueError(f"{where.removesuffix(',')}: {key} is {_short(value)}; it must be {wanted}.")
            items = value if isinstance(value, list) else [value]
            for index, item in enumerate(items):
                group = f"{key}[{index}]" if isinstance(value, list) else key
                if key in _LISTS and not isinstance(item, dict):
                    raise ValueError(f"{where.removesuffix(',')}: {group} is {_short(item)}; it must be a mapping, {_ENTRIES[key]} for example.")
                if isinstance(item, dict):
                    _check_keys(item, _NESTED[key], f"{where.removesuffix(',')}, {group},")


def resolve_takes(job: JobConfig, card: ModelCard, fps: Fraction) -> list[Take]:
    """All takes with every default filled in, checked against the model. fps: the films' frames a second. Raises ValueError."""
    if not job.takes:
        raise ValueError("The job has no takes; add `takes: [{name: ..., prompt: ...}]`.")
    for index, take in enumerate(job.takes):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", take.name):
            raise ValueError(f"takes[{index}]: name is '{take.name}'; it names a folder, so use letters, digits, '.', '_' and '-'.")
        if take.name.lower() in RESERVED_NAMES:
            raise ValueError(f"takes[{index}]: name is '{take.name}', which the job uses for files of its own; give the take another name.")
        if len(take.name) > _LONGEST_NAME:
            raise ValueError(f"takes[{index}]: name has {len(take.name)} characters ('{take.name[:20]}...'); give it at most {_LONGEST_NAME}.")
    names = [take.name for take in job.takes]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"Two takes are called '{name}'; each needs a name of its own.")
    takes = [_resolve_take(job, take, card, fps) for take in job.takes]
    for resolved, take in zip(takes, job.takes, strict=True):
        try:
            resolved.check(card)
            check_film(resolved, card, fps)
        except PromptError as error:
            raise ValueError(f"{error}{timed_prompts(resolved, take.all_prompts)}") from None
    return takes


def _resolve_take(job: JobConfig, take: TakeConfig, card: ModelCard, fps: Fraction) -> Take:
    num_frames = card.trained_frames if take.continue_from is None else card.trained_frames - 1
    model = TakeSettings(num_frames=num_frames, height=card.height, width=card.width, guidance_scale=float(card.guidance_scale))
    layers: tuple[TakeSettings, ...] = (take, job, model, _FALLBACKS)

    def setting(name: str) -> Any:
        return next((value for layer in layers if (value := getattr(layer, name)) is not None), None)

    if take.prompt is not None and take.prompts:
        raise ValueError(f"Take '{take.name}' has both prompt and prompts; keep one.")
    prompts = resolve_prompts(take.name, take.all_prompts, fps)
    values = {name.name: setting(name.name) for name in fields(TakeSettings)}
    values["timeline"] = resolve_timeline(values["timeline"], card, take.name)
    schedule, _ = values.pop("schedule"), values.pop("priority")
    film = None if take.continue_from is None else find_film(take.name, take.continue_from)
    reseeds = resolve_reseeds(take.name, take.reseed, fps)
    resolved = Take(name=take.name, prompts=prompts, continue_from=film, reseeds=reseeds, **values)
    return resolved if schedule is None else replace(resolved, schedule=find_schedule(schedule, card, resolved))


def resolve_timeline(timeline: TimelineConfig, card: ModelCard, take: str) -> TimelineSettings:
    """The timeline with window and overlap in latent frames instead of frames."""
    given = [name for name in ("window", "overlap", "anchors", "context", "on_prompt", "shift") if getattr(timeline, name) is not None]
    for name in given:
        if name not in _TIMELINE_SETTINGS.get(timeline.name, given):
            having = " or ".join(other for other, names in _TIMELINE_SETTINGS.items() if name in names)
            raise ValueError(f"Take '{take}': timeline.{name} belongs to timeline {having}, not {timeline.name}.")
    if timeline.name == "full":
        return TimelineSettings("full", 0, 0)
    stride = card.temporal_stride
    window = card.trained_frames if timeline.window is None else timeline.window
    if window < 1 or (window - 1) % stride:
        raise ValueError(f"Take '{take}': timeline.window is {window}; it must be 1 more than a multiple of {stride}.")
    shown, anchors = card.latent_frames(window), timeline.anchors or 0
    if anchors < 0:
        raise ValueError(f"Take '{take}': timeline.anchors is {timeline.anchors}; it must be a number of latent frames, 0 for none.")
    others = 2 if timeline.name == "rollout" else 1  # that a window must have room for beside its anchors: a new frame, and one before it
    if shown < others:
        raise ValueError(f"Take '{take}': timeline.window is {window}; a rollout shows clean frames and new ones, {stride + 1} at least.")
    if anchors > shown - others:
        raise ValueError(
            f"Take '{take}': timeline.anchors is {anchors}; in a window of {shown} latent frames there is room for {shown - others} at most."
        )
    if timeline.name == "banded":
        return TimelineSettings("banded", shown, 0, anchors)
    least = 1 if timeline.name == "rollout" else 0
    overlap = min(max(least, shown // 3), shown - anchors - 1) * stride if timeline.overlap is None else timeline.overlap
    if overlap % stride:
        raise ValueError(f"Take '{take}': timeline.overlap is {overlap}; it must be a multiple of {stride} frames.")
    if not least <= overlap // stride < shown - anchors:
        where, most = f"a window of {window} frames{f' and {anchors} anchor(s)' if anchors else ''}", (shown - anchors - 1) * stride
        raise ValueError(f"Take '{take}': timeline.overlap is {overlap}; with {where} it must be from {least * stride} to {most} frames.")
    how = {name: value for name in ("context", "on_prompt", "shift") if (value := getattr(timeline, name)) is not None}
    return TimelineSettings(timeline.name, shown, overlap // stride, anchors, **how)
