"""Caches on diffusers' own pipelines and transformers: which calls are which, and what else is part of a model."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from longtake.cache import Shards, enable_cache, load_recipe
from longtake.cache.sampler.linear_map import linear_map
from PIL import Image
from torch import Tensor

from same import assert_same
from stock import MODELS, SITES, Pipeline, apart, call, every, flow_sampler, rows_of, tiny_pipeline, tiny_transformer

pytestmark = pytest.mark.numerical

# What else there is in a model than its blocks


@pytest.mark.parametrize(("model", "recipe"), product(MODELS, SITES))
@torch.no_grad()
def test_on_the_same_input_a_reused_call_gives_what_a_computed_one_gave(model: str, recipe: str) -> None:
    """Hints and faces that the model adds between its blocks are part of what is kept, and computing through a site changes nothing."""
    transformer, given = tiny_transformer(model)
    plain = transformer(**given, return_dict=False)[0]
    cached = enable_cache(transformer, every(9, recipe), num_inference_steps=9)
    for step in range(3):
        with cached.step(step, 500.0, "cond"):
            assert_same(transformer(**given, return_dict=False)[0], plain)
    assert [decision for _, decision in rows_of(cached)["cond"]] == ["compute", "reuse", "reuse"]
    cached.disable()
    assert torch.equal(transformer(**given, return_dict=False)[0], plain)


_TEAL = Image.new("RGB", (32, 32), "teal")
_IMAGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "WanVACEPipeline",
        {"transformer": MODELS[1], "vace_layers": [0, 2], "vace_in_channels": 72},
        {"video": [Image.new("RGB", (32, 32), "teal")] * 5},
    ),
    ("WanImageToVideoPipeline", {"in_channels": 12}, {"image": Image.new("RGB", (32, 32), "teal")}),
]


@pytest.mark.parametrize(("kind", "sizes", "given"), _IMAGES, ids=lambda value: value if isinstance(value, str) else "")
def test_pipelines_that_are_given_pictures(tiny_wan: Path, kind: str, sizes: dict[str, Any], given: dict[str, Any]) -> None:
    pipe = tiny_pipeline(tiny_wan, kind, **sizes)
    plain, other = call(pipe, **given), call(pipe, **{name: _painted(value) for name, value in given.items()})
    assert apart(other, plain) > 1e-3, "the picture must tell"
    for recipe in SITES:
        cached = enable_cache(pipe, every(1, recipe), num_inference_steps=8)
        assert_same(call(pipe, **given), plain)
        cached.disable()
        cached = enable_cache(pipe, every(2, recipe), num_inference_steps=8)
        assert call(pipe, **given).isfinite().all()
        assert [decision for _, decision in rows_of(cached)["uncond"]] == ["compute", "reuse"] * 3 + ["compute"] * 2
        cached.disable()


def _painted(value: Any) -> Any:
    return [_painted(one) for one in value] if isinstance(value, list) else Image.new("RGB", value.size, "orange")


def test_what_is_but_half_supported_is_refused(tiny_wan: Path) -> None:
    """By enable_cache itself, before a call is made, with the mend."""
    pipe = tiny_pipeline(tiny_wan)
    blind = tiny_pipeline(tiny_wan, "SkyReelsV2DiffusionForcingPipeline")
    replacing = diffusers.HunyuanVideoTransformer3DModel(
        **{**tiny_transformer(MODELS[3])[0].config, "image_condition_type": "token_replace"}  # type: ignore[dict-item]
    )
    ltx = diffusers.LTXVideoTransformer3DModel(in_channels=8, num_attention_heads=2, attention_head_dim=16, num_layers=2, caption_channels=16)
    for model, recipe, message in (
        (blind, "fbcache", "SkyReelsV2DiffusionForcingPipeline is no pipeline whose calls the cache can tell apart .*`with cached.step"),
        (replacing, "fbcache", "image_condition_type token_replace"),
        (ltx, "fora", "LTXVideoTransformer3DModel is no transformer whose blocks the cache knows .*easycache"),
        (torch.nn.Linear(2, 2), "fbcache", "not on a Linear"),
        (object(), "fbcache", "object has no transformer"),
        (torch.compile(tiny_transformer(MODELS[0])[0]), "fbcache", r"transformer\.compile_repeated_blocks\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            enable_cache(model, recipe, num_inference_steps=8)
    for options, message in (
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 4.5}, "num_inference_steps is 4.5; it must be a whole"),
        ({"num_inference_steps": 8, "place": "hots"}, "place is 'hots'"),
    ):
        with pytest.raises(ValueError, match=message):
            enable_cache(pipe, "fbcache", **options)
    assert pipe.transformer.__dict__.keys() == tiny_pipeline(tiny_wan).transformer.__dict__.keys()


# Which call is which


def test_calls_that_end_early_leave_nothing_behind(tiny_wan: Path) -> None:
    pipe = tiny_pipeline(tiny_wan)
    enable_cache(pipe, "fbcache", num_inference_steps=8)
    plain = call(pipe)

    def stop(pipe: Pipeline, step: int, timestep: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        raise MemoryError

    for options in ({"callback_on_step_end": stop}, {"steps": 1}, {"steps": 1, "seed": 2}):
        try:
            call(pipe, **options)
        except MemoryError:
            assert "callback_on_step_end" in options
        assert_same(call(pipe), plain)


@pytest.mark.parametrize("steps", [6, 12, 15])
def test_a_call_has_as_many_steps_as_its_own_schedule(tiny_wan: Path, steps: int) -> None:
    pipe = tiny_pipeline(tiny_wan)
    cached = enable_cache(pipe, every(3), num_inference_steps=12)
    call(pipe, steps)
    expected = [(step, "compute" if step % 3 == 0 or step == steps - 1 else "reuse") for step in range(steps)]
    assert rows_of(cached) == {"cond": expected, "uncond": expected}
    assert cached.trace.num_inference_steps == steps


@pytest.mark.parametrize("recipe", ["fora", "easycache", "fbcache"])
def test_guidance_that_starts_late_is_counted_by_the_schedule(tiny_wan: Path, recipe: str) -> None:
    """Each branch for itself, and where the conditional one decides for both."""
    pipe = tiny_pipeline(tiny_wan)
    with torch.no_grad():
        prompt, negative = pipe.encode_prompt("a red circle moves left", "blue", True, max_sequence_length=32)

    def later(pipe: Pipeline, step: int, timestep: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 4.0 if 3 <= step < 7 else 1.0
        return {}

    cached = enable_cache(pipe, recipe, num_inference_steps=10)
    call(pipe, 10, prompt_embeds=prompt, negative_prompt_embeds=negative, guidance_scale=1.0, callback_on_step_end=later)
    rows = rows_of(cached)
    assert [step for step, _ in rows["cond"]] == list(range(10))
    assert [step for step, _ in rows["uncond"]] == [4, 5, 6, 7]
    assert rows["uncond"][0][1] == rows["cond"][-1][1] == "compute"


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_branches_are_told_by_their_order_where_a_pipeline_does_not_name_them(tiny_wan: Path, strength: float) -> None:
    """Video to video, which starts in mid-schedule: the same decisions and film as with the branches named."""
    films, traces = [], []
    for names in (False, True):
        pipe = tiny_pipeline(tiny_wan, "WanVideoToVideoPipeline")
        pipe.scheduler = flow_sampler("UniPCMultistepScheduler")
        cached = enable_cache(pipe, every(3), num_inference_steps=8)
        if names:
            _name_branches(pipe.transformer)
        films.append(call(pipe, video=[Image.new("RGB", (32, 32), "white")] * 5, strength=strength))
        traces.append(rows_of(cached))
    first = 0 if strength == 1.0 else 4
    assert [step for step, _ in traces[0]["uncond"]] == list(range(first, 8))
    assert traces[0] == traces[1]
    assert_same(*films)
    assert ("reuse" in dict(traces[0]["cond"]).values()) and traces[0]["cond"][-1][1] == "compute"


def _name_branches(transformer: Any) -> None:
    forward, names = transformer.forward, iter(("cond", "uncond") * 99)

    def named(*args: Any, **kwargs: Any) -> Any:
        with transformer.cache_context(next(names)):
            return forward(*args, **kwargs)

    transformer.forward = named


@pytest.mark.parametrize("recipe", ["taylorseer", "fbcache", "easycache", "racer"])
def test_a_sampler_that_calls_the_model_twice_a_step(tiny_wan: Path, recipe: str) -> None:
    """To a cache each call of Heun's is a step; two of them at one sigma."""
    pipe = tiny_pipeline(tiny_wan)
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    plain = call(pipe)
    values = every(2, recipe).to_dict() | {"abscissa": "sigma"}
    cached = enable_cache(pipe, load_recipe(values), num_inference_steps=8)
    film = call(pipe)
    rows = rows_of(cached)
    assert [step for step, _ in rows["cond"]] == list(range(15))
    assert rows["cond"] == rows["uncond"]
    assert 0 < apart(film, plain) < 0.5


def test_recipes_are_refused_on_another_sampler_than_theirs(tiny_wan: Path) -> None:
    """By their numbers, and in words where they say what these were made for; when a call begins, whatever the pipeline did before."""
    pipe = tiny_pipeline(tiny_wan)
    unipc, euler = flow_sampler("UniPCMultistepScheduler"), flow_sampler("FlowMatchEulerDiscreteScheduler")
    unipc.set_timesteps(8)
    calibrated = {"calibration": {"model": "x", "num_inference_steps": 8}}
    meancache = load_recipe({**load_recipe("meancache").to_dict(), **calibrated, "trigger": {"name": "mask", "computed": [0, 1, 2, 5]}})
    plan = {"trigger": {"name": "plan", "computed": [0, 3, 6]}, "predictor": {"name": "planned", "damping_by_step": [1.0] * 8}}
    uncorrected = load_recipe({**load_recipe("planned").to_dict(), **calibrated, **plan})
    planned = load_recipe(uncorrected, {"predictor": {"responses": linear_map(unipc).responses}})
    stamp = {"scheduler": "UniPCMultistepScheduler", "flow_shift": 3.0, "guidance_scale": 4.0}
    stamped = load_recipe({**planned.to_dict(), "calibration": {**calibrated["calibration"], **stamp}})
    for recipe, scheduler, options, message in (
        (meancache, unipc, {}, "reads velocities off the latents, which UniPCMultistepScheduler"),
        (planned, euler, {}, "than the FlowMatchEulerDiscreteScheduler at hand, with its 8 steps"),
        (planned, flow_sampler("UniPCMultistepScheduler", 5.0), {}, "than the UniPCMultistepScheduler at hand, with its 8 steps"),
        (planned, flow_sampler("UniPCMultistepScheduler", solver_order=1), {}, "the scheduler, flow shift, spacing, order and number of steps"),
        (planned, flow_sampler("DPMSolverMultistepScheduler", thresholding=True), {}, "has thresholding=True"),
        (planned, unipc, {"steps": 6}, "calibrated for 8 steps, the take has 6"),
        (stamped, euler, {}, "calibrated with UniPCMultistepScheduler, the take has FlowMatchEulerDiscreteScheduler; make them equal"),
        (stamped, flow_sampler("UniPCMultistepScheduler", 5.0), {}, "calibrated with flow_shift 3, the take has 5; .* with --flow-shift 5"),
        (stamped, unipc, {"guidance_scale": 5.0}, "calibrated at guidance_scale 4, the take has 5; .* with --guidance-scale 5"),
    ):
        pipe.scheduler = scheduler
        cached = enable_cache(pipe, recipe, num_inference_steps=8)
        with pytest.raises(ValueError, match=message):
            call(pipe, **options)
        cached.disable()
    pipe.scheduler = unipc
    plain = call(pipe)
    for recipe in (uncorrected, planned, stamped):
        cached = enable_cache(pipe, recipe, num_inference_steps=8)
        assert 0 < apart(call(pipe), plain) < 0.5
        assert cached.trace.summary() == {"compute": 6, "reuse": 10}
        cached.disable()


def test_a_second_expert_s_guidance_is_the_plan_s_as_well(tiny_wan: Path) -> None:
    """Wan 2.2: one scale for each of two experts; where the second is left out, it is the first one's."""
    pipe = tiny_pipeline(tiny_wan)
    pipe.register_to_config(boundary_ratio=0.5)
    pipe.transformer_2 = tiny_pipeline(tiny_wan).transformer
    stamp = {"model": "x", "num_inference_steps": 8, "guidance_scale": 4.0}
    enable_cache(pipe, load_recipe({**every(2).to_dict(), "calibration": stamp}), num_inference_steps=8)
    call(pipe)
    call(pipe, guidance_scale_2=4.0)
    with pytest.raises(ValueError, match="calibrated at guidance_scale 4, the take has 3"):
        call(pipe, guidance_scale_2=3.0)


def test_calls_of_another_pipeline_are_not_taken_for_steps(tiny_wan: Path) -> None:
    pipe = tiny_pipeline(tiny_wan)
    enable_cache(pipe, "fora", num_inference_steps=8)
    call(pipe)
    other = diffusers.WanPipeline(**{**pipe.components, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)})
    other.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match=r"is not step . of the pipeline's schedule. Is it another pipeline"):
        call(other)


@torch.no_grad()
def test_a_schedule_that_no_call_has_made_is_none(tiny_wan: Path) -> None:
    """A loop of one's own on a pipeline's transformer: its timesteps are not looked up among the thousand of training."""
    pipe = tiny_pipeline(tiny_wan)
    pipe.scheduler = flow_sampler("UniPCMultistepScheduler")
    cached = enable_cache(pipe, "fora", num_inference_steps=8)
    given = (torch.zeros(1, 4, 1, 4, 4), torch.tensor([900]), torch.zeros(1, 2, 128))
    with pytest.raises(ValueError, match=r"is not step \d+ of the pipeline's schedule.*`with cached\.step"):
        pipe.transformer(*given)
    with cached.step(0, 900.0, "cond"):
        pipe.transformer(*given)
    assert cached.trace.num_inference_steps == 8


@torch.no_grad()
def test_a_transformer_alone_counts_its_timesteps(tiny_wan: Path) -> None:
    """Over both branches; what nobody can tell apart is refused, and reset() begins anew."""
    transformer = tiny_pipeline(tiny_wan).transformer
    cached = enable_cache(transformer, every(2), num_inference_steps=3)

    def alone(timestep: float, branch: str) -> None:
        with transformer.cache_context(branch):
            transformer(torch.zeros(1, 4, 1, 4, 4), torch.tensor([timestep]), torch.zeros(1, 2, 128))

    for timestep, branches in ((900, ["cond"]), (600, ["cond", "uncond"]), (300, ["cond", "uncond"])):
        for branch in branches:
            alone(timestep, branch)
    assert [step for step, _ in rows_of(cached)["uncond"]] == [1, 2]
    with pytest.raises(ValueError, match=r"This is step 4 of a take; enable_cache was told num_inference_steps=3"):
        alone(100, "cond")
    alone(900, "cond")
    with pytest.raises(ValueError, match=r"Two calls at timestep 900 in branch 'cond'.*call cached\.reset\(\) if the second one begins a new take"):
        alone(900, "cond")
    cached.reset()
    alone(900, "cond")
    assert rows_of(cached) == {"cond": [(0, "compute")]}


@torch.no_grad()
def test_steps_and_branches_that_say_nothing_to_a_recipe_are_refused() -> None:
    transformer, given = tiny_transformer(MODELS[0])
    refusals = (
        ("fbcache", 4, "cond", "index is 4, and the take's steps are 0 to 3"),
        ("fbcache", -1, "cond", "index is -1"),
        ("easycache", 0, "positive", "knows them as cond, uncond or both, not as 'positive'"),
        ("fastercache", 0, "uncond", "this is 'uncond' without this step's cond before it"),
        ("fastercache", 0, "positive", "this is 'positive' without this step's cond before it"),
    )
    for recipe, index, branch, message in refusals:
        cached = enable_cache(transformer, recipe, num_inference_steps=4)
        with pytest.raises(ValueError, match=message), cached.step(index, 500.0, branch):
            transformer(**given)
        cached.disable()
    cached = enable_cache(transformer, "fastercache", num_inference_steps=4)
    with cached.step(2, 500.0, "cond"):  # the last call of a take that is interrupted
        transformer(**given)
    cached.reset()
    with pytest.raises(ValueError, match="without this step's cond before it"), cached.step(0, 500.0, "uncond"):
        transformer(**given)
    cached.disable()
    cached = enable_cache(transformer, "easycache", num_inference_steps=4, shards=Shards(branches=lambda sums: sums))
    with pytest.raises(ValueError, match=r"knows them as cond or uncond \(each runs .*, not as 'both'"), cached.step(0, 500.0, "both"):
        transformer(**given)
    cached.disable()
    cached = enable_cache(transformer, "fbcache", num_inference_steps=4)
    with cached.step(0, 500.0, "positive"):  # each branch for itself, whatever its name
        transformer(**given)


@torch.no_grad()
def test_what_goes_on_from_a_file_must_say_its_step(tiny_wan: Path, tmp_path: Path) -> None:
    """Counted from the start of a take, it would begin anew without a word."""
    transformer = (pipe := tiny_pipeline(tiny_wan)).transformer

    def alone(timestep: float) -> None:
        transformer(torch.zeros(1, 4, 1, 4, 4), torch.tensor([timestep]), torch.zeros(1, 2, 128))

    first = enable_cache(transformer, every(2), num_inference_steps=4)
    alone(900)
    first.save(tmp_path / "cache.safetensors")
    first.disable()
    for model, goes_on in ((pipe, lambda: call(pipe, 4)), (transformer, lambda: alone(500))):
        cached = enable_cache(model, every(2), num_inference_steps=4)
        cached.load(tmp_path / "cache.safetensors")
        with pytest.raises(ValueError, match=r"goes on from a file .* inside `with cached\.step.* or call cached\.reset\(\) if it begins a new take"):
            goes_on()
        with cached.step(1, 700):
            alone(700)
        assert rows_of(cached) == {"both": [(0, "compute"), (1, "reuse")]}
        cached.reset()
        goes_on()
        cached.disable()
