"""What is decided for a model call, and the sums that decisions are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class Decision(Enum):
    COMPUTE = "compute"
    REUSE = "reuse"
    PARTIAL = "partial"


@dataclass(frozen=True)
class Verdict:
    """What a call does at a site. reused: the site's units (0 to its number) that are not computed; all of them for REUSE."""

    decision: Decision
    reused: frozenset[int]

    @classmethod
    def of(cls, reused: frozenset[int], num_units: int) -> Verdict:
        decision = Decision.COMPUTE if not reused else Decision.REUSE if len(reused) == num_units else Decision.PARTIAL
        return cls(decision, reused)


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
    """Partial sums of ||now - before||_1 / ||before||_1 over the tokens at hand: [2], fp64; zeros where there is no `before`.

    Never a ratio: means of shards' ratios are wrong when shards are uneven.
    """
    if before is None:
        return torch.zeros(2, dtype=torch.float64, device=now.device)
    return torch.stack((_total((now - before).abs_()), l1(before)))


def ratio(sums: Sequence[float] | Tensor) -> float:
    """Numerator over denominator of reduced sums; infinite where there was nothing to compare with."""
    numerator, denominator = map(float, sums)
    return numerator / denominator if denominator > 0 else float("inf")
