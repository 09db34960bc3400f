"""What the checks keep of each frame: how far it is from the one before, a small picture of it, and its colours. Pure: frames in, figures out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_SAMPLED = 48  # pixels each way, at least where there are as many: what is looked at of a frame, so that its size costs nothing
_SIDE = 8  # cells of the small picture, each way
_SCATTERED = 256  # pixels whose colours are ranked, in no pattern that a texture could have
_RANKS = 32  # groups of equally many pixels, from the darkest to the brightest

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """A frame as the checks see it.

    change: the mean absolute difference to the frame before, over pixels and channels, in grey levels; None for the film's first. small: [192],
    means over 8 x 8 cells, in RGB. colours: [32, 3], for each channel the values of scattered pixels in ascending order, means over 32 groups
    of them: they stay as they are where things move, and change where the light or a colour does.
    """

    change: float | None
    small: Floats
    colours: Floats


def sampled(frames: Tensor) -> Tensor:
    """[frames, height, width, 3] -> every n-th pixel of every n-th row, [frames, 3, rows, columns] in fp32."""
    height, width = frames.shape[1:3]
    return frames[:, :: max(1, height // _SAMPLED), :: max(1, width // _SAMPLED)].permute(0, 3, 1, 2).float().contiguous()


def pictures(planes: Tensor, before: Tensor | None) -> list[Picture]:
    """planes: as `sampled` gives them, on any device. before: those of the frame before, [3, rows, columns]; None at the film's start."""
    joined = planes if before is None else torch.cat((before[None], planes))
    changes = (joined[1:] - joined[:-1]).abs_().mean(dim=(1, 2, 3)).tolist()
    small = F.interpolate(planes, size=(_SIDE, _SIDE), mode="area").flatten(1).cpu().numpy()
    pixels = planes.flatten(2)
    ranked = pixels[:, :, _scattered(pixels.shape[-1]).to(planes.device)].sort(dim=-1).values
    colours = F.interpolate(ranked, size=_RANKS, mode="area").transpose(1, 2).cpu().numpy()
    found = [None, *changes] if before is None else changes
    return [Picture(*one) for one in zip(found, small, colours, strict=True)]


@cache
def _scattered(num_pixels: int) -> Tensor:
    """Indices that lie apart by the golden ratio, and so evenly in every part of the picture."""
    return (torch.arange(_SCATTERED, dtype=torch.float64) * (math.sqrt(5) - 1) / 2 % 1 * num_pixels).long()
