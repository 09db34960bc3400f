"""Weights that are sharded over the gang, or kept out of the way: the same film, less memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from longtake.bench.pool import GlooPool
from longtake.cache import load_recipe
from longtake.parallel.groups.degrees import Degrees
from longtake.parallel.groups.mesh import Mesh
from longtake.pipeline.checkpoint.card import ModelCard, read_card
from longtake.pipeline.families.weights import weight_bytes
from longtake.pipeline.loop.render import Renderer
from longtake.pipeline.options import ModelOptions

from same import assert_same
from takes import tiny_take

pytestmark = pytest.mark.numerical


def _render(mesh: Mesh, card: ModelCard, options: ModelOptions) -> tuple[torch.Tensor, int]:
    renderer = Renderer(card, options, mesh=mesh)
    latents = renderer.render(tiny_take(), load_recipe("fbcache", {"trigger": {"threshold": 0.1}})).latents
    return latents, weight_bytes(renderer.family.transformer)


@pytest.mark.parametrize("model", ["tiny_wan", "tiny_hunyuan"])
def test_sharded_weights_render_the_same_film(gloo_pool: GlooPool, model: str, request: pytest.FixtureRequest) -> None:
    card = read_card(str(request.getfixturevalue(model)))
    alone, whole = gloo_pool.run(_render, 1, card, ModelOptions())[0]
    for degrees in (Degrees(ulysses_degree=2), Degrees(cfg_degree=2 if model == "tiny_wan" else 1, ring_degree=2)):
        for latents, held in gloo_pool.run(_render, degrees, card, ModelOptions(shard="gang")):
            assert_same(latents, alone, f"with {degrees}")
            assert held <= 0.51 * whole


def test_offloaded_weights_render_the_same_film(tiny_wan: Path, tiny_hunyuan: Path) -> None:
    for card in (read_card(str(tiny_wan)), read_card(str(tiny_hunyuan))):
        (kept, _), (offloaded, _) = (_render(Mesh(), card, ModelOptions(offload=offload)) for offload in ("none", "blocks"))
        assert_same(offloaded, kept)  # weights that are read from other files lie elsewhere, for which kernels add up otherwise


_RESIDENT = """
import ctypes, os, sys
import psutil, torch
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.loop.render import Renderer
from longtake.pipeline.families.weights import offload_weights, weight_bytes
family = Renderer(read_card("demo")).family
def resident():
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return psutil.Process().memory_info().rss
def call():
    prompt = family.encode_prompt("a red circle")
    with torch.no_grad():
        family.velocity(torch.zeros(1, 16, 2, 12, 12), torch.tensor(500.0), prompt, 1.0)
call()
before = resident()
folder = offload_weights(family.transformer, torch.device("cpu"))
call()
print((before - resident()) / weight_bytes(family.transformer))
"""


def test_offloaded_weights_leave_memory() -> None:
    """Of the demo model's weights, 88 % lie in its blocks; one block stays while it runs. glibc must give freed memory back at once."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run([sys.executable, "-c", _RESIDENT], capture_output=True, text=True, check=True, env=environment)
    assert float(result.stdout) > 0.6, f"memory fell by {float(result.stdout):.0%} of the weights"


def test_options_that_exclude_each_other_are_refused(tiny_wan: Path) -> None:
    card = read_card(str(tiny_wan))
    with pytest.raises(ValueError, match="no ranks share tokens"):
        Renderer(card, ModelOptions(shard="gang"))
