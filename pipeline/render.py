"""Rendering takes on one rank: a loaded model, its gang's mesh and a recipe, kept for all takes of a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache import Cached, Recipe, Trace, enable_cache
from ..parallel import Mesh, TokenShards
from .card import ModelCard
from .denoise import Denoising, Step
from .families import FAMILIES
from .take import Take

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Rendered:
    """latents: [1, channels, latent frames, height, width], fp32. trace: None without a cache. cache_bytes: held at the end."""

    latents: Tensor
    trace: Trace | None
    cache_bytes: int


class Renderer:
    """Load once, render takes one after another."""

    def __init__(self, card: ModelCard, *, dtype: str = "float32", device: str = "cpu", mesh: Mesh | None = None) -> None:
        self.family = FAMILIES[card.family].load(card, DTYPES[dtype], torch.device(device))
        self.mesh = mesh or Mesh()
        self._cached: Cached | None = None
        if self.mesh.size > 1:
            self.family.shard(TokenShards(self.mesh))

    def steps(self, take: Take, recipe: Recipe | None) -> Iterator[Step | Rendered]:
        """Denoise a take: a Step after each step, then one Rendered. Every rank of the gang must exhaust it."""
        steps = take.num_inference_steps
        cached = enable_cache(self.family.transformer, recipe, num_inference_steps=steps, reduce=self.mesh.sum) if recipe else None
        self._cached = cached
        try:
            denoising = Denoising(self.family, take, cached)
            yield from denoising
            trace = cached.finish() if cached else None
            yield Rendered(denoising.latents, trace, cached.state.num_bytes if cached else 0)
        finally:
            self._cached = None
            if cached:
                cached.disable()

    @property
    def decisions(self) -> dict[str, int]:
        """How many of each decision the running take has seen so far; empty without a cache."""
        return self._cached.trace.summary() if self._cached else {}

    def render(self, take: Take, recipe: Recipe | None) -> Rendered:
        """Denoise a take without looking at its steps."""
        *_, rendered = self.steps(take, recipe)
        assert isinstance(rendered, Rendered)
        return rendered
