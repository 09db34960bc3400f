"""The ranks that render one take together. Knows process groups; knows nothing of tokens or models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Mesh:
    """A gang seen from one of its ranks. No global state: drop it and build another one in the same process.

    group: the process group that every collective of the gang runs on; None for a gang of one.
    """

    rank: int = 0
    ulysses_degree: int = 1
    group: dist.ProcessGroup | None = None

    def __post_init__(self) -> None:
        if self.ulysses_degree > 1 and self.group is None:
            raise ValueError(f"ulysses_degree={self.ulysses_degree} needs a process group; build one with Mesh.over(group).")

    @classmethod
    def over(cls, group: dist.ProcessGroup) -> Mesh:
        """All ranks of `group` side by side on the Ulysses axis."""
        return cls(rank=dist.get_rank(group), ulysses_degree=dist.get_world_size(group), group=group)

    @property
    def size(self) -> int:
        return self.ulysses_degree

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over the gang, the same on every rank; one collective, or none for a gang of one."""
        if self.group is None:
            return values
        total = values.clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self.group)
        return total

    def all_to_all(self, parts: list[Tensor], shapes: list[torch.Size]) -> list[Tensor]:
        """Send `parts[r]` to rank r and return what each rank sent here, of the given shapes. One collective; sizes may differ."""
        assert self.group is not None
        sent = torch.cat([part.reshape(-1) for part in parts])
        received = sent.new_empty(sum(shape.numel() for shape in shapes))
        dist.all_to_all_single(received, sent, [shape.numel() for shape in shapes], [part.numel() for part in parts], group=self.group)
        pieces = received.split([shape.numel() for shape in shapes])
        return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]

    def all_gather(self, part: Tensor, counts: tuple[int, ...], dim: int) -> Tensor:
        """Concatenate every rank's `part` along `dim`, where rank r holds `counts[r]` entries. One collective."""
        assert self.group is not None
        longest = max(counts)
        moved = part.movedim(dim, 0)
        padded = moved.new_zeros((longest, *moved.shape[1:]))
        padded[: moved.shape[0]] = moved
        gathered = padded.new_empty((self.size * longest, *moved.shape[1:]))
        dist.all_gather_into_tensor(gathered, padded, group=self.group)
        pieces = [piece[:count] for piece, count in zip(gathered.split(longest), counts, strict=True)]
        return torch.cat(pieces).movedim(0, dim)
