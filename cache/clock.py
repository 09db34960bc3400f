"""Telling the step and branch of a model call where nobody says them: from the timestep, and from diffusers' cache_context."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


class Clock:
    """Counts the steps of one or two transformers (Wan 2.2's experts) while a stock pipeline, or any loop from high timesteps to low ones,
    calls them.

    A call's branch is the name of the `cache_context` that it is made in, `both` outside of one. A timestep above a branch's last one
    begins a new take: `on_new_take` is called.
    """

    def __init__(self, transformers: Sequence[Any], num_inference_steps: int, on_new_take: Callable[[], None]) -> None:
        self._num_inference_steps, self._on_new_take = num_inference_steps, on_new_take
        self._branch = "both"
        self._timestep: torch.Tensor | float | None = None
        self._last: dict[str, tuple[float, int]] = {}
        self._now: tuple[int, float, str] | None = None
        self._undo: list[Callable[[], None]] = []
        for transformer in transformers:
            names = list(inspect.signature(type(transformer).forward).parameters)[1:]
            place = names.index("timestep") if "timestep" in names else len(names)
            self._undo.append(transformer.register_forward_pre_hook(partial(self._note, place), with_kwargs=True).remove)
            contexts = getattr(transformer, "cache_context", None)
            if contexts is not None:
                transformer.cache_context = partial(self._name_branch, contexts)
                self._undo.append(partial(delattr, transformer, "cache_context"))

    def detach(self) -> None:
        for undo in self._undo:
            undo()

    def now(self) -> tuple[int, float, str]:
        """Step, timestep and branch of the call that is being made. Raises ValueError where they cannot be told."""
        if self._now is None:
            self._now = self._count()
        return self._now

    def _count(self) -> tuple[int, float, str]:
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

    def _note(self, place: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._timestep = args[place] if place < len(args) else kwargs.get("timestep")
        self._now = None

    @contextmanager
    def _name_branch(self, contexts: Callable[..., Any], name: str, **kwargs: Any) -> Iterator[None]:
        before, self._branch = self._branch, name
        try:
            with contexts(name, **kwargs):
                yield
        finally:
            self._branch = before
