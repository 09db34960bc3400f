"""How features lie in memory between steps: as they are, in fewer bits, or on the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = {"model": None, "bfloat16": torch.bfloat16, "float16": torch.float16, "float8": torch.float8_e4m3fn}
PLACES = ("device", "host")


class Kept(NamedTuple):
    """A feature at rest. scale: what the stored values were divided by. Where storage changed nothing, `stored` is the feature itself."""

    stored: Tensor
    scale: Tensor | None
    dtype: torch.dtype
    device: torch.device

    def get(self, channels: int | None = None) -> Tensor:
        """The feature, on its own device, in its own dtype; or so many first values of its last dimension."""
        stored = self.stored if channels is None else self.stored[..., :channels]
        if self.stored.device != self.device:
            torch.cuda.current_stream(self.device).wait_stream(_copying(self.device))
        back = stored.to(self.device, non_blocking=True).to(self.dtype)
        return back if self.scale is None else back * self.scale.to(back.dtype)


@dataclass(frozen=True)
class Storage:
    """dtype: of DTYPES; 8 bits are scaled to a tensor's largest value. place: of PLACES; `host` copies to pinned memory on CUDA
    while the model goes on computing, and back when the feature is needed.
    """

    dtype: str = "model"
    place: str = "device"

    def put(self, feature: Tensor) -> Kept:
        if self.dtype == "model" and self.place == "device":
            return Kept(feature, None, feature.dtype, feature.device)
        stored, scale, dtype = feature, None, DTYPES[self.dtype]
        if dtype is not None and dtype is torch.float8_e4m3fn:
            scale = feature.abs().amax().float().clamp_min(1e-12) / torch.finfo(dtype).max
            stored = (feature / scale).to(dtype)
        elif dtype is not None:
            stored = feature.to(dtype)
        if self.place == "host" and feature.is_cuda:
            stored = _to_host(stored)
        return Kept(stored, scale, feature.dtype, feature.device)


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
