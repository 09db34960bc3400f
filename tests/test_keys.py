"""The keys of a film: what changes the film, what changes its file alone, and what changes neither. A new setting must be classed here."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from longtake.cache import Trace, load_recipe
from longtake.cache.trace.entry import TraceEntry
from longtake.jobs.settings.config import JobConfig, load_job
from longtake.jobs.settings.plan import Plan
from longtake.jobs.settings.planning import plan_job
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.checkpoint.model_hash import model_hash
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.recipes.choose import numbers_path
from test_film import smooth_clip, write_film

JOB: dict[str, Any] = {
    "num_inference_steps": 6,
    "guidance_scale": 4.0,
    "timeline": {"name": "windows", "window": 17, "overlap": 8},
    "cache": {"recipe": "fbcache", "trigger": {"threshold": 0.2}},
    "parallel": {"ulysses_degree": 2},
    "takes": [{"name": "one", "prompts": [{"frame": 0, "text": "a red circle"}, {"frame": 20, "text": "a blue square"}]}],
}
TAKE = ["num_frames=41"]

# Each setting changed on a second run, and what comes of it. film: another film. delivery: the same film in another file. kept: the same
# film, rendered again for what was not kept. neither: a word why the film cannot change.
FILM = {
    "seed": ["seed=5"],
    "num_frames": ["num_frames=45"],
    "height": ["height=48"],
    "width": ["width=48"],
    "num_inference_steps": ["num_inference_steps=7"],
    "guidance_scale": ["guidance_scale=3"],
    "flow_shift": ["flow_shift=5"],
    "scheduler": ["scheduler=unipc"],
    "schedule": ["schedule=SCHEDULE"],
    "negative_prompt": ["negative_prompt=blue"],
    "noise": ["noise=diffusers"],
    "timeline.name": ["takes.0.prompts=[{frame: 0, text: a}]", "timeline=full"],
    "timeline.window": ["timeline.window=21"],
    "timeline.overlap": ["timeline.overlap=4"],
    "timeline.shift": ["timeline.shift=bit_reversed"],
    "timeline.anchors": ["timeline=rollout", "timeline.anchors=1"],
    "timeline.context": ["timeline=rollout", "timeline.context=isolated"],
    "timeline.on_prompt": ["timeline=rollout", "timeline.on_prompt=flush"],
    "takes.continue_from": ["timeline=rollout", "num_frames=40", "takes.0.continue_from=FILM"],
    "takes.reseed.frame": ["timeline=rollout", "takes.0.reseed=[{frame: 20, seed: 5}]", "takes.0.reseed.0.frame=30"],
    "takes.reseed.at": ["timeline=rollout", "takes.0.reseed=[{at: 3s, seed: 5}]"],
    "takes.reseed.seed": ["timeline=rollout", "takes.0.reseed=[{frame: 20, seed: 5}]", "takes.0.reseed.0.seed=6"],
    "model.path": ["model=OTHER"],
    "model.dtype": ["model.dtype=bfloat16"],
    "cache.recipe": ["cache=fora"],
    "cache.replay": ["cache.replay=TRACE"],
    "cache.dtype": ["cache.dtype=bfloat16"],
    "cache.trigger": ["cache.trigger.threshold=0.3"],
    "cache.site": ["cache.site.last_blocks=1"],
    "cache.predictor": ["cache.predictor.name=taylor"],
    "cache.guards": ["cache.guards.max_reused_steps=2"],
    "attention_backend": ["attention_backend=sage"],
    "takes.prompt": ["takes.0.prompt=a red circle", "takes.0.prompts=[]"],
    "takes.prompts.frame": ["takes.0.prompts.1.frame=24"],
    "takes.prompts.at": ["takes.0.prompts=[{text: a red circle}, {at: 3s, text: a blue square}]"],
    "takes.prompts.text": ["takes.0.prompts.1.text=a blue circle"],
}
ON_ANOTHER_TIMELINE = ("timeline.name", "timeline.anchors", "timeline.context", "timeline.on_prompt")  # all changes but the last are before it
DELIVERY = {"fps": ["fps=24"]}
KEPT = {"save_latents": ["save_latents=true"]}
NEITHER = {
    "output": (["output=ELSEWHERE"], "where the film lies"),
    "takes.name": (["takes.0.name=two"], "where the film lies"),
    "preview_every": (["preview_every=3"], "looks at the latents"),
    "priority": (["priority=80"], "when it is begun"),
    "parallel.num_gangs": (["parallel.num_gangs=2"], "how many takes at once"),
    "snapshot_every": (["snapshot_every=5"], "looks at what is done"),
    "retries.take": (["retries.take=0"], "what is tried again"),
    "retries.job": (["retries.job=0"], "what is tried again"),
    "retries.preemptions": (["retries.preemptions=0"], "what is tried again"),
    "retries.wait_minutes": (["retries.wait_minutes=1"], "how long to wait"),
    "retries.hung_minutes": (["retries.hung_minutes=1"], "how long to wait"),
    "on_drift": (["timeline=rollout", "on_drift=stop"], "how much of the film is made, and none of its frames"),
    "device": (["device=cpu"], "the same film on any device, up to rounding"),
    "attention_backend": (["attention_backend=_native_math"], "an exact kernel"),
    "timeline.window": (["num_frames=17", "takes.0.prompts=[{frame: 0, text: a}]", "timeline.window=21"], "one window holds the whole take"),
    "timeline.name": (["num_frames=17", "takes.0.prompts=[{frame: 0, text: a}]", "timeline=full"], "one window holds the whole take"),
    "scheduler": (["scheduler=euler"], "the checkpoint's own"),
    "schedule": (["schedule=none"], "the sampler's own sigmas"),
    "model.name": (["model.name=Wan2.1-T2V-1.3B"], "numbers that are found by it are in the recipe"),
    "model.shard": (["model.shard=gang"], "where the weights are"),
    "model.offload": (["model.offload=blocks"], "where the weights are"),
    "cache.budget_gb": (["cache.budget_gb=1"], "where the cache is"),
    "cache.over_budget": (["cache.over_budget=host"], "where the cache is"),
    "parallel.degrees": (["parallel=auto"], "the gang's shape"),
    "parallel.num_ranks": (["parallel.num_ranks=2"], "the gang's shape"),
    "parallel.cfg_degree": (["parallel.cfg_degree=2"], "the gang's shape"),
    "parallel.window_degree": (["parallel.window_degree=2"], "the gang's shape"),
    "parallel.ring_degree": (["parallel.ring_degree=2"], "the gang's shape"),
    "parallel.ulysses_degree": (["parallel.ulysses_degree=3"], "the gang's shape"),
    "parallel.layout": (["parallel.layout=frames"], "which rank holds a token"),
    "parallel.kernel": (["parallel.kernel=xfuser"], "an exact kernel"),
    "parallel.threads": (["parallel.threads=2"], "how fast"),
    "parallel.placement_timeout": (["parallel.placement_timeout=9"], "how long to wait"),
    "parallel.collective_timeout": (["parallel.collective_timeout=9"], "how long to wait"),
}


def every_setting(config: Any = JobConfig, within: str = "") -> list[str]:
    found = []
    for name, kind in get_type_hints(config).items():
        inner = next((one for one in (*get_args(kind), kind) if is_dataclass(one)), None)
        found += every_setting(inner, f"{within}{name}.") if inner else [within + name]
    return found


class Jobs:
    """Plans of one job with changes."""

    def __init__(self, folder: Path, model: Path) -> None:
        self._folder, self._path = folder, folder / "job.yaml"
        self._path.write_text(yaml.safe_dump({"model": str(model), "output": str(folder / "out"), **JOB}))
        other = Path(shutil.copytree(model, folder / "other"))
        _flip(other / "transformer" / "diffusion_pytorch_model.safetensors")
        site = load_recipe("fbcache").parts[0].site.build().label
        entry = TraceEntry(0, 0, "cond", site, "all", "compute", None, None)
        Trace("fbcache", 6, model_hash(model), [entry]).save(folder / "trace.json")
        (folder / "schedule.yaml").write_text("sigmas: [1.0, 0.9, 0.8, 0.6, 0.4, 0.2]")
        write_film(folder / "film.mp4", smooth_clip(29, 32, 32), fps=8)

    def plan(self, changes: list[str]) -> Plan:
        there = {"OTHER": "other", "TRACE": "trace.json", "SCHEDULE": "schedule.yaml", "ELSEWHERE": "elsewhere", "FILM": "film.mp4"}
        for word, name in there.items():
            changes = [change.replace(word, str(self._folder / name)) for change in changes]
        return plan_job(load_job(str(self._path), [*TAKE, *changes]))

    def key(self, *changes: str) -> str:
        [planned] = self.plan(list(changes)).takes
        return planned.film_key


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, tiny_wan: Path) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("keys"), tiny_wan)


def _flip(weights: Path) -> None:
    """Change one byte in the middle of a file, and nothing of its size or header."""
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)


def test_every_setting_is_classed() -> None:
    settings = set(every_setting())
    of_takes = {name for name in settings if name.startswith("takes.") and name.removeprefix("takes.") in settings}  # the job's own, set for one take
    assert {*FILM, *DELIVERY, *KEPT, *NEITHER} == settings - of_takes


@pytest.mark.parametrize("setting", FILM)
def test_a_setting_that_changes_the_film_changes_its_key(jobs: Jobs, setting: str) -> None:
    before = FILM[setting][:-1] if setting in ON_ANOTHER_TIMELINE else []
    assert jobs.key(*FILM[setting]) != jobs.key(*before)
    assert jobs.plan(FILM[setting]).delivery_key == jobs.plan([]).delivery_key


@pytest.mark.parametrize("setting", NEITHER)
def test_a_setting_that_changes_no_film_leaves_its_key(jobs: Jobs, setting: str) -> None:
    changes, why = NEITHER[setting]
    assert jobs.key(*changes[:-1]) == jobs.key(*changes), why
    assert jobs.plan(changes).delivery_key == jobs.plan([]).delivery_key


def test_a_setting_of_the_delivery_changes_the_delivery_key_alone(jobs: Jobs) -> None:
    plan = jobs.plan(DELIVERY["fps"])
    assert plan.takes[0].film_key == jobs.key()
    assert plan.delivery_key != jobs.plan([]).delivery_key
    assert jobs.plan(["fps=8"]).delivery_key == jobs.plan([]).delivery_key, "which is the model's own"


@pytest.mark.parametrize(
    "change",
    [
        lambda model: _flip(model / "transformer" / "diffusion_pytorch_model.safetensors"),
        lambda model: _flip(model / "vae" / "diffusion_pytorch_model.safetensors"),
        lambda model: (model / "tokenizer" / "tokenizer_config.json").write_text("{}"),
        lambda model: (model / "pytorch_lora_weights.safetensors").write_bytes(b"a LoRA"),
        lambda model: (model / "README.md").write_text(
            (model / "README.md").read_text().replace("max_sequence_length: 32", "max_sequence_length: 33")
        ),
    ],
    ids=["a weight of the transformer", "a weight of the VAE", "tokenizer", "LoRA", "text length"],
)
def test_the_key_is_of_the_whole_model(tiny_wan_copy: Path, tmp_path: Path, change: Any) -> None:
    (tmp_path / "job").mkdir()
    jobs = Jobs(tmp_path / "job", tiny_wan_copy)
    before = jobs.key()
    change(tiny_wan_copy)
    assert jobs.key() != before


def test_what_is_no_part_of_the_model_leaves_its_hash(tiny_wan_copy: Path) -> None:
    before = model_hash(tiny_wan_copy)
    (tiny_wan_copy / "README.md").write_text("# Renamed\n")
    (tiny_wan_copy / "longtake").mkdir()
    (tiny_wan_copy / "longtake" / "planned-6-steps.yaml").write_text("name: planned")
    (tiny_wan_copy / ".cache").mkdir()
    (tiny_wan_copy / ".cache" / "download.json").write_text("{}")
    assert model_hash(tiny_wan_copy) == before


def test_a_part_that_is_a_link_is_hashed(tiny_wan_copy: Path, tmp_path: Path) -> None:
    before = model_hash(tiny_wan_copy)
    (tiny_wan_copy / "transformer").rename(tmp_path / "shared")
    (tiny_wan_copy / "transformer").symlink_to(tmp_path / "shared", target_is_directory=True)
    assert model_hash(tiny_wan_copy) == before
    _flip(tmp_path / "shared" / "diffusion_pytorch_model.safetensors")
    assert model_hash(tiny_wan_copy) != before


def test_a_hash_of_weights_is_remembered_by_path_size_and_time(tiny_wan_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    memory = tmp_path / "caches" / "longtake" / "weights.json"
    weights = sorted(tiny_wan_copy.rglob("*.safetensors"))
    for path in weights:
        os.utime(path, (1e9, 1e9))
    whole = model_hash(tiny_wan_copy)
    known = json.loads(memory.read_text())
    assert set(known) == {str(path.resolve()) for path in weights}
    # What is remembered is not computed again: a false memory is believed ...
    memory.write_text(json.dumps({path: [size, time, "0" * 64] for path, (size, time, _) in known.items()}))
    assert model_hash(tiny_wan_copy) != whole
    # ... until the file is another one.
    for path in weights:
        os.utime(path, (1e9 + 1, 1e9 + 1))
    assert model_hash(tiny_wan_copy) == whole
    # A file that changed just now may change again unseen, and is not remembered.
    memory.unlink()
    for path in weights:
        os.utime(path)
    assert model_hash(tiny_wan_copy) == whole
    assert not memory.exists()


def test_reading_much_is_said_first(tiny_wan_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr("longtake.pipeline.checkpoint.model_hash._WORTH_SAYING", 1e5)
    for path in tiny_wan_copy.rglob("*.safetensors"):
        os.utime(path, (1e9, 1e9))
    told: list[str] = []
    for _ in range(2):
        model_hash(tiny_wan_copy, told.append)
    [line] = told
    assert line.startswith("reading the model's weights, ")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"x": 3}'])
def test_a_memory_that_cannot_be_used_costs_nothing_but_time(tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    whole = model_hash(tiny_wan)
    (tmp_path / "longtake").mkdir()
    (tmp_path / "longtake" / "weights.json").write_bytes(content)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert model_hash(tiny_wan) == whole
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "longtake" / "weights.json"))  # a file, where nothing can be made
    assert model_hash(tiny_wan) == whole


@pytest.mark.parametrize("backend", ["sage", "sage_hub", "_sage_qk_int8_pv_fp16_cuda"])
def test_lossy_attention_is_part_of_the_key(backend: str) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert ModelOptions(attention_backend=backend).lossy_attention == backend
    exact = {name.value for name in AttentionBackendName if ModelOptions(attention_backend=name.value).lossy_attention is None}
    assert {"native", "flash", "_flash_3_hub", "flex", "xformers", "_native_cudnn"} <= exact
    assert not any("sage" in name for name in exact)


def test_the_demo_s_own_plan_is_of_the_demo_model() -> None:
    card = read_card("demo")
    calibration = load_recipe(numbers_path(card, "planned", 50)).calibration
    assert calibration is not None
    assert calibration.model == model_hash(card.path)


def test_numbers_of_another_model_mean_no_cache_where_none_was_named(tiny_wan_copy: Path, tmp_path: Path) -> None:
    """A LoRA was merged into the model since it was calibrated."""
    (tiny_wan_copy / "longtake").mkdir()
    shipped = load_recipe(numbers_path(read_card("demo"), "planned", 50))
    for name, model in (("stale", "0" * 64), ("fresh", model_hash(tiny_wan_copy))):
        assert shipped.calibration is not None
        recipe = replace(shipped, calibration=replace(shipped.calibration, model=model))
        (tiny_wan_copy / "longtake" / "planned-50-steps.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
        job = tmp_path / "job.yaml"
        job.write_text(f"model: {tiny_wan_copy}\noutput: {tmp_path}/out\nguidance_scale: 4\ntakes: [{{name: a, prompt: a red circle}}]\n")
        plan = plan_job(load_job(str(job)))
        assert (plan.recipe is None) == (name == "stale")
        assert ("calibrated for another model" in plan.why_no_cache) == (name == "stale")
        if name == "stale":
            with pytest.raises(ValueError, match="calibrated for another model"):
                plan_job(load_job(str(job), ["cache=planned"]))
