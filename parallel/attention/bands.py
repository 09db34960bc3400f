"""Attention of segments to their bands: within a rank's own frames and halos of other ranks' keys and values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..groups.mesh import Mesh
from ..tokens.bands import Band
from ..tokens.halos import Halos
from ..tokens.shards import TokenShards
from .kernels import Kernel
from .sequence import SequenceAttention

Move = Callable[[Tensor, int], Tensor]


class Bands:
    """The segments of a take as one rank holds them: those of its place on the mesh's window axis, whose tokens its sequence axis shares out.

    move: gives keys [batch, tokens, heads, head_dim], which have their positions, as they would be so many frames later; set by the family.
    """

    move: Move

    def __init__(self, mesh: Mesh, shards: TokenShards) -> None:
        """Raises ValueError as `check_mesh` does."""
        check_mesh(mesh)
        self.mesh, self.shards = mesh, shards
        self._halos: Halos | None = None
        self._texts: tuple[int, ...] = ()

    def lay_out(self, bands: Sequence[Band]) -> None:
        """The calls that follow are of a take with these segments. Raises ValueError where there are fewer of them than ranks to hold them."""
        self._halos = Halos(self.mesh.window, bands)

    @property
    def halos(self) -> Halos:
        assert self._halos is not None, "lay_out() first"
        return self._halos

    @property
    def own(self) -> tuple[Band, ...]:
        """The segments of this rank."""
        return self.halos.own

    @property
    def frames(self) -> range:
        """Their latent frames."""
        return self.halos.frames

    def gather_frames(self, latents: Tensor) -> Tensor:
        """[batch, channels, this rank's frames, height, width] -> the same of all of the take's."""
        return self.mesh.window.all_gather(latents, self.halos.counts, dim=2).contiguous()

    @contextmanager
    def reading(self, texts: Sequence[int]) -> Iterator[None]:
        """In the calls inside each segment of this rank attends to one text of several, that of the number in `texts`; empty: there is only one."""
        self._texts = tuple(texts)
        try:
            yield
        finally:
            self._texts = ()

    def attend(self, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, scale: float | None) -> Tensor:
        """query, key, value: [batch, tokens of this rank's frames, heads, head_dim]; the result has the query's shape."""
        halos, frames = self.halos, self.halos.frames
        tokens = key.shape[1] // len(frames)
        pair = [tensor.unflatten(1, (len(frames), tokens)) for tensor in (key, value)]
        fetched = pair if halos.is_needless else list(halos.fetch(torch.stack(pair)))

        def of(shown: range) -> list[Tensor]:
            begin = halos.needed.index(shown.start)
            return [tensor[:, begin : begin + len(shown)].flatten(1, 2) for tensor in fetched]

        attended = []
        for band in halos.own:
            keys, values = of(band.seen)
            if band.anchors:
                anchor_keys, anchor_values = of(band.anchors)
                keys, values = torch.cat((self.move(anchor_keys, band.shift), keys), dim=1), torch.cat((anchor_values, values), dim=1)
            begin, count = band.frames.start - frames.start, len(band.frames)
            attended.append(kernel(query[:, begin * tokens : (begin + count) * tokens], keys, values, None, scale))
        return torch.cat(attended, dim=1)

    @property
    def num_segments(self) -> int:
        """Of the take."""
        return len(self.halos.bands)

    @property
    def first_segment(self) -> int:
        """The number of this rank's first one."""
        return self.halos.first

    def frames_of_segments(self) -> list[int]:
        """How many latent frames each of this rank's has."""
        return [len(band.frames) for band in self.own]

    def tokens_of_segments(self) -> list[int]:
        """How many tokens of each of this rank's segments it holds itself in the running call: its share of them on the sequence axis."""
        layout, rank = self.shards.layout, self.mesh.sequence.rank
        tokens = layout.num_tokens // len(self.frames)
        start, stop = layout.offsets[rank], layout.offsets[rank] + layout.counts[rank]
        ends = [min(max((band.frames.stop - self.frames.start) * tokens, start), stop) - start for band in self.own]
        return [end - begin for begin, end in pairwise((0, *ends))]

    def attend_text(self, query: Tensor, key: Tensor, value: Tensor, kernel: Kernel, scale: float | None) -> Tensor:
        """query: [batch, local tokens, heads, head_dim]; key, value: of all texts one after the other, [batch, texts x tokens, heads, head_dim]."""
        if not self._texts:
            return kernel(query, key, value, None, scale)
        count = max(self._texts) + 1
        keys, values = key.chunk(count, dim=1), value.chunk(count, dim=1)
        runs = query.split(self.tokens_of_segments(), dim=1)
        return torch.cat([kernel(run, keys[text], values[text], None, scale) for run, text in zip(runs, self._texts, strict=True)], dim=1)


def check_mesh(mesh: Mesh) -> None:
    """Raise ValueError, with the mend, for a mesh with a ring: keys of bands do not go round."""
    if mesh.ring.size > 1:
        raise ValueError(
            f"ring_degree is {mesh.ring.size}, and timeline banded has no ring: its segments are spread over window_degree, their heads over "
            f"ulysses_degree. Set ring_degree to 1."
        )


class BandedAttention(SequenceAttention):
    """Attention among the tokens of a take, each segment to its band and anchors; Ulysses may split the heads."""

    def __init__(self, bands: Bands, kernel: Kernel, layer: str = "attention") -> None:
        super().__init__(bands.shards, kernel, layer)
        self.bands = bands

    def _attend_here(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        assert mask is None, "models whose tokens have a mask carry their text jointly, and have no bands"
        return self.bands.attend(query, key, value, self.kernel, scale)


class TextAttention:
    """Takes the place of `dispatch_attention_fn` in a module that attends to the text alone."""

    def __init__(self, bands: Bands, kernel: Kernel) -> None:
        self.bands, self.kernel = bands, kernel

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, scale: float | None = None, **_: Any) -> Tensor:
        assert attn_mask is None, "texts are padded without a mask"
        return self.bands.attend_text(query, key, value, self.kernel, scale)
