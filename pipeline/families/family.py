"""The contract of a family: one kind of model, loaded and called through diffusers' own classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...parallel import TokenShards
from ..card import ModelCard


class Family(ABC):
    """A loaded model. `transformer` is diffusers' own; `scheduler` is made anew for each take."""

    card: ModelCard
    transformer: Any
    device: torch.device

    @classmethod
    @abstractmethod
    def load(cls, card: ModelCard, dtype: torch.dtype, device: torch.device) -> Family:
        """Load all parts; transformer and text encoder in `dtype`, the VAE in fp32."""

    @abstractmethod
    def encode_prompt(self, prompt: str) -> Tensor:
        """Text embeddings [1, max_sequence_length, dim] as the stock pipeline makes them."""

    @abstractmethod
    def scheduler(self, num_inference_steps: int, flow_shift: float | None) -> Any:
        """A fresh diffusers scheduler with its timesteps set."""

    @abstractmethod
    def velocity(self, latents: Tensor, timestep: Tensor, prompt_embeds: Tensor) -> Tensor:
        """One model call. latents: [1, channels, latent frames, height, width]; timestep: scalar."""

    @abstractmethod
    def encode(self, frames: Tensor) -> Tensor:
        """Latents [1, channels, latent frames, height, width] of frames [frames, height, width, 3] in 0..1."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """Stream a take's frames: chunks [frames, height, width, 3] in 0..1, memory independent of the take's length."""

    @abstractmethod
    def shard(self, shards: TokenShards) -> None:
        """Put the shard points of sequence parallelism on the transformer, for good."""
