"""How features lie in memory between steps: as they are, in fewer bits, or on the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"model": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float8": torch.float8_e4m3fn}
PLACES = ("device", "host")


@dataclass(frozen=True)
class Kept:
    """A feature at rest. scale: what the stored values were divided by. Where storage changed nothing, `stored` is the feature itself."""

    stored: Tensor
    scale: Tensor | None
    dtype: torch.dtype
    device: torch.device

    def get(self, channels: int | None = None) -> Tensor:
        """The feature, on its own device, in its own dtype; or so many first values of its last dimension."""
        stored = self.stored if channels is None else self.stored[..., :channels]
        back = stored.to(self.device, non_blocking=True).to(self.dtype)
        return back if self.scale is None else back * self.scale.to(back.dtype)


@dataclass(frozen=True)
class Storage:
    """dtype: of DTYPES; 8 bits are scaled to a tensor's largest value. place: of PLACES; `host` copies to pinned memory on CUDA's
    current stream, without waiting, and back when the feature is needed.
    """

    dtype: str = "model"
    place: str = "device"

    def put(self, feature: Tensor) -> Kept:
        stored, scale, dtype = feature, None, DTYPES[self.dtype]
        if dtype is not None and dtype is torch.float8_e4m3fn:
            scale = feature.abs().amax().float().clamp_min(1e-12) / torch.finfo(dtype).max
            stored = (feature / scale).to(dtype)
        elif dtype is not None:
            stored = feature.to(dtype)
        if self.place == "host" and feature.is_cuda:
            pinned = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=True)
            stored = pinned.copy_(stored, non_blocking=True)
        return Kept(stored, scale, feature.dtype, feature.device)
