"""Keys and values of tokens that are done: computed once, kept by layer, and attended to by the tokens of later calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class _Kept:
    """key, value: [batch, the ring place's tokens, this rank's heads, head_dim], with their positions applied. sizes: tokens of each place."""

    key: Tensor
    value: Tensor
    sizes: tuple[int, ...]


class ContextStore:
    """For context that attends to itself alone, so that its keys and values are the same at every step. Kept after the exchange of heads: a rank
    has its share of the heads, of all tokens at its place on the ring.

    num_frames: latent frames of the context that is being read, which lie before those of the call; 0 while nothing is read.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._branch: str | None = None
        self._writes = False
        self.num_frames = 0

    @property
    def num_bytes(self) -> int:
        return sum(kept.key.nbytes + kept.value.nbytes for kept in self._kept.values())

    def drop(self) -> None:
        self._kept.clear()

    @contextmanager
    def write(self, branch: str) -> Iterator[None]:
        """Keep the keys and values of the call inside, which shows the context and nothing else, in place of the branch's earlier ones."""
        self._branch, self._writes = branch, True
        try:
            yield
        finally:
            self._branch, self._writes = None, False

    @contextmanager
    def read(self, branch: str, num_frames: int) -> Iterator[None]:
        """Let the call inside attend to the context of its branch, of `num_frames` latent frames, as well."""
        self._branch, self.num_frames = branch, num_frames
        try:
            yield
        finally:
            self._branch, self.num_frames = None, 0

    def pass_by(self, layer: str, key: Tensor, value: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """What a layer's tokens attend to, and how many keys of it each place on the ring has. key, value, sizes: the layer's own, as in `_Kept`."""
        if self._branch is None:
            return key, value, tuple(sizes)
        if self._writes:
            self._kept[layer, self._branch] = _Kept(key, value, tuple(sizes))
            return key, value, tuple(sizes)
        kept = self._kept[layer, self._branch]
        together = tuple(a + b for a, b in zip(kept.sizes, sizes, strict=True))
        return torch.cat((kept.key, key), dim=1), torch.cat((kept.value, value), dim=1), together
