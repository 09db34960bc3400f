"""Numbers that were published for a model are that model's alone: it is known by its name, and its size must be as stated."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import WanPipeline, WanTransformer3DModel
from longtake.cache import Recipe, enable_cache, load_recipe
from longtake.cache.recipe.fit import is_called, name_from_path
from longtake.cache.recipe.read import recipe_names
from longtake.jobs.settings.config import load_job
from longtake.jobs.settings.planning import plan_job
from longtake.pipeline.checkpoint.card import read_card

NAME = "Wan2.1-T2V-1.3B"
HUB = "models--Wan-AI--Wan2.1-T2V-1.3B-Diffusers/snapshots/0fad780a534b6463e45facd96134c9f345acfa5b"
PUBLISHED = (NAME, "Wan2.1-T2V-14B", "HunyuanVideo")


@pytest.mark.parametrize(
    ("path", "published"),
    [
        ("/models/Wan2.1-T2V-1.3B", NAME),
        ("/models/wan2.1_t2v_1.3b_bf16/", NAME),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", NAME),
        (f"/home/studio/hub/{HUB}", NAME),
        (f"/home/studio/hub/{HUB}/transformer", NAME),
        ("C:\\models\\Wan2.1-T2V-14B-Diffusers\\transformer", "Wan2.1-T2V-14B"),
        ("hunyuanvideo-community/HunyuanVideo", "HunyuanVideo"),
        ("Wan-AI/Wan2.2-T2V-A14B-Diffusers", None),
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers/transformer_2", None),
        ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", None),
        ("Wan-AI/Wan2.1-VACE-1.3B-diffusers", None),
        ("FastVideo/FastWan2.1-T2V-1.3B-Diffusers", None),
        ("studio/Wan2.1-T2V-1.3B-Self-Forcing", None),
        ("hunyuanvideo-community/HunyuanVideo-I2V", None),
        ("hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v", None),
        ("Wan2.1-T2V-1.3B/mine", None),
        ("transformer", None),
        ("", None),
    ],
)
def test_a_path_or_hub_id_names_one_model_or_none(path: str, published: str | None) -> None:
    assert [name for name in PUBLISHED if is_called(name_from_path(path), name)] == [published] * (published is not None)


def test_recipes_name_the_models_that_paths_are_looked_up_for() -> None:
    assert {fit.model for name in recipe_names() for fit in load_recipe(name).fits} == set(PUBLISHED)


def _published(**changes: Any) -> Recipe:
    """TeaCache with numbers that were published, it says, for a model of the tiny one's size."""
    fit = {"model": NAME, "dim": 72, "num_blocks": 3, "trigger": {"threshold": 0.07, "rescale": [1.0, 0.0]}, **changes}
    return load_recipe({**load_recipe("teacache").to_dict(), "fits": [fit]})


def _write(folder: Path, model: Path, recipe: Recipe, name: str = "") -> Path:
    """A job."""
    path, takes = folder / "recipe.yaml", [{"name": "one", "prompt": "a red circle", "num_inference_steps": 4}]
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    job = {"model": {"path": str(model), "name": name}, "output": str(folder / "out"), "cache": str(path), "takes": takes}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def _state(model: Path, name: str) -> None:
    card = model / "README.md"
    card.write_text(card.read_text().replace("longtake: {", f"longtake: {{name: {name}, "))


@pytest.mark.parametrize(
    ("folder", "stated", "in_job"),
    [(f"{NAME}-Diffusers", "", ""), (HUB, "", ""), ("model", NAME, ""), ("model", "", NAME), (NAME, "Wan2.2-TI2V-5B", NAME)],
)
def test_a_job_s_model_is_known_by_its_name(folder: str, stated: str, in_job: str, tiny_wan: Path, tmp_path: Path) -> None:
    """By what the job says before what its README.md states, and by that before its folder's name."""
    model = Path(shutil.copytree(tiny_wan, tmp_path / folder))
    if stated:
        _state(model, stated)
    found = plan_job(load_job(str(_write(tmp_path, model, _published(), in_job)), [])).recipe
    assert found is not None
    assert (found.parts[0].trigger.config.threshold, found.calibrated) == (0.07, False)


@pytest.mark.parametrize(
    ("folder", "stated", "size", "message"),
    [
        (
            "model",
            "",
            {},
            rf"for {NAME}, whose size this model has \(3 blocks, dim 72\), but it is called 'model'. If .* model\.name={NAME} in the job",
        ),
        (
            "Wan2.2-TI2V-5B-Diffusers",
            "",
            {},
            "but it is called 'Wan2.2-TI2V-5B-Diffusers'. If .* front matter .*; if it is not, run `longtake calibrate",
        ),
        (NAME, "Wan2.1-T2V-1.3B-Turbo", {}, "but it is called 'Wan2.1-T2V-1.3B-Turbo'"),
        (NAME, "", {"num_blocks": 30}, rf"numbers for {NAME} with 30 blocks and dim 72, but the model that is called '{NAME}' has 3 blocks"),
        (NAME, "", {"dim": 1536}, "with 3 blocks and dim 1536, but .* dim 72: it is another one. Run `longtake calibrate"),
        ("model", "", {"dim": 1536}, r"needs numbers .* has none for this one \(called 'model', 3 blocks, dim 72\)"),
    ],
)
def test_a_job_s_model_of_another_name_or_size_gets_no_numbers(
    folder: str, stated: str, size: dict[str, int], message: str, tiny_wan: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_wan, tmp_path / folder))
    if stated:
        _state(model, stated)
    job = _write(tmp_path, model, _published(**size))
    with pytest.raises(ValueError, match=message):
        plan_job(load_job(str(job), []))


def test_a_recipe_that_needs_no_numbers_serves_models_of_any_name(tiny_wan: Path) -> None:
    """EasyCache's are better ones for one model, and no other's."""
    recipe = replace(_published(), calibrated=False)
    assert [recipe.fitted(name, 72, 3).parts[0].trigger.config.threshold for name in (NAME, "model", "")] == [0.07, 0.1, 0.1]


def test_a_transformer_is_known_by_where_it_was_loaded_from(tiny_wan: Path, tmp_path: Path) -> None:
    model, unknown = Path(shutil.copytree(tiny_wan, tmp_path / HUB)), WanTransformer3DModel.from_config(tiny_wan / "transformer")
    whole = WanPipeline.from_pretrained(model)
    for one in (WanTransformer3DModel.from_pretrained(model, subfolder="transformer"), whole.transformer, whole):
        cached = enable_cache(one, _published(), num_inference_steps=8)
        assert cached.recipe.parts[0].trigger.config.threshold == 0.07
        cached.disable()
    with pytest.raises(ValueError, match=r"but it is without a name. If it is .* model_name in enable_cache"):
        enable_cache(unknown, _published(), num_inference_steps=8)
    with pytest.raises(ValueError, match="but it is called 'mine'"):
        enable_cache(whole, _published(), num_inference_steps=8, model_name="mine")
    enable_cache(unknown, _published(), num_inference_steps=8, model_name=NAME).disable()


@pytest.mark.parametrize("name", ["[1]", "''", "2.1"])
def test_a_name_is_a_text(name: str, tiny_wan_copy: Path) -> None:
    _state(tiny_wan_copy, name)
    with pytest.raises(ValueError, match=r"name is .*; it must be a text, Wan2.1-T2V-1.3B for example"):
        read_card(str(tiny_wan_copy))


def test_a_take_that_names_no_guidance_has_the_models_own(tiny_wan_copy: Path, tmp_path: Path) -> None:
    card = tiny_wan_copy / "README.md"
    settings = {"model": str(tiny_wan_copy), "output": str(tmp_path / "out"), "takes": [{"name": "a", "prompt": "x"}]}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
    for stated, expected in ((None, 5.0), (3.5, 3.5)):
        if stated:
            card.write_text(card.read_text().replace("longtake: {", f"longtake: {{guidance_scale: {stated}, "))
        for named in ([], ["guidance_scale=2"]):
            [planned] = plan_job(load_job(tmp_path / "job.yaml", named)).takes
            assert planned.take.guidance_scale == (2.0 if named else expected)
