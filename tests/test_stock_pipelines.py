"""Caches on diffusers' own pipelines and transformers: which calls are which, what else is part of a model, and who else wraps it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import FirstBlockCacheConfig, apply_group_offloading
from longtake.cache import Recipe, enable_cache, load_recipe
from PIL import Image
from torch import Tensor

from same import assert_same

pytestmark = pytest.mark.numerical

Pipeline = Any
SITES = ("fbcache", "dbcache", "bwcache", "fora", "easycache")  # stack, stack before the last block, blocks, modules, output
_WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 128, "freq_dim": 32, "ffn_dim": 48}


def _pipeline(folder: Path, kind: str = "WanPipeline", transformer: str = "WanTransformer3DModel", **sizes: Any) -> Pipeline:
    """A pipeline of diffusers' class `kind` with the tiny checkpoint's other parts."""
    stock = diffusers.WanPipeline.from_pretrained(folder)
    torch.manual_seed(0)
    model = getattr(diffusers, transformer)(**{**_WAN, "num_layers": 4, **sizes}).eval()
    for block in getattr(model, "vace_blocks", ()):
        for weight in block.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    parts = {name: part for name, part in stock.components.items() if name != "transformer_2"}
    pipe = getattr(diffusers, kind)(**{**parts, "transformer": model})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _call(pipe: Pipeline, steps: int = 8, seed: int = 1, **more: Any) -> Tensor:
    options: dict[str, Any] = {"height": 32, "width": 32, "guidance_scale": 4.0, "max_sequence_length": 32, "output_type": "latent", **more}
    if "prompt_embeds" not in options:
        options["prompt"] = "a red circle moves left"
    if not isinstance(pipe, diffusers.WanVideoToVideoPipeline):
        options["num_frames"] = 5
    latents: Tensor = pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(seed), **options).frames
    return latents


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def _rows(cached: Any) -> dict[str, list[tuple[int, str]]]:
    """By branch: each call's step and what was decided."""
    entries = cached.trace.entries
    return {branch: [(entry.step, entry.decision) for entry in entries if entry.branch == branch] for branch in {e.branch for e in entries}}


def _every(interval: int, name: str = "fora") -> Recipe:
    """A recipe's site and predictor under a schedule; no step is compelled but the first and the last."""
    values = load_recipe(name, {"site": {"last_blocks": 1}} if name == "dbcache" else None).to_dict()
    alone = {"trigger": {"name": "interval", "interval": interval}, "guards": {}, "branches": "each", "calibrated": False}
    return load_recipe({**values, **alone})


# What else there is in a model than its blocks


def _transformer(name: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A tiny random model and the inputs of a call."""
    torch.manual_seed(0)
    text = {"timestep": torch.tensor([500.0]), "encoder_hidden_states": torch.randn(1, 12, 16)}
    video = {"hidden_states": torch.randn(1, 4, 3, 8, 8), **text}
    wan = {**_WAN, "text_dim": 16, "num_layers": 4}
    if name == "WanAnimateTransformer3DModel":
        encoder: dict[str, Any] = {"motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16, "motion_style_dim": 8}
        encoder |= {"motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2}
        model = diffusers.WanAnimateTransformer3DModel(
            **{**wan, "in_channels": 12}, latent_channels=4, image_dim=4, rope_max_seq_len=32, inject_face_latents_blocks=2, **encoder
        )
        faces = {"pose_hidden_states": torch.randn(1, 4, 2, 8, 8), "face_pixel_values": torch.randn(1, 3, 5, 16, 16)}
        images = {"encoder_hidden_states_image": torch.randn(1, 16, 4)}
        return model.eval(), {**text, "hidden_states": torch.randn(1, 12, 3, 8, 8), **faces, **images}
    if name == "WanVACETransformer3DModel":
        model = diffusers.WanVACETransformer3DModel(**wan, vace_layers=[0, 2], vace_in_channels=8)
        for weight in model.vace_blocks.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        return model.eval(), {**video, "control_hidden_states": torch.randn(1, 8, 3, 8, 8)}
    if name == "HunyuanVideoTransformer3DModel":
        heads = {"num_attention_heads": 2, "attention_head_dim": 12, "rope_axes_dim": (4, 4, 4)}
        layers = {"num_layers": 3, "num_single_layers": 2, "num_refiner_layers": 1, "mlp_ratio": 2.0}
        model = diffusers.HunyuanVideoTransformer3DModel(in_channels=4, out_channels=4, text_embed_dim=16, pooled_projection_dim=8, **heads, **layers)
        pooled = {"pooled_projections": torch.randn(1, 8), "guidance": torch.tensor([4000.0])}
        return model.eval(), {**video, "encoder_attention_mask": torch.ones(1, 12), **pooled}
    return diffusers.WanTransformer3DModel(**wan).eval(), video


MODELS = ("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel", "HunyuanVideoTransformer3DModel")


@pytest.mark.parametrize(("model", "recipe"), product(MODELS, SITES))
@torch.no_grad()
def test_on_the_same_input_a_reused_call_gives_what_a_computed_one_gave(model: str, recipe: str) -> None:
    """Hints and faces that the model adds between its blocks are part of what is kept, and computing through a site changes nothing."""
    transformer, given = _transformer(model)
    plain = transformer(**given, return_dict=False)[0]
    cached = enable_cache(transformer, _every(9, recipe), num_inference_steps=9)
    for step in range(3):
        with cached.step(step, 500.0, "cond"):
            assert_same(transformer(**given, return_dict=False)[0], plain)
    assert [decision for _, decision in _rows(cached)["cond"]] == ["compute", "reuse", "reuse"]
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
    pipe = _pipeline(tiny_wan, kind, **sizes)
    plain, other = _call(pipe, **given), _call(pipe, **{name: _painted(value) for name, value in given.items()})
    assert _apart(other, plain) > 1e-3, "the picture must tell"
    for recipe in SITES:
        cached = enable_cache(pipe, _every(1, recipe), num_inference_steps=8)
        assert_same(_call(pipe, **given), plain)
        cached.disable()
        cached = enable_cache(pipe, _every(2, recipe), num_inference_steps=8)
        assert _call(pipe, **given).isfinite().all()
        assert [decision for _, decision in _rows(cached)["uncond"]] == ["compute", "reuse"] * 3 + ["compute"] * 2
        cached.disable()


def _painted(value: Any) -> Any:
    return [_painted(one) for one in value] if isinstance(value, list) else Image.new("RGB", value.size, "orange")


def test_what_is_but_half_supported_is_refused(tiny_wan: Path) -> None:
    """By enable_cache itself, before a call is made, with the mend."""
    pipe = _pipeline(tiny_wan)
    blind = _pipeline(tiny_wan, "SkyReelsV2DiffusionForcingPipeline")
    replacing = diffusers.HunyuanVideoTransformer3DModel(
        **{**_transformer(MODELS[3])[0].config, "image_condition_type": "token_replace"}  # type: ignore[dict-item]
    )
    ltx = diffusers.LTXVideoTransformer3DModel(in_channels=8, num_attention_heads=2, attention_head_dim=16, num_layers=2, caption_channels=16)
    for model, recipe, message in (
        (blind, "fbcache", "SkyReelsV2DiffusionForcingPipeline is no pipeline whose calls the cache can tell apart .*`with cached.step"),
        (replacing, "fbcache", "image_condition_type token_replace"),
        (ltx, "fora", "LTXVideoTransformer3DModel is no transformer whose blocks the cache knows .*easycache"),
        (torch.nn.Linear(2, 2), "fbcache", "not on a Linear"),
        (object(), "fbcache", "object has no transformer"),
        (torch.compile(_transformer(MODELS[0])[0]), "fbcache", r"transformer\.compile_repeated_blocks\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            enable_cache(model, recipe, num_inference_steps=8)
    for options, message in (
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 8, "place": "hots"}, "place is 'hots'"),
    ):
        with pytest.raises(ValueError, match=message):
            enable_cache(pipe, "fbcache", **options)
    assert pipe.transformer.__dict__.keys() == _pipeline(tiny_wan).transformer.__dict__.keys()


# Which call is which


def test_calls_that_end_early_leave_nothing_behind(tiny_wan: Path) -> None:
    pipe = _pipeline(tiny_wan)
    enable_cache(pipe, "fbcache", num_inference_steps=8)
    plain = _call(pipe)

    def stop(pipe: Pipeline, step: int, timestep: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        raise MemoryError

    for options in ({"callback_on_step_end": stop}, {"steps": 1}, {"steps": 1, "seed": 2}):
        try:
            _call(pipe, **options)
        except MemoryError:
            assert "callback_on_step_end" in options
        assert_same(_call(pipe), plain)


@pytest.mark.parametrize("steps", [6, 12, 15])
def test_a_call_has_as_many_steps_as_its_own_schedule(tiny_wan: Path, steps: int) -> None:
    pipe = _pipeline(tiny_wan)
    cached = enable_cache(pipe, _every(3), num_inference_steps=12)
    _call(pipe, steps)
    expected = [(step, "compute" if step % 3 == 0 or step == steps - 1 else "reuse") for step in range(steps)]
    assert _rows(cached) == {"cond": expected, "uncond": expected}
    assert cached.trace.num_inference_steps == steps


@pytest.mark.parametrize("recipe", ["fora", "easycache", "fbcache"])
def test_guidance_that_starts_late_is_counted_by_the_schedule(tiny_wan: Path, recipe: str) -> None:
    """Each branch for itself, and where the conditional one decides for both."""
    pipe = _pipeline(tiny_wan)
    with torch.no_grad():
        prompt, negative = pipe.encode_prompt("a red circle moves left", "blue", True, max_sequence_length=32)

    def later(pipe: Pipeline, step: int, timestep: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 4.0 if 3 <= step < 7 else 1.0
        return {}

    cached = enable_cache(pipe, recipe, num_inference_steps=10)
    _call(pipe, 10, prompt_embeds=prompt, negative_prompt_embeds=negative, guidance_scale=1.0, callback_on_step_end=later)
    rows = _rows(cached)
    assert [step for step, _ in rows["cond"]] == list(range(10))
    assert [step for step, _ in rows["uncond"]] == [4, 5, 6, 7]
    assert rows["uncond"][0][1] == rows["cond"][-1][1] == "compute"


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_branches_are_told_by_their_order_where_a_pipeline_does_not_name_them(tiny_wan: Path, strength: float) -> None:
    """Video to video, which starts in mid-schedule: the same decisions and film as with the branches named."""
    films, traces = [], []
    for names in (False, True):
        pipe = _pipeline(tiny_wan, "WanVideoToVideoPipeline")
        pipe.scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
        cached = enable_cache(pipe, _every(3), num_inference_steps=8)
        if names:
            _name_branches(pipe.transformer)
        films.append(_call(pipe, video=[Image.new("RGB", (32, 32), "white")] * 5, strength=strength))
        traces.append(_rows(cached))
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
    pipe = _pipeline(tiny_wan)
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    plain = _call(pipe)
    values = _every(2, recipe).to_dict() | {"abscissa": "sigma"}
    cached = enable_cache(pipe, load_recipe(values), num_inference_steps=8)
    film = _call(pipe)
    rows = _rows(cached)
    assert [step for step, _ in rows["cond"]] == list(range(15))
    assert rows["cond"] == rows["uncond"]
    assert 0 < _apart(film, plain) < 0.5


def test_forecasts_that_need_a_sampler_are_refused_on_another_one(tiny_wan: Path) -> None:
    pipe = _pipeline(tiny_wan)
    pipe.scheduler = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    calibrated = {"calibration": {"model": "x", "num_inference_steps": 8}}
    meancache = load_recipe({**load_recipe("meancache").to_dict(), **calibrated, "trigger": {"name": "mask", "computed": [0, 1, 2, 5]}})
    plan = {"trigger": {"name": "plan", "computed": [0, 3, 6]}, "predictor": {"name": "planned", "damping_by_step": [1.0] * 8}}
    planned = load_recipe({**load_recipe("planned").to_dict(), **calibrated, **plan})
    with_sigmas = load_recipe(planned, {"predictor": {"sigmas": [1 - step / 8 for step in range(9)]}})
    for recipe, message in ((meancache, "reads velocities off the latents"), (with_sigmas, "with the same flow shift")):
        cached = enable_cache(pipe, recipe, num_inference_steps=8)
        with pytest.raises(ValueError, match=message):
            _call(pipe)
        cached.disable()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    cached = enable_cache(pipe, with_sigmas, num_inference_steps=8)
    with pytest.raises(ValueError, match="with the same flow shift"):
        _call(pipe)
    cached.disable()
    enable_cache(pipe, planned, num_inference_steps=8)
    with pytest.raises(ValueError, match="calibrated for 8 steps, the take has 6"):
        _call(pipe, 6)


def test_calls_of_another_pipeline_are_not_taken_for_steps(tiny_wan: Path) -> None:
    pipe = _pipeline(tiny_wan)
    enable_cache(pipe, "fora", num_inference_steps=8)
    _call(pipe)
    other = diffusers.WanPipeline(**{**pipe.components, "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)})
    other.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match=r"is not step . of the pipeline's schedule. Is it another pipeline"):
        _call(other)


@torch.no_grad()
def test_a_transformer_alone_counts_its_timesteps(tiny_wan: Path) -> None:
    """Over both branches; what nobody can tell apart is refused, and reset() begins anew."""
    transformer = _pipeline(tiny_wan).transformer
    cached = enable_cache(transformer, _every(2), num_inference_steps=3)

    def call(timestep: float, branch: str) -> None:
        with transformer.cache_context(branch):
            transformer(torch.zeros(1, 4, 1, 4, 4), torch.tensor([timestep]), torch.zeros(1, 2, 128))

    for timestep, branches in ((900, ["cond"]), (600, ["cond", "uncond"]), (300, ["cond", "uncond"])):
        for branch in branches:
            call(timestep, branch)
    assert [step for step, _ in _rows(cached)["uncond"]] == [1, 2]
    with pytest.raises(ValueError, match=r"This is step 4 of a take; enable_cache was told num_inference_steps=3"):
        call(100, "cond")
    call(900, "cond")
    with pytest.raises(ValueError, match=r"Two calls at timestep 900 in branch 'cond'.*call cached\.reset\(\) if the second one begins a new take"):
        call(900, "cond")
    cached.reset()
    call(900, "cond")
    assert _rows(cached) == {"cond": [(0, "compute")]}


@torch.no_grad()
def test_steps_and_branches_that_say_nothing_to_a_recipe_are_refused() -> None:
    transformer, given = _transformer(MODELS[0])
    refusals = (
        ("fbcache", 4, "cond", "index is 4, and the take's steps are 0 to 3"),
        ("fbcache", -1, "cond", "index is -1"),
        ("easycache", 0, "positive", "knows them as cond, uncond or both, not as 'positive'"),
        ("fastercache", 0, "uncond", "this is 'uncond' without a cond before it"),
        ("fastercache", 0, "positive", "this is 'positive' without a cond before it"),
    )
    for recipe, index, branch, message in refusals:
        cached = enable_cache(transformer, recipe, num_inference_steps=4)
        with pytest.raises(ValueError, match=message), cached.step(index, 500.0, branch):
            transformer(**given)
        cached.disable()
    cached = enable_cache(transformer, "fbcache", num_inference_steps=4)
    with cached.step(0, 500.0, "positive"):  # each branch for itself, whatever its name
        transformer(**given)


@torch.no_grad()
def test_what_goes_on_from_a_file_must_say_its_step(tiny_wan: Path, tmp_path: Path) -> None:
    """Counted from the start of a take, it would begin anew without a word."""
    transformer = (pipe := _pipeline(tiny_wan)).transformer

    def call(timestep: float) -> None:
        transformer(torch.zeros(1, 4, 1, 4, 4), torch.tensor([timestep]), torch.zeros(1, 2, 128))

    first = enable_cache(transformer, _every(2), num_inference_steps=4)
    call(900)
    first.save(tmp_path / "cache.safetensors")
    first.disable()
    for model, goes_on in ((pipe, lambda: _call(pipe, 4)), (transformer, lambda: call(500))):
        cached = enable_cache(model, _every(2), num_inference_steps=4)
        cached.load(tmp_path / "cache.safetensors")
        with pytest.raises(ValueError, match=r"goes on from a file .* inside `with cached\.step.* or call cached\.reset\(\) if it begins a new take"):
            goes_on()
        with cached.step(1, 700):
            call(700)
        assert _rows(cached) == {"both": [(0, "compute"), (1, "reuse")]}
        cached.reset()
        goes_on()
        cached.disable()


# Who else wraps the model


class _Count(ModelHook):  # type: ignore[misc]
    calls = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        self.calls += 1
        return args, kwargs


def _accelerate(transformer: torch.nn.Module) -> Callable[[], None]:
    add_hook_to_module(transformer, _Count())
    return lambda: remove_hook_from_module(transformer)


def _offload_blocks(transformer: torch.nn.Module) -> Callable[[], None]:
    cpu = torch.device("cpu")
    apply_group_offloading(transformer, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1)
    return lambda: transformer._diffusers_hook.remove_hook("group_offloading")  # type: ignore[union-attr, operator]


def _orders() -> Iterator[tuple[str, str]]:
    yield "before", "after"  # on before the cache, off after it
    yield "before", "between"  # off while the cache is on, as enable_model_cpu_offload does at the end of each call
    yield "between", "between"
    yield "between", "after"


@pytest.mark.parametrize("recipe", ["easycache", "fbcache", "fora"])
@pytest.mark.parametrize("wrapper", [_accelerate, _offload_blocks])
def test_the_cache_comes_and_goes_beside_what_others_wrap(tiny_wan: Path, wrapper: Callable[[Any], Callable[[], None]], recipe: str) -> None:
    """Whoever is first and whoever leaves first: the decisions are the cache's own while it is on, and the film is plain afterwards."""
    reference = _pipeline(tiny_wan)
    plain = _call(reference, 4)
    cached = enable_cache(reference, _every(2, recipe), num_inference_steps=4)
    film, rows = _call(reference, 4), _rows(cached)
    for on, off in _orders():
        pipe = _pipeline(tiny_wan)
        take_off = wrapper(pipe.transformer) if on == "before" else None
        cached = enable_cache(pipe, _every(2, recipe), num_inference_steps=4)
        take_off = take_off or wrapper(pipe.transformer)
        for _ in range(2):  # before and after the other one has left
            assert_same(_call(pipe, 4), film)
            assert _rows(cached) == rows
            if off == "between":
                take_off()
        cached.disable()
        assert_same(_call(pipe, 4), plain)
        if off == "after":
            take_off()
        assert_same(_call(pipe, 4), plain)


def test_hooks_of_others_go_on_being_called(tiny_wan: Path) -> None:
    for first in (True, False):
        pipe, hook = _pipeline(tiny_wan), _Count()
        if first:
            add_hook_to_module(pipe.transformer, hook)
        cached = enable_cache(pipe, _every(2, "easycache"), num_inference_steps=4)
        if not first:
            add_hook_to_module(pipe.transformer, hook)
        _call(pipe, 4)
        cached.disable()
        _call(pipe, 4)
        assert hook.calls == 16


@pytest.mark.parametrize("recipe", SITES)
def test_a_copy_of_a_cached_model_has_no_cache(tiny_wan: Path, recipe: str) -> None:
    pipe = _pipeline(tiny_wan)
    plain = _call(pipe)
    cached = enable_cache(pipe, _every(2, recipe), num_inference_steps=8)
    film, rows = _call(pipe), _rows(cached)
    copied = _pipeline(tiny_wan)
    copied.transformer = deepcopy(pipe.transformer)
    assert list(copied.transformer.state_dict()) == list(pipe.transformer.state_dict())
    assert_same(_call(copied), plain)
    assert _rows(cached) == rows
    with torch.no_grad():
        for weight in copied.transformer.parameters():
            weight.zero_()
    enable_cache(copied, "fbcache", num_inference_steps=8)
    assert_same(_call(pipe), film)


def test_the_blocks_can_be_seen_while_they_are_cached(tiny_wan: Path) -> None:
    """Outside of model calls the list is that of the blocks, and what is put in it stays after disable()."""
    transformer = _pipeline(tiny_wan).transformer
    blocks = list(transformer.blocks)
    cached = enable_cache(transformer, "fbcache", num_inference_steps=8)
    assert list(transformer.blocks) == blocks
    assert transformer.blocks[-1] is blocks[-1]
    assert list(transformer.blocks[1:3]) == blocks[1:3]
    replaced = transformer.blocks[1] = deepcopy(blocks[1])
    cached.disable()
    assert list(transformer.blocks) == [blocks[0], replaced, *blocks[2:]]


@torch.no_grad()
def test_a_model_that_is_compiled_whole_is_refused() -> None:
    """It would not be seen that steps are skipped. Compiled behind our back it is run as it is."""
    transformer, given = _transformer(MODELS[0])
    plain = transformer(**given, return_dict=False)[0]
    cached = enable_cache(transformer, _every(9, "fbcache"), num_inference_steps=9)
    for step, decision in enumerate(("compute", "reuse")):
        with cached.step(step, 500.0, "cond"):
            assert_same(torch.compile(transformer, backend="eager")(**given, return_dict=False)[0], plain)
        assert cached.trace.entries[-1].decision == decision
    transformer.compile(backend="eager")
    with pytest.raises(ValueError, match=r"compile_repeated_blocks\(\)"), cached.step(2, 500.0, "cond"):
        transformer(**given)
    cached.disable()
    with pytest.raises(ValueError, match=r"compile_repeated_blocks\(\)"):
        enable_cache(transformer, "fbcache", num_inference_steps=9)


def test_two_caches_on_one_model_are_refused(tiny_wan: Path) -> None:
    pipe = _pipeline(tiny_wan)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"call transformer\.disable_cache\(\) first"):
        enable_cache(pipe, "fbcache", num_inference_steps=8)
    pipe.transformer.disable_cache()
    cached = enable_cache(pipe, "easycache", num_inference_steps=8)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"call transformer\.disable_cache\(\) first"):
        _call(pipe)
    pipe.transformer.disable_cache()
    _call(pipe)
    assert cached.trace.entries
