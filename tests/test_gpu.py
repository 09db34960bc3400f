"""What only a CUDA device can show: its kernels, copies to the host beside computing, offloading. `pytest -m gpu` where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from longtake.cache import enable_cache, load_recipe
from longtake.parallel.attention.kernels import NativeKernel
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.render import ModelOptions, Renderer, WholeTake, whole_take
from torch import Tensor

from takes import tiny_recipe, tiny_take

pytestmark = pytest.mark.gpu
_CROSSED = 1e-3  # latents of one take on two devices, whose kernels add up in other orders over all its steps


@pytest.fixture(autouse=True)
def _whole_fp32() -> Iterator[None]:
    """Convolutions round their inputs to TF32 otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def _render(folder: Path, device: str, recipe: str, **changes: Any) -> WholeTake:
    card = read_card(str(folder))
    chosen = None if recipe == "none" else tiny_recipe(recipe, card.family)
    renderer = Renderer(card, ModelOptions(**changes), device=device)
    return renderer.render(tiny_take(num_inference_steps=8, num_frames=13, prompts=tiny_take().prompts[:1]), chosen)


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan"])
@pytest.mark.parametrize("recipe", ["none", "fbcache", "taylorseer", "adacache", "easycache"])
def test_cuda_renders_what_the_cpu_does(model: str, recipe: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    here, there = (_render(folder, device, recipe) for device in ("cpu", "cuda"))
    assert (here.latents - there.latents.cpu()).abs().max() <= _CROSSED
    if here.trace is not None and there.trace is not None:
        assert here.trace.choices == there.trace.choices


@pytest.mark.parametrize("recipe", ["none", "fbcache", "taylorseer"])
def test_offloaded_blocks_render_the_same_film(tiny_wan: Path, recipe: str) -> None:
    """The same kernels on the same numbers, wherever the weights waited."""
    kept, offloaded = (_render(tiny_wan, "cuda", recipe, offload=offload) for offload in ("none", "blocks"))
    assert (kept.latents - offloaded.latents).abs().max() <= 1e-4


@pytest.mark.parametrize(("recipe", "dtype"), [("taylorseer", "model"), ("dbcache", "bfloat16"), ("fora", "float8"), ("easycache", "model")])
def test_what_is_kept_on_the_host_comes_back_as_it_was(tiny_wan: Path, recipe: str, dtype: str) -> None:
    renderer = Renderer(read_card(str(tiny_wan)), device="cuda")
    take, chosen = tiny_take(num_inference_steps=8), replace(tiny_recipe(recipe), dtype=dtype)
    films = []
    for place in ("device", "host"):
        films.append(whole_take(renderer.steps(take, chosen, place=place)).latents)
    assert torch.equal(*films)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_its_log_sum_exp(dtype: torch.dtype, masked: bool) -> None:
    """Against the formula; 77 keys are no multiple of the kernels' tiles."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, length, 4, 64, generator=generator).to("cuda", dtype) for length in (50, 77, 77))
    mask = torch.rand(2, 77, generator=generator).to("cuda") < 0.6 if masked else None
    scores = torch.einsum("bqhd,bkhd->bqhk", query.double(), key.double()) / 8
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    attended = NativeKernel().with_lse(query, key, value, mask, None)
    expected = torch.einsum("bqhk,bkhd->bqhd", scores.softmax(-1), value.double())
    room = 16 * torch.finfo(dtype).eps  # of values of size 1
    assert (attended.out.double() - expected).abs().max() <= room
    assert (attended.lse.double() - scores.logsumexp(-1)).abs().max() <= room


def test_model_offloading_beside_a_cache(tiny_wan: Path) -> None:
    """It takes its hooks off and puts new ones on at the end of each call."""
    films: list[Tensor] = []
    traces = []
    for offloads in (False, True):
        stock = DiffusionPipeline.from_pretrained(tiny_wan)
        stock.set_progress_bar_config(disable=True)
        if offloads:
            stock.enable_model_cpu_offload()
        else:
            stock.to("cuda")
        cached = enable_cache(stock, load_recipe("easycache", {"trigger": {"threshold": 0.5}}), num_inference_steps=8)
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            size = {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 32}
            films.append(stock("a circle", num_inference_steps=8, generator=generator, output_type="latent", **size).frames.cpu())
            traces.append(cached.finish().choices)
    assert any(choice[-1] == "reuse" for choice in traces[0])
    assert traces[:2] == traces[2:]
    for kept, offloaded in zip(films[:2], films[2:], strict=True):
        assert (kept - offloaded).abs().max() <= 1e-4
