"""Which checkpoints are rendered, and with which schedulers: what a family would render half or wrongly is refused by the checks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import WanPipeline
from longtake.cache import enable_cache, load_recipe
from longtake.cache.sampler.linear_map import linear_map
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.render import Renderer
from longtake.pipeline.recipes.check import check_recipe
from safetensors.torch import load_file, save_file

from same import SAME, assert_same
from stock import every
from takes import stock_latents, stock_take, tiny_recipe, tiny_take

INDEX, TRANSFORMER, VAE = "model_index.json", "transformer/config.json", "vae/config.json"
SCHEDULER, TEXT = "scheduler/scheduler_config.json", "text_encoder/config.json"


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            INDEX,
            {"transformer_2": ["diffusers", "WanTransformer3DModel"]},
            "has a part 'transformer_2' .WanTransformer3DModel., which longtake",
        ),
        (INDEX, {"boundary_ratio": 0.9}, "has boundary_ratio=0.9, which longtake would leave out"),
        (INDEX, {"expand_timesteps": True}, "has expand_timesteps=True"),
        (INDEX, {"image_encoder": ["transformers", "CLIPVisionModel"]}, "has a part 'image_encoder'"),
        (INDEX, {"_class_name": "WanVACEPipeline"}, "is a WanVACEPipeline; longtake knows WanPipeline"),
        (INDEX, {"transformer": [None, None]}, "has no 'transformer'"),
        (INDEX, {"transformer": ["diffusers", "WanVACETransformer3DModel"]}, "transformer of class WanVACETransformer3DModel"),
        (TRANSFORMER, {"_class_name": "WanAnimateTransformer3DModel"}, "transformer of class WanAnimateTransformer3DModel"),
        (INDEX, {"vae": ["diffusers", "AutoencoderKLLTXVideo"]}, "a vae of class AutoencoderKLLTXVideo"),
        (VAE, {"_class_name": "AutoencoderKLLTXVideo"}, "a vae of class AutoencoderKLLTXVideo"),
        (INDEX, {"text_encoder": ["transformers", "T5EncoderModel"]}, "text_encoder of class T5EncoderModel, longtake renders with UMT5EncoderModel"),
        (TRANSFORMER, {"in_channels": 36}, r"differ in latent channels \(in_channels 36, out_channels 4, VAE 4\)"),
        (TRANSFORMER, {"image_dim": 1280}, r"is conditioned on images \(image_dim=1280\)"),
        (TRANSFORMER, {"added_kv_proj_dim": 5120}, "is conditioned on images"),
        (TRANSFORMER, {"quantization_config": {"load_in_4bit": True}}, "has quantised weights"),
        (SCHEDULER, {"_class_name": "EulerDiscreteScheduler"}, "is EulerDiscreteScheduler; .* save the model with FlowMatchEulerDiscreteScheduler"),
        (SCHEDULER, {"_class_name": "FlowMatchLCMScheduler"}, "is FlowMatchLCMScheduler"),
        (SCHEDULER, {"_class_name": "UniPCMultistepScheduler", "prediction_type": "epsilon"}, "prediction_type=epsilon, use_flow_sigmas=None"),
        (SCHEDULER, {"use_dynamic_shifting": True}, "shifts its timesteps by the size"),
        (SCHEDULER, {"stochastic_sampling": True}, "draws noise at every step"),
        (TRANSFORMER, {"num_attention_heads": None}, "num_attention_heads is missing"),
        (TRANSFORMER, {"num_layers": "30"}, "num_layers is '30'; it must be a whole number"),
        (TRANSFORMER, {"patch_size": 2}, "patch_size is missing"),
    ],
)
def test_what_a_family_would_render_wrongly_is_refused(tiny_wan_copy: Path, file: str, values: dict[str, Any], message: str) -> None:
    change(tiny_wan_copy, file, **values)
    with pytest.raises(ValueError, match=message):
        read_card(str(tiny_wan_copy))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (INDEX, b"[]", "must hold a JSON object"),
        (INDEX, b"{", "is not valid JSON"),
        (TRANSFORMER, b"\xff\xfe", "is not valid JSON"),
        (SCHEDULER, None, "lacks scheduler_config.json"),
        ("README.md", b"---\nlongtake: {max_lenght: 3}\n---\n", r"no setting 'max_lenght'\. Known: trained_frames"),
        ("README.md", b"---\nlongtake: {height: tall}\n---\n", "longtake.height is 'tall'; it must be a whole number"),
        ("README.md", b"---\nlongtake: {fps: .nan}\n---\n", "fps is nan"),
        ("README.md", b"---\nlongtake: {guidance_scale: strong}\n---\n", "guidance_scale is 'strong'; it must be a finite number"),
        ("README.md", b"---\nlongtake: [1]\n---\n", r"is \[1\]; it must be a mapping"),
        ("README.md", b"---\nlongtake: [1\n---\n", "front matter of .* cannot be read"),
        ("README.md", b"---\nlongtake: \xff\n---\n", "front matter of .* cannot be read"),
        ("transformer/diffusion_pytorch_model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is no whole safetensors file"),
        ("transformer/diffusion_pytorch_model.safetensors", b"", "is no whole safetensors file"),
        ("vae/x.safetensors.index.json", b'{"weight_map": {"a": "x-2-of-2.safetensors"}}', "lacks weights in 'vae/' .x-2-of-2.safetensors."),
    ],
)
def test_a_broken_checkpoint_gets_one_message(tiny_wan_copy: Path, file: str, content: bytes | None, message: str) -> None:
    path = tiny_wan_copy / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_card(str(tiny_wan_copy))


def test_a_download_that_broke_off_is_refused(tiny_wan_copy: Path) -> None:
    path = tiny_wan_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        read_card(str(tiny_wan_copy))


@pytest.mark.parametrize("saved", [{"variant": "bf16"}, {"variant": "fp16", "max_shard_size": "40KB"}, {"max_shard_size": "40KB"}])
def test_weights_under_names_that_are_not_looked_for_are_refused(tiny_wan_copy: Path, saved: dict[str, Any]) -> None:
    """A variant's files, and parts without their index. With it they are read."""
    part = tiny_wan_copy / "transformer"
    model = diffusers.WanTransformer3DModel.from_pretrained(part)
    (part / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(part, **saved)
    if "variant" not in saved:
        read_card(str(tiny_wan_copy))
        (part / "diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"has weights in 'transformer/' .*, but neither diffusion_pytorch_model\.safetensors nor an index"):
        read_card(str(tiny_wan_copy))


@pytest.mark.parametrize("content", [b"", b"# A model\n", b"---\n---\n", b"---\nlicense: mit\n---\n", b"---\n- a\n---\n"])
def test_a_model_card_need_not_speak_of_longtake(tiny_wan_copy: Path, content: bytes) -> None:
    (tiny_wan_copy / "README.md").write_bytes(content)
    assert read_card(str(tiny_wan_copy)).trained_frames == 81


def test_a_model_s_folder_is_absolute(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_wan.parent)
    assert read_card(tiny_wan.name).path == tiny_wan


_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SCHEDULERS: list[Callable[[], Any]] = [
    lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
    lambda: diffusers.UniPCMultistepScheduler(flow_shift=3.0, **_FLOW),
    lambda: diffusers.DPMSolverMultistepScheduler(flow_shift=3.0, **_FLOW),
]


@pytest.mark.numerical
@pytest.mark.parametrize("make", SCHEDULERS, ids=["euler", "heun", "unipc", "dpm"])
def test_a_job_denoises_as_the_stock_pipeline_does_with_each_scheduler(tiny_wan_copy: Path, make: Callable[[], Any]) -> None:
    make().save_pretrained(tiny_wan_copy / "scheduler")
    stock = WanPipeline.from_pretrained(tiny_wan_copy, scheduler=make())
    card, take = read_card(str(tiny_wan_copy)), stock_take(num_inference_steps=4)
    renderer = Renderer(card)
    ours, theirs = renderer.render(take, None).latents, stock_latents(stock, take, card.max_sequence_length)
    assert_same(ours, theirs)
    assert len(renderer.family.scheduler(take).timesteps) == card.num_calls(4)
    shifted = renderer.family.scheduler(replace(take, flow_shift=9.0)).sigmas
    assert not torch.equal(shifted, renderer.family.scheduler(take).sigmas), "flow_shift is obeyed"


@pytest.mark.numerical
@pytest.mark.parametrize("own", SCHEDULERS[:3], ids=["euler", "heun", "unipc"])
@pytest.mark.parametrize("flow_shift", [None, 5.0])
def test_a_take_names_its_sampler(tiny_wan_copy: Path, own: Callable[[], Any], flow_shift: float | None) -> None:
    """The film is that of the stock pipeline with this scheduler, whatever the checkpoint's own is, at its shift or at the take's."""
    own().save_pretrained(tiny_wan_copy / "scheduler")
    stock = WanPipeline.from_pretrained(tiny_wan_copy)
    card = read_card(str(tiny_wan_copy))
    renderer, shift = Renderer(card), flow_shift or 3.0
    theirs = {
        "euler": diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
        "unipc": diffusers.UniPCMultistepScheduler.from_config(own().config, flow_shift=shift, **_FLOW),
        "dpm++": diffusers.DPMSolverMultistepScheduler(flow_shift=shift, algorithm_type="dpmsolver++", solver_order=2, **_FLOW),
    }
    assert set(card.samplers) == set(theirs)
    films = []
    for name, scheduler in theirs.items():
        take = stock_take(num_inference_steps=5, scheduler=name, flow_shift=flow_shift)
        take.check(card)
        stock.scheduler = scheduler
        films.append(renderer.render(take, None).latents)
        assert_same(films[-1], stock_latents(stock, take, card.max_sequence_length), name)
        trace = renderer.render(take, every(2)).trace
        assert trace is not None and trace.num_inference_steps == 5, "each of the three calls the model once a step"
    assert all((one - other).abs().max() > SAME for one, other in combinations(films, 2))


def test_a_sampler_that_the_model_is_not_rendered_with_is_refused(tiny_hunyuan: Path, tiny_wan: Path) -> None:
    for folder, name, known in ((tiny_hunyuan, "dpm++", "euler, unipc"), (tiny_wan, "ddim", r"euler, unipc, dpm\+\+")):
        with pytest.raises(ValueError, match=rf"scheduler is '{re.escape(name)}'; models of this kind are rendered with {known}; choose one"):
            stock_take(scheduler=name).check(read_card(str(folder)))


@pytest.mark.numerical
@pytest.mark.parametrize("scheduler", ["unipc", "dpm++"])
def test_a_plan_does_the_same_on_a_stock_pipeline_with_a_multistep_sampler(tiny_wan: Path, scheduler: str) -> None:
    card, take = read_card(str(tiny_wan)), stock_take(num_inference_steps=8, scheduler=scheduler)
    renderer = Renderer(card)
    sampler = renderer.family.scheduler(take)
    numbers = {"responses": linear_map(sampler).responses, "bending_by_step": [0.5] * 8, "amending_by_step": [0.8] * 8}
    recipe = load_recipe(tiny_recipe("planned"), {"trigger": {"max_surprise": 0.0}, "predictor": numbers})
    check_recipe(recipe, card, take, model="")
    rendered = renderer.render(take, recipe)
    stock = WanPipeline.from_pretrained(tiny_wan, scheduler=type(sampler).from_config(sampler.config))
    cached = enable_cache(stock, recipe, num_inference_steps=8)
    assert_same(rendered.latents, stock_latents(stock, take, card.max_sequence_length))
    assert rendered.trace is not None
    assert [entry.decision for entry in rendered.trace.entries] == [entry.decision for entry in cached.trace.entries]
    assert rendered.trace.summary() == cached.trace.summary() == {"compute": 8, "reuse": 8}
    assert (renderer.render(take, load_recipe(recipe, {"predictor": {"responses": []}})).latents - rendered.latents).abs().max() > 1e-3


def test_a_cache_counts_the_calls_of_a_second_order_scheduler(tiny_wan_copy: Path) -> None:
    """Heun's: 15 calls in a take of 8 steps, two of them at each timestep but the first; reuse goes on to the guards at the end."""
    SCHEDULERS[1]().save_pretrained(tiny_wan_copy / "scheduler")
    card, take = read_card(str(tiny_wan_copy)), tiny_take(num_frames=5, num_inference_steps=8, prompts=stock_take().prompts)
    recipes = [load_recipe(name) for name in ("fora", "fbcache", "taylorseer")]
    for recipe in recipes:
        check_recipe(recipe, card, take, model="")
        trace = Renderer(card).render(take, recipe).trace
        assert trace is not None
        row = [entry for entry in trace.entries if entry.branch == "cond"]
        assert [entry.step for entry in row] == list(range(15))
        first, last = recipe.guards.num_computed(15)
        assert all(entry.decision == "compute" for entry in (*row[:first], *row[15 - last :]))
        if recipe.name != "fbcache":
            assert "reuse" in {entry.decision for entry in row[8:]}
    with pytest.raises(ValueError, match=r"counts steps of one model call each, and this model's scheduler makes 2 a step"):
        check_recipe(load_recipe("meancache"), card, take, model="")


def test_forecasts_that_need_a_sampler_are_refused_on_another_one(tiny_wan_copy: Path) -> None:
    """Before any weights are loaded: there are none."""
    SCHEDULERS[2]().save_pretrained(tiny_wan_copy / "scheduler")
    card, take = read_card(str(tiny_wan_copy)), stock_take(num_inference_steps=8)
    for weights in tiny_wan_copy.glob("*/*.safetensors"):
        weights.unlink()
    planned = "than the UniPCMultistepScheduler at hand, with its 8 steps"
    for name, message in (("meancache", "reads velocities off the latents"), ("planned", planned)):
        with pytest.raises(ValueError, match=message):
            check_recipe(tiny_recipe(name), card, take, model="")
        check_recipe(tiny_recipe(name), card, replace(take, scheduler="euler"), model="")
    with pytest.raises(ValueError, match=planned.replace("UniPC", "DPMSolver")):
        check_recipe(tiny_recipe("planned"), card, replace(take, scheduler="dpm++"), model="")
    check_recipe(tiny_recipe("taylorseer"), card, take, model="")


def test_hunyuan_video_takes_no_scheduler_without_sigmas(tiny_hunyuan: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiny_hunyuan, tmp_path / "model"))
    change(folder, TRANSFORMER, image_condition_type="latent_concat")
    with pytest.raises(ValueError, match="is conditioned on images"):
        read_card(str(folder))
    change(folder, TRANSFORMER, image_condition_type=None)
    assert read_card(str(folder)).num_joint_layers == 2
    SCHEDULERS[1]().save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match="is FlowMatchHeunDiscreteScheduler; longtake's loop works with FlowMatchEuler"):
        read_card(str(folder))


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan"])
def test_weights_that_the_files_lack_are_not_made_up(request: pytest.FixtureRequest, tmp_path: Path, model: str) -> None:
    """Nor are weights left out that the model has no place for."""
    folder = Path(shutil.copytree(request.getfixturevalue(model), tmp_path / "model"))
    for path in sorted(folder.glob("*/*.safetensors")):
        whole = load_file(path)
        name = min(name for name in whole if name.endswith("weight"))
        save_file({key: value for key, value in whole.items() if key != name}, path, {"format": "pt"})
        with pytest.raises(ValueError, match=f"in '{path.parent}' lacks weights .{name}.; download the part again"):
            Renderer(read_card(str(folder)))
        save_file({**whole, "another.weight": whole[name].clone()}, path, {"format": "pt"})
        if not path.parent.name.startswith("text_encoder"):
            with pytest.raises(ValueError, match=r"has left over weights .another\.weight."):
                Renderer(read_card(str(folder)))
        save_file(whole, path, {"format": "pt"})
    Renderer(read_card(str(folder)))


def test_a_take_that_is_no_numbers_fails(tiny_wan_copy: Path) -> None:
    """Whatever made it so: here one weight."""
    path = tiny_wan_copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["proj_out.bias"][0] = torch.inf
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(FloatingPointError, match="latents are not finite"):
        Renderer(read_card(str(tiny_wan_copy))).render(stock_take(num_inference_steps=2), None)
