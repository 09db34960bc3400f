"""A take in segments that shards hold apart: what is measured over latents and tokens, cut at the segments' borders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ...later import torch

if TYPE_CHECKING:
    from torch import Tensor


class Segments(Protocol):
    """The segments of a take one call of which shows all of them; a shard holds the frames of some of them, in a row, or a share of their tokens."""

    @property
    def num_segments(self) -> int:
        """Of the take."""

    @property
    def first_segment(self) -> int:
        """The number of this shard's first one."""

    def frames_of_segments(self) -> Sequence[int]:
        """How many latent frames each of this shard's has."""

    def tokens_of_segments(self) -> Sequence[int]:
        """How many tokens of each of them this shard holds in the running call."""


def cut(tensor: Tensor, segments: Segments) -> list[Tensor]:
    """The part of each of the take's segments, empty where other shards hold it, of tokens [batch, local tokens, dim] or latents [batch, channels,
    frames, height, width]; of what is of no frame (a timestep's embedding) all of it for each.
    """
    if tensor.ndim not in (3, 5):
        return [tensor] * segments.num_segments
    here = segments.tokens_of_segments() if tensor.ndim == 3 else segments.frames_of_segments()
    before = segments.first_segment
    after = segments.num_segments - before - len(here)
    return list(tensor.split([0] * before + list(here) + [0] * after, dim=1 if tensor.ndim == 3 else 2))


def cut_frames(latents: Tensor, segments: Segments | None) -> tuple[Tensor, ...]:
    """Latents [batch, channels, frames, height, width] as this shard's segments, one after the other; whole where there are none."""
    return (latents,) if segments is None else latents.split(list(segments.frames_of_segments()), dim=2)


def join_frames(parts: Sequence[Tensor]) -> Tensor:
    """What `cut_frames` cut."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=2)
