"""Features at rest: what fewer bits keep, and that no sharding of the tokens changes it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.bench.pool import GlooPool
from longtake.cache import Recipe, Shards, enable_cache, load_recipe
from longtake.cache.state.storage import DTYPES, Storage
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.loop.render import Renderer
from longtake.pipeline.loop.snapshot import MeshRelay
from safetensors.torch import load_file

from takes import tiny_recipe, tiny_take

pytestmark = pytest.mark.numerical

TAKE = tiny_take(num_frames=13, num_inference_steps=8, prompts=tiny_take().prompts[:1])


def test_dtypes_are_as_large_as_is_said_of_them() -> None:
    """Memory is predicted from what is said, without torch."""
    for stored in filter(None, DTYPES.values()):
        dtype = getattr(torch, stored.name)
        assert dtype.itemsize == stored.itemsize
        assert stored.scaled == (torch.finfo(dtype).max < torch.finfo(torch.bfloat16).max)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", ["float16", "float8"])
@given(cuts=st.lists(st.integers(0, 9), max_size=3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_shards_keep_the_bits_of_the_whole(dtype: str, cuts: list[int], seed: int) -> None:
    """Also where a shard is empty, or holds the loudest token."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(2, 9, 12, generator=generator) * torch.logspace(-30, 30, 9)[:, None]
    storage, edges = Storage(dtype), [0, *sorted(cuts), 9]
    whole = storage.put(feature)
    shards = [storage.put(feature[:, start:stop]) for start, stop in pairwise(edges)]
    assert torch.equal(_bits(torch.cat([shard.stored.view(torch.uint8) for shard in shards], dim=1)), _bits(whole.stored))
    assert torch.equal(torch.cat([shard.get() for shard in shards], dim=1), whole.get())


# Half a step of the last kept digit: 10 bits of mantissa, or 3. One more bit for the rounding of scales and of the way back.
@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2**-7), ("float16", 2**-10), ("float8", 2**-3)])
@pytest.mark.parametrize(("model", "sizes"), [(torch.float32, [1e-39, 1e-7, 1.0, 7e4, 1e30]), (torch.float16, [1e-7, 1.0, 6e4])], ids=str)
def test_values_of_any_size_come_back(dtype: str, step: float, model: torch.dtype, sizes: list[float]) -> None:
    """float16 ends at 65504, and float8 at 448."""
    feature = torch.tensor([[[size, -size, size / 2, 0.0] for size in (*sizes, 0.0)]]).to(model)
    kept = Storage(dtype).put(feature)
    back = kept.get()
    assert back.dtype is model
    smallest = torch.finfo(torch.float32).tiny  # below, the last digits are lost
    assert bool(((back - feature).float().abs() <= step * feature.float().abs() + smallest).all())
    assert torch.equal(kept.get(2), back[..., :2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_token_stays_broken_and_breaks_no_other(dtype: str, broken: float) -> None:
    feature = torch.ones(1, 2, 4)
    feature[0, 0, 1] = broken
    back = Storage(dtype).put(feature).get()
    assert not bool(back[0, 0].isfinite().all())
    assert torch.equal(back[0, 1], torch.ones(4))


def test_samples_of_latents_have_a_scale_each() -> None:
    """A batch of both branches keeps what the branches keep that run at once in different places."""
    both = torch.randn(2, 4, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1e4]).view(2, 1, 1, 1, 1)
    apart = [Storage("float8").put(branch).get() for branch in both.split(1)]
    assert torch.equal(Storage("float8").put(both).get(), torch.cat(apart))


def _save(mesh: Mesh, card: ModelCard, recipe: Recipe, folder: Path) -> None:
    renderer = Renderer(card, mesh=mesh)
    steps = renderer.steps(TAKE, recipe)
    for _ in range(5):
        next(steps)
    assert renderer.cached is not None
    renderer.cached.save(folder / "first.safetensors", MeshRelay(mesh, 0))
    steps.close()


def _load_and_save(mesh: Mesh, card: ModelCard, recipe: Recipe, folder: Path) -> None:
    cached = enable_cache(Renderer(card, mesh=mesh).family.transformer, recipe, num_inference_steps=8, shards=Shards(mesh.sequence.sum))
    cached.load(folder / "first.safetensors", MeshRelay(mesh, 0))
    cached.save(folder / "second.safetensors", MeshRelay(mesh, 0))


@pytest.mark.parametrize(
    ("recipe", "dtype"), [("dmd", "float8"), ("dicache", "float16"), ("meancache", "float8"), ("speca", "bfloat16"), ("easycache", "model")]
)
def test_a_saved_cache_keeps_its_bits(gloo_pool: GlooPool, tiny_wan: Path, tmp_path: Path, recipe: str, dtype: str) -> None:
    """Written on 2 ranks, read and written again on 3."""
    card, chosen = read_card(str(tiny_wan)), load_recipe(tiny_recipe(recipe), dtype=dtype)
    gloo_pool.run(_save, Degrees(ulysses_degree=2), card, chosen, tmp_path)
    gloo_pool.run(_load_and_save, Degrees(ulysses_degree=3), card, chosen, tmp_path)
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys() and len(first) > 1
    for name, tensor in first.items():
        assert tensor.dtype is second[name].dtype and torch.equal(_bits(tensor), _bits(second[name])), name
