"""Partial sums over the tokens that one shard holds, which decisions and forecasts are made from once all shards' are added up.

Sums, never ratios: the mean of the shards' ratios is wrong when shards are uneven.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..later import torch

if TYPE_CHECKING:
    from torch import Tensor


def l1(tensor: Tensor) -> Tensor:
    """||tensor||_1 over the tokens at hand, a scalar in fp64 (rows are summed in fp32 at least, which is twice as fast)."""
    return _total(tensor.abs())


def _total(tensor: Tensor) -> Tensor:
    return tensor.sum(dim=-1, dtype=torch.promote_types(tensor.dtype, torch.float32)).sum(dtype=torch.float64)


def dot(one: Tensor, other: Tensor) -> Tensor:
    """The inner product over the tokens at hand, a scalar in fp64, summed as in `l1`."""
    wide = torch.promote_types(one.dtype, torch.float32)
    return torch.linalg.vecdot(one.to(wide), other.to(wide)).sum(dtype=torch.float64)


def l1_sums(now: Tensor, before: Tensor | None) -> Tensor:
    """||now - before||_1 and ||before||_1 over the tokens at hand: [2], fp64; zeros where there is no `before`."""
    if before is None:
        return torch.zeros(2, dtype=torch.float64, device=now.device)
    return torch.stack((_total((now - before).abs_()), l1(before)))


def ratio(sums: Sequence[float] | Tensor) -> float:
    """Numerator over denominator of sums that were added up over all shards; infinite where there was nothing to compare with."""
    numerator, denominator = map(float, sums)
    return numerator / denominator if denominator > 0 else float("inf")
