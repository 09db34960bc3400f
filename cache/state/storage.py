"""How features lie in memory between steps: as they are, in fewer bits, or on the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from ...later import torch

if TYPE_CHECKING:
    from torch import Tensor

PLACES = ("device", "host")
SCALE_BYTES = 4


@dataclass(frozen=True)
class StoredDtype:
    """name: torch's. itemsize: bytes a value. scaled: whether its range is smaller than that of what models compute."""

    name: str
    itemsize: int
    scaled: bool = False


# What recipes call them; None: what the model computes in.
DTYPES = {
    "model": None,
    "bfloat16": StoredDtype("bfloat16", 2),
    "float16": StoredDtype("float16", 2, scaled=True),
    "float8": StoredDtype("float8_e4m3fn", 1, scaled=True),
}


@dataclass(frozen=True)
class Kept:
    """A feature as it is stored. scale: what its values were divided by, fp32: one a token, [batch, tokens, 1], or one a sample or frame of
    latents; None where they were not. dtype, device: the feature's own. Where storage changed nothing, `stored` is the feature itself.
    """

    stored: Tensor
    scale: Tensor | None
    dtype: torch.dtype
    device: torch.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The stored feature and, where there is one, its scale."""
        return (self.stored,) if self.scale is None else (self.stored, self.scale)

    def get(self, channels: int | None = None) -> Tensor:
        """The feature, on its own device, in its own dtype; or so many first values of its last dimension."""
        stored = self.stored if channels is None else self.stored[..., :channels]
        if self.stored.device != self.device:
            torch.cuda.current_stream(self.device).wait_stream(_copying(self.device))
        back = stored.to(self.device, non_blocking=True)
        return (back if self.scale is None else back.float() * self.scale).to(self.dtype)


@dataclass(frozen=True)
class Storage:
    """dtype: of DTYPES; float16 and float8 are scaled, each token by a scale of its own, so that nothing overflows and any sharding of the
    tokens keeps the same bits. place: of PLACES; `host` copies to pinned memory on CUDA while the model goes on computing, and back when the
    feature is needed. by_frame: whether latents have a scale a frame instead of one a sample, as where shards hold frames of them apart.
    """

    dtype: str = "model"
    place: str = "device"
    by_frame: bool = False

    def put(self, feature: Tensor) -> Kept:
        """feature: [batch, tokens, dim], or latents [batch, channels, frames, height, width]. Values that are not finite stay so: they are
        an error of the model, which must show in the film; other tokens are not changed by them.
        """
        stored = DTYPES[self.dtype]
        dtype = feature.dtype if stored is None else getattr(torch, stored.name)
        if stored is None or not stored.scaled or dtype is feature.dtype:
            return self.adopt(feature.to(dtype), None, feature.dtype)
        scale = (_largest(feature, by_frame=self.by_frame) / torch.finfo(dtype).max).clamp_min(torch.finfo(torch.float32).tiny)
        return self.adopt((feature.float() / scale).to(dtype), scale, feature.dtype)

    def adopt(self, stored: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Kept:
        """Keep what `put` made of a feature of `dtype` before, as when it is read from a file."""
        on_host = self.place == "host" and stored.is_cuda
        return Kept(_to_host(stored) if on_host else stored, scale, dtype, stored.device)


def _largest(feature: Tensor, *, by_frame: bool) -> Tensor:
    """The largest size of each token's values, or of each sample's latents, or frames of latents, in fp32; the dimensions stay."""
    over = -1 if feature.ndim == 3 else tuple(dim for dim in range(1, feature.ndim) if not (by_frame and dim == 2))
    return feature.abs().amax(dim=over, keepdim=True).float()


@lru_cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """The stream on which features go to the host, beside the one that computes."""
    return torch.cuda.Stream(device)


def _to_host(feature: Tensor) -> Tensor:
    copying = _copying(feature.device)
    copying.wait_stream(torch.cuda.current_stream(feature.device))
    with torch.cuda.stream(copying):
        there = torch.empty(feature.shape, dtype=feature.dtype, pin_memory=True).copy_(feature, non_blocking=True)
    feature.record_stream(copying)  # its memory is not to be used anew before it is copied
    return there
