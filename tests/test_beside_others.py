"""Caches on models that others wrap as well: hooks, offloading, compilation, copies, other caches, before ours and after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers.hooks import FirstBlockCacheConfig, apply_group_offloading
from longtake.cache import enable_cache

from same import assert_same
from stock import MODELS, SITES, call, every, rows_of, tiny_pipeline, tiny_transformer

pytestmark = pytest.mark.numerical


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
    reference = tiny_pipeline(tiny_wan)
    plain = call(reference, 4)
    cached = enable_cache(reference, every(2, recipe), num_inference_steps=4)
    film, rows = call(reference, 4), rows_of(cached)
    for on, off in _orders():
        pipe = tiny_pipeline(tiny_wan)
        take_off = wrapper(pipe.transformer) if on == "before" else None
        cached = enable_cache(pipe, every(2, recipe), num_inference_steps=4)
        take_off = take_off or wrapper(pipe.transformer)
        for _ in range(2):  # before and after the other one has left
            assert_same(call(pipe, 4), film)
            assert rows_of(cached) == rows
            if off == "between":
                take_off()
        cached.disable()
        assert_same(call(pipe, 4), plain)
        if off == "after":
            take_off()
        assert_same(call(pipe, 4), plain)


def test_hooks_of_others_go_on_being_called(tiny_wan: Path) -> None:
    for first in (True, False):
        pipe, hook = tiny_pipeline(tiny_wan), _Count()
        if first:
            add_hook_to_module(pipe.transformer, hook)
        cached = enable_cache(pipe, every(2, "easycache"), num_inference_steps=4)
        if not first:
            add_hook_to_module(pipe.transformer, hook)
        call(pipe, 4)
        cached.disable()
        call(pipe, 4)
        assert hook.calls == 16


@pytest.mark.parametrize("recipe", SITES)
def test_a_copy_of_a_cached_model_has_no_cache(tiny_wan: Path, recipe: str) -> None:
    pipe = tiny_pipeline(tiny_wan)
    plain = call(pipe)
    cached = enable_cache(pipe, every(2, recipe), num_inference_steps=8)
    film, rows = call(pipe), rows_of(cached)
    copied = tiny_pipeline(tiny_wan)
    copied.transformer = deepcopy(pipe.transformer)
    assert list(copied.transformer.state_dict()) == list(pipe.transformer.state_dict())
    assert_same(call(copied), plain)
    assert rows_of(cached) == rows
    with torch.no_grad():
        for weight in copied.transformer.parameters():
            weight.zero_()
    enable_cache(copied, "fbcache", num_inference_steps=8)
    assert_same(call(pipe), film)


def test_the_blocks_can_be_seen_while_they_are_cached(tiny_wan: Path) -> None:
    """Outside of model calls the list is that of the blocks, and what is put in it stays after disable()."""
    transformer = tiny_pipeline(tiny_wan).transformer
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
    transformer, given = tiny_transformer(MODELS[0])
    plain = transformer(**given, return_dict=False)[0]
    cached = enable_cache(transformer, every(9, "fbcache"), num_inference_steps=9)
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
    pipe = tiny_pipeline(tiny_wan)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"call transformer\.disable_cache\(\) first"):
        enable_cache(pipe, "fbcache", num_inference_steps=8)
    pipe.transformer.disable_cache()
    cached = enable_cache(pipe, "easycache", num_inference_steps=8)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"call transformer\.disable_cache\(\) first"):
        call(pipe)
    pipe.transformer.disable_cache()
    call(pipe)
    assert cached.trace.entries
