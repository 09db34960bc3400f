"""What single model calls cost under a cache: a REUSE as a share of a full call, a COMPUTE over a call without a cache.

Counted in this process's CPU time on one thread, so that what else runs on the machine counts for nothing. On the demo model at its full
window and on random weights of Wan 1.3B's width, one branch: the other one costs the same again. A recipe at a time, as a process that
renders holds one model: a transformer with the cache and one without take turns, a few calls at a turn, the first ones left out where the
model is so small that the processor's own caches would still hold the other one's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from ....cache import Recipe, enable_cache, load_recipe
from ....pipeline.checkpoint.card import read_card
from ...results import Bar

_NEVER = 10**6
_STEPS = 50  # of a take, as many as the recipes are calibrated for
_WAN_RECIPES = ("planned", "fbcache", "fora", "adacache")


@dataclass(frozen=True)
class Bench:
    """A model that is called, and how often: rounds of `calls` in a row, of which the `first` ones are left out."""

    transformer: Any
    inputs: Mapping[str, Any]
    rounds: int
    calls: int
    first: int


def demo_costs(recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """The bars of the demo model, and every way's median share of a call without a cache. recipes: by method, those that compute."""
    ways = {f"compute {method}": _computing(recipe) for method, recipe in recipes.items()}
    for predictor in ({"name": "reuse"}, {"name": "taylor", "order": 1}):
        ways[f"reuse stack {predictor['name']}"] = _reusing({"name": "stack", "first_blocks": 0, "last_blocks": 0}, predictor)
        ways[f"reuse output {predictor['name']}"] = _reusing({"name": "output"}, predictor)
    shares = shares_of_a_call(_demo_bench(), ways)

    def dearest(kind: str) -> float:
        return max(share for name, share in shares.items() if name.startswith(kind))

    bars = {
        "reuse_cost_stack": Bar(dearest("reuse stack"), "of a full step", 0.05, at_least=False),
        "reuse_cost_output": Bar(dearest("reuse output"), "of a full step", 0.02, at_least=False),
        "compute_overhead": Bar(dearest("compute"), "x", 1.06, at_least=False),
    }
    return _result(bars, shares)


def wan_costs() -> dict[str, Any]:
    """The same at Wan 1.3B's width, for the recipes that the bar names; `planned` has the numbers of the demo's plan, of as many steps."""
    plan = load_recipe(read_card("demo").path / "longtake" / f"planned-{_STEPS}-steps.yaml")
    recipes = {name: plan if name == "planned" else load_recipe(name) for name in _WAN_RECIPES}
    shares = shares_of_a_call(wan_bench(), {f"compute {name}": _computing(recipe) for name, recipe in recipes.items()})
    return _result({"compute_overhead_wan": Bar(max(shares.values()), "x", 1.02, at_least=False)}, shares)


def _result(bars: dict[str, Bar], shares: dict[str, float]) -> dict[str, Any]:
    return {"bars": {name: asdict(bar) for name, bar in bars.items()}, "share_of_a_call": shares}


def _demo_bench() -> Bench:
    card = read_card("demo")
    transformer: Any = WanTransformer3DModel.from_pretrained(card.path / "transformer").eval()
    shape = (card.latent_channels, card.latent_frames(card.trained_frames), card.height // card.spatial_stride, card.width // card.spatial_stride)
    return Bench(transformer, _inputs(transformer, shape, text_tokens=card.max_sequence_length), rounds=20, calls=6, first=2)


def wan_bench(num_layers: int = 4, dim: int = 1536) -> Bench:
    """Wan 1.3B but for its number of blocks: 12 heads, 1,024 tokens, random weights."""
    torch.manual_seed(0)
    heads = dim // 128
    transformer = WanTransformer3DModel(num_attention_heads=heads, attention_head_dim=128, ffn_dim=dim * 35 // 6, num_layers=num_layers).eval()
    return Bench(transformer, _inputs(transformer, (16, 4, 32, 32), text_tokens=512), rounds=12, calls=1, first=0)


def _inputs(transformer: Any, shape: tuple[int, ...], text_tokens: int) -> dict[str, Any]:
    text = torch.randn(1, text_tokens, transformer.config.text_dim)
    return {"hidden_states": torch.randn(1, *shape), "encoder_hidden_states": text, "return_dict": False}


def _reusing(site: dict[str, Any], predictor: dict[str, Any]) -> Recipe:
    """Two computed steps, then none."""
    guards = {"first_steps": 2, "last_steps": 0}
    return load_recipe({"trigger": {"name": "interval", "interval": _NEVER}, "site": site, "predictor": predictor, "guards": guards})


def _computing(recipe: Recipe) -> Recipe:
    """The recipe with every step computed, whatever its trigger measures."""
    return load_recipe(recipe, {"guards": {"first_steps": _NEVER}})


@torch.no_grad()
def shares_of_a_call(bench: Bench, recipes: Mapping[str, Recipe]) -> dict[str, float]:
    """What a call under each recipe takes of one without a cache: the median over the rounds, in each a few calls of both in a row."""
    bare = _Way(bench, None)
    return {name: round(median(_ratios(_Way(bench, recipe), bare, bench.rounds)), 4) for name, recipe in recipes.items()}


def _ratios(way: _Way, bare: _Way, rounds: int) -> Iterator[float]:
    for turn in range(rounds):
        seconds = {one: one.seconds() for one in ((bare, way) if turn % 2 else (way, bare))}
        yield seconds[way] / seconds[bare]


class _Way:
    """A transformer with weights of its own, with a cache or without, that is called step after step, take after take."""

    def __init__(self, bench: Bench, recipe: Recipe | None) -> None:
        self._bench, self._transformer, self._step = bench, deepcopy(bench.transformer), 0
        self._cached = enable_cache(self._transformer, recipe, num_inference_steps=_STEPS) if recipe else None

    def seconds(self) -> float:
        """CPU seconds of a call, the median of a few; a new take begins with calls that are left out."""
        if self._step + self._bench.calls > _STEPS:
            self._step = 0
            if self._cached:
                self._cached.reset()
        return median([self._call() for _ in range(self._bench.calls)][self._bench.first :])

    def _call(self) -> float:
        timestep = torch.tensor([1000.0 * (1 - self._step / _STEPS)])
        began = time.process_time()
        with self._cached.step(self._step, timestep, branch="cond") if self._cached else nullcontext():
            self._transformer(timestep=timestep, **self._bench.inputs)
        self._step += 1
        return time.process_time() - began
