"""What a trigger measures and what is decided from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class Decision(Enum):
    COMPUTE = "compute"
    REUSE = "reuse"


@dataclass(frozen=True)
class Signal:
    """Partial sums over the tokens at hand, never a ratio: means of shards' ratios are wrong when shards are uneven.

    sums: [2], fp64: numerator and denominator.
    """

    sums: Tensor

    @classmethod
    def relative_l1(cls, now: Tensor, before: Tensor) -> Signal:
        """||now - before||_1 / ||before||_1."""
        numerator = (now - before).abs().sum(dtype=torch.float64)
        return cls(torch.stack((numerator, before.abs().sum(dtype=torch.float64))))

    @classmethod
    def unknown(cls, like: Tensor) -> Signal:
        """Nothing to compare with yet. Takes part in the reduction all the same, so that every decision has one."""
        return cls(torch.zeros(2, dtype=torch.float64, device=like.device))


def ratio(sums: Tensor) -> float:
    """Numerator over denominator of reduced sums; infinite where there was nothing to compare with."""
    numerator, denominator = sums.tolist()
    return numerator / denominator if denominator > 0 else float("inf")
