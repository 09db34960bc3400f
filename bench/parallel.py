"""What a gang costs: `python -m longtake.bench parallel`. Gangs of gloo processes on this machine's CPU, one thread a rank.

sp_efficiency_2: a model call on 1 rank over twice the time on 2 (Ulysses), a Wan-shaped DiT at 4,096 tokens. vs_diffusers_ulysses:
diffusers' own Ulysses over ours, the same model and ranks. overhead_1_rank: the demo model's call at
one rank through our family over the bare transformer's.
bytes_ulysses, bytes_ring: bytes that a rank sends in one attention layer over the formula in SequenceAttention, the one of 3 ranks
farther from 1. parity_max_diff: the largest difference of latents against one rank's, over random sizes, ranks, degrees and layouts,
the demo model with the recipe `interval`. Times are medians of interleaved rounds; the raw figures hold them all.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import ContextParallelConfig, ParallelConfig, WanTransformer3DModel
from diffusers.hooks import apply_context_parallel
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ..cache import load_recipe
from ..parallel.attention.kernels import NativeKernel
from ..parallel.attention.sequence import SequenceAttention
from ..parallel.groups.degrees import Degrees
from ..parallel.groups.mesh import Mesh
from ..parallel.tokens.shards import TokenShards
from ..pipeline.checkpoint.card import read_card
from ..pipeline.families import Wan
from ..pipeline.loop.render import Renderer
from ..pipeline.options import LAYOUTS, ModelOptions
from ..pipeline.take import PromptAt, Take, TimelineSettings
from .pool import GlooPool
from .results import Bar, write_results

_ROUNDS = 15
_LATENTS = (1, 16, 16, 32, 32)  # 4,096 tokens
_DRAWS = 40


def main() -> None:
    with GlooPool(5, timeout=300) as pool:
        calls, one_rank = pool.run(_model_calls, 2)[0], pool.run(_one_rank_calls, 1)[0]
        sent = {
            name: pool.run(_bytes_over_formula, degrees)
            for name, degrees in (("ulysses", Degrees(ulysses_degree=3)), ("ring", Degrees(ring_degree=3)))
        }
        parity = _parity(pool)
    middle = {name: median(times) for name, times in {**calls, **one_rank}.items()}
    farthest = {name: max(ratios, key=lambda ratio: abs(ratio - 1)) for name, ratios in sent.items()}
    bars = {
        "sp_efficiency_2": Bar(round(middle["1 rank"] / middle["2 ranks"] / 2, 3), "share", 0.85, at_least=True),
        "vs_diffusers_ulysses": Bar(round(middle["diffusers, 2 ranks"] / middle["2 ranks"], 3), "x", 1.0, at_least=True),
        "overhead_1_rank": Bar(round(middle["ours"] / middle["bare"], 3), "x", 1.02, at_least=False),
        "bytes_ulysses": Bar(round(farthest["ulysses"], 4), "x", 1.01, at_least=False),
        "bytes_ring": Bar(round(farthest["ring"], 4), "x", 1.01, at_least=False),
        "parity_max_diff": Bar(max(draw["difference"] for draw in parity), "latent units", 1e-4, at_least=False),
    }
    raw = {"seconds_a_call": calls, "seconds_a_call_at_1_rank": one_rank, "bytes_over_formula": sent, "parity": parity}
    write_results("parallel", bars, raw)


def _wan_shaped() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(num_attention_heads=12, attention_head_dim=64, text_dim=256, ffn_dim=3072, num_layers=2).eval()


@torch.no_grad()
def _model_calls(mesh: Mesh) -> dict[str, list[float]]:
    """Seconds a call, call by call in turn: on rank 0 alone, on both ranks through our layer, on both through diffusers' own."""
    alone, ours, theirs = (_wan_shaped() for _ in range(3))
    Wan.shard(ours, TokenShards(mesh), NativeKernel())
    _shard_as_diffusers_does(theirs, mesh)
    latents, text = torch.randn(_LATENTS), torch.randn(1, 32, 256)
    ways = [("1 rank", alone), ("2 ranks", ours), ("diffusers, 2 ranks", theirs)]
    seconds: dict[str, list[float]] = {name: [] for name, _ in ways}
    for turn in range(1 + _ROUNDS):
        for index in range(len(ways)):
            name, transformer = ways[(turn + index) % len(ways)]  # whoever follows the call on one rank meets a cold second core
            mesh.gang.sum(torch.zeros(1))  # all start together
            began = time.perf_counter()
            if mesh.rank == 0 or name != "1 rank":
                transformer(latents, torch.tensor([500.0]), text, return_dict=False)
            mesh.gang.sum(torch.zeros(1))  # the slowest counts
            seconds[name].append(time.perf_counter() - began)
    return {name: times[1:] for name, times in seconds.items()}


@torch.no_grad()
def _one_rank_calls(mesh: Mesh) -> dict[str, list[float]]:
    """Seconds a call of the demo model at its full window: the bare transformer, and through our family at one rank."""
    family = Renderer(read_card("demo"), mesh=mesh).family
    prompt = family.encode_prompt("a red circle moves right over a grey background")
    latents, timestep = torch.randn(1, 16, 9, 12, 12), torch.tensor(500.0)
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(1 + 10 * _ROUNDS):
        for name, times in seconds.items():
            began = time.perf_counter()
            if name == "ours":
                family.velocity(latents, timestep, prompt, 4.0)
            else:
                family.transformer(latents, timestep.expand(1), prompt["encoder_hidden_states"], return_dict=False)
            times.append(time.perf_counter() - began)
    return {name: times[1:] for name, times in seconds.items()}


def _shard_as_diffusers_does(transformer: Any, mesh: Mesh) -> None:
    """`enable_parallelism` step by step; as a whole it divides by zero on CPU."""
    context = ContextParallelConfig(ulysses_degree=mesh.size, ring_degree=1)
    config = ParallelConfig(context_parallel_config=context)
    device_mesh = init_device_mesh("cpu", (1, mesh.size), mesh_dim_names=("ring", "ulysses"))
    config.setup(mesh.rank, mesh.size, torch.device("cpu"), mesh=device_mesh)
    for module in transformer.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = config
    apply_context_parallel(transformer, context, transformer._cp_plan)


def _bytes_over_formula(mesh: Mesh) -> float:
    tokens, heads, head_dim, ranks = 1536, 12, 64, mesh.size
    shards = TokenShards(mesh)
    shards.begin_call(tokens)
    query, key, value = (shards.shard(torch.randn(1, tokens, heads, head_dim), dim=1) for _ in range(3))
    before = mesh.traffic.sent_bytes
    SequenceAttention(shards, NativeKernel())(query, key, value)
    whole = tokens * heads * head_dim * query.element_size()
    formula = (4 * whole / ranks if mesh.ulysses.size > 1 else 2 * whole) * (ranks - 1) / ranks
    return (mesh.traffic.sent_bytes - before) / formula


def _parity(pool: GlooPool) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    draws = []
    for index in range(_DRAWS):
        take, degrees, layout = _draw(rng, index)
        alone = pool.run(_latents, 1, take, "even")[0]
        difference = max((latents - alone).abs().max().item() for latents in pool.run(_latents, degrees, take, layout))
        draws.append({"size": [take.num_frames, take.height, take.width], "degrees": degrees.sizes, "layout": layout, "difference": difference})
    return draws


def _draw(rng: np.random.Generator, index: int) -> tuple[Take, Degrees, str]:
    num_ranks = int(rng.integers(1, 6))
    shapes = [
        Degrees(cfg, window, ring, num_ranks // (cfg * window * ring))
        for cfg in (1, 2)
        for window in (1, 2)
        for ring in range(1, num_ranks + 1)
        if num_ranks % (cfg * window * ring) == 0 and 12 % (num_ranks // (cfg * window * ring)) == 0
    ]
    degrees = shapes[rng.integers(len(shapes))]
    is_long = degrees.window_degree > 1 or rng.random() < 0.3
    take = Take(
        name=f"draw-{index}",
        prompts=(PromptAt(0, "a red circle moves right over a grey background"),),
        negative_prompt="",
        seed=index,
        num_frames=4 * int(rng.integers(5, 10)) + 1 if is_long else 4 * int(rng.integers(1, 6)) + 1,
        height=16 * int(rng.integers(2, 7)),
        width=16 * int(rng.integers(2, 7)),
        num_inference_steps=4,
        guidance_scale=4.0,
        flow_shift=None,
        timeline=TimelineSettings("windows", 5, 2) if is_long else TimelineSettings("full", 0, 0),
        noise="frame",
    )
    return take, degrees, str(rng.choice(LAYOUTS))


def _latents(mesh: Mesh, take: Take, layout: str) -> Tensor:
    """With a cache that decides by schedule: near a threshold, rounding may make two gangs decide differently, which other tests look at."""
    return Renderer(read_card("demo"), ModelOptions(layout=layout), mesh=mesh).render(take, load_recipe("interval")).latents
