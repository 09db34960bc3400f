"""Ranks that exchange with each other. Knows process groups; knows nothing of tokens or models."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from .errors import CollectiveError

Item = TypeVar("Item")


@dataclass
class Traffic:
    """Bytes that this rank has sent to others so far."""

    sent_bytes: int = 0


@dataclass(frozen=True)
class Axis:
    """Some ranks of a gang, in order, as one of them sees them. An axis of one has no group and exchanges nothing.

    held: a weak reference to the process group, which torch keeps until it is destroyed. Its connections close with the last strong
    reference, and that is how the other ranks hear that this one has left.
    """

    name: str
    rank: int = 0
    size: int = 1
    held: weakref.ref[dist.ProcessGroup] | None = None
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """None for an axis of one. Raises CollectiveError once the group is destroyed."""
        group = self.held() if self.held else None
        if self.held and group is None:
            raise CollectiveError(f"the {self.name} axis is no more: this rank has left its gang")
        return group

    def device_mesh(self, device_type: str) -> DeviceMesh:
        """torch's one-dimensional DeviceMesh over these ranks, for libraries that ask for one. Needs more than one rank."""
        assert self.group is not None, f"the {self.name} axis has one rank and no device mesh"
        return DeviceMesh.from_group(self.group, device_type)

    def sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over the axis, the same on every rank; one collective."""
        if self.group is None:
            return values
        total = values.clone()
        with self._exchange("sum", total.nbytes * 2 * (self.size - 1) // self.size):
            dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self.group)
        return total

    def all_to_all(self, parts: list[Tensor], shapes: list[torch.Size], dim: int = 0) -> Tensor:
        """Send `parts[r]` to rank r; what the ranks sent here, of the given shapes, concatenated along `dim`. One collective."""
        if self.group is None:
            return parts[0]
        sizes, counts = [part.numel() for part in parts], [shape.numel() for shape in shapes]
        sent = _end_to_end(parts, sizes)
        received = sent.new_empty(sum(counts))
        with self._exchange("all-to-all", (sent.numel() - sizes[self.rank]) * sent.element_size()):
            dist.all_to_all_single(received, sent, counts, sizes, group=self.group)
        if prod(shapes[0][:dim]) == 1:  # they lie one after another already
            return received.view(*shapes[0][:dim], -1, *shapes[0][dim + 1 :])
        return torch.cat([piece.view(shape) for piece, shape in zip(received.split(counts), shapes, strict=True)], dim)

    def all_gather(self, part: Tensor, counts: tuple[int, ...], dim: int) -> Tensor:
        """Concatenate every rank's `part` along `dim`, where rank r holds `counts[r]` entries. One collective."""
        if self.group is None:
            return part
        longest = max(counts)
        moved = part.movedim(dim, 0)
        padded = moved.new_zeros((longest, *moved.shape[1:]))
        padded[: moved.shape[0]] = moved
        gathered = padded.new_empty((self.size * longest, *moved.shape[1:]))
        with self._exchange("gather", padded.nbytes * (self.size - 1)):
            dist.all_gather_into_tensor(gathered, padded, group=self.group)
        pieces = [piece[:count] for piece, count in zip(gathered.split(longest), counts, strict=True)]
        return torch.cat(pieces).movedim(0, dim)

    def gather_objects(self, value: Item) -> list[Item]:
        """Every rank's small picklable `value`, in order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.size
        with self._exchange("gather", 0):
            dist.all_gather_object(values, value, group=self.group)
        return values

    def gather_objects_to_first(self, value: Item) -> list[Item]:
        """Every rank's picklable `value`, in order, on the first rank of the axis; nothing on the others."""
        if self.group is None:
            return [value]
        values: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with self._exchange("gather", 0):
            dist.gather_object(value, values, group=self.group, group_dst=0)
        return values or []

    @contextmanager
    def pass_on(self, sent: Tensor, received: Tensor) -> Iterator[None]:
        """Send to the next rank of the ring and receive from the one before, while the body of the `with` computes."""
        with self._exchange("ring exchange", sent.nbytes):
            works = self._start([(dist.isend, sent, self.rank + 1), (dist.irecv, received, self.rank - 1)])
        yield  # outside: what the body raises is no failed exchange
        with self._exchange("ring exchange", 0):
            for work in works:
                work.wait()

    def swap_edges(self, up: Tensor, down: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Give `up` to the rank before and `down` to the rank after; returns what those two gave (None beyond the ends)."""
        above = torch.empty_like(down) if self.rank > 0 else None
        below = torch.empty_like(up) if self.rank < self.size - 1 else None
        steps: list[tuple[Any, Tensor, int]] = []
        if above is not None:
            steps += [(dist.isend, up.contiguous(), self.rank - 1), (dist.irecv, above, self.rank - 1)]
        if below is not None:
            steps += [(dist.isend, down.contiguous(), self.rank + 1), (dist.irecv, below, self.rank + 1)]
        with self._exchange("edge exchange", up.nbytes * (above is not None) + down.nbytes * (below is not None)):
            for work in self._start(steps):
                work.wait()
        return above, below

    def exchange(self, sent: Mapping[int, Tensor], received: Mapping[int, Tensor]) -> None:
        """Send each tensor in `sent` to its rank, and fill those in `received` with what their ranks send here. Only ranks that are named, and that
        name this one in turn, take part.
        """
        steps: list[tuple[Any, Tensor, int]] = [(dist.isend, tensor.contiguous(), rank) for rank, tensor in sent.items()]
        steps += [(dist.irecv, tensor, rank) for rank, tensor in received.items()]
        with self._exchange("halo exchange", sum(tensor.nbytes for tensor in sent.values())):
            for work in self._start(steps):
                work.wait()

    def _start(self, steps: list[tuple[Any, Tensor, int]]) -> list[dist.Work]:
        operations = [dist.P2POp(step, tensor, group=self.group, group_peer=peer % self.size) for step, tensor, peer in steps]
        return dist.batch_isend_irecv(operations) if operations else []

    @contextmanager
    def _exchange(self, what: str, sent_bytes: int) -> Iterator[None]:
        """Around calls of torch.distributed and nothing else: their RuntimeErrors become CollectiveErrors."""
        self.traffic.sent_bytes += sent_bytes
        try:
            yield
        except (CollectiveError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
            reason = re.sub(r"^\[[^\]]*\] ", "", first_line)  # gloo's own source file and line
            raise CollectiveError(f"{what} over the {self.name} axis failed on its rank {self.rank} of {self.size} ({reason})") from error


def _end_to_end(parts: list[Tensor], sizes: list[int]) -> Tensor:
    """All parts in one flat tensor: a view if they lie end to end in memory already, a copy otherwise."""
    first = parts[0]
    places = [first.data_ptr() + first.element_size() * offset for offset in accumulate(sizes[:-1], initial=0)]
    storages = {part.untyped_storage().data_ptr() for part in parts}
    if len(storages) == 1 and all(part.is_contiguous() and part.data_ptr() == place for part, place in zip(parts, places, strict=True)):
        return first.as_strided((sum(sizes),), (1,))
    flat = first.new_empty(sum(sizes))
    for part, room in zip(parts, flat.split(sizes), strict=True):
        room.view(part.shape).copy_(part)
    return flat
