"""Telling the step and branch of a model call where nobody says them: from the timestep, and from diffusers' cache_context."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Clock:
    """Counts a transformer's steps while a stock pipeline, or any loop from high timesteps to low ones, calls it.

    A call's branch is the name of the `cache_context` that it is made in, `both` outside of one. A timestep above a branch's last one
    begins a new take: `on_new_take` is called.
    """

    def __init__(self, transformer: Any, num_inference_steps: int, on_new_take: Callable[[], None]) -> None:
        self._num_inference_steps, self._on_new_take = num_inference_steps, on_new_take
        self._signature = inspect.signature(type(transformer).forward)
        self._branch = "both"
        self._timestep: torch.Tensor | float | None = None
        self._last: dict[str, tuple[float, int]] = {}
        self._hook = transformer.register_forward_pre_hook(self._note, with_kwargs=True)
        self._transformer = transformer
        self._contexts = getattr(transformer, "cache_context", None)
        if self._contexts is not None:
            transformer.cache_context = self._name_branch

    def detach(self) -> None:
        self._hook.remove()
        if self._contexts is not None:
            del self._transformer.cache_context

    def now(self) -> tuple[int, float, str]:
        """Step, timestep and branch of the call that is being made. Raises ValueError where they cannot be told."""
        branch = self._branch
        if self._timestep is None:
            raise ValueError("The cache cannot tell the step of this call; make it inside `with cached.step(index, timestep, branch=...)`.")
        timestep = float(torch.as_tensor(self._timestep).max())
        last, index = self._last.get(branch, (float("inf"), -1))
        if timestep == last:
            raise ValueError(
                f"Two calls at timestep {timestep:g} in branch '{branch}': the cache cannot tell them apart; make them inside "
                f"`with transformer.cache_context(branch)` or `with cached.step(index, timestep, branch=...)`."
            )
        if timestep > last:
            self._last.clear()
            self._on_new_take()
            index = -1
        self._last[branch] = (timestep, index + 1)
        if index + 1 >= self._num_inference_steps:
            raise ValueError(f"This is step {index + 2} of a take; enable_cache was told num_inference_steps={self._num_inference_steps}.")
        return index + 1, timestep, branch

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._timestep = self._signature.bind_partial(module, *args, **kwargs).arguments.get("timestep")

    @contextmanager
    def _name_branch(self, name: str, **kwargs: Any) -> Iterator[None]:
        assert self._contexts is not None
        before, self._branch = self._branch, name
        try:
            with self._contexts(name, **kwargs):
                yield
        finally:
            self._branch = before
