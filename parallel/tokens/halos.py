"""Keys and values of the frames that a rank's segments attend to and other ranks hold: fetched from these ranks, and from no others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..groups.axis import Axis
from .bands import Band, frames_needed, frames_of, share_out


class Halos:
    """What the ranks of an axis, which share out the segments of a take, send each other before each attention.

    bands: all segments. own: those of this rank; first: the number of the first of them; frames: theirs. counts: of frames, on each rank. needed:
    the frames that they attend to, in
    order. The bytes that a rank sends depend on the bands that reach over its borders and on the anchors, not on how long the take is.
    """

    def __init__(self, axis: Axis, bands: Sequence[Band]) -> None:
        """Called on every rank with all segments of the take. Raises ValueError where there are fewer of them than ranks."""
        shares = share_out(bands, axis.size)
        held, needed = [frames_of(share) for share in shares], [frames_needed(share) for share in shares]
        self.counts = tuple(map(len, held))
        self._axis, self.bands, self.own = axis, tuple(bands), shares[axis.rank]
        self.first = self.bands.index(self.own[0])
        self.frames, self.needed = held[axis.rank], needed[axis.rank]
        others = [rank for rank in range(axis.size) if rank != axis.rank]
        self._give = {rank: [frame - self.frames.start for frame in needed[rank] if frame in self.frames] for rank in others}
        self._take = {rank: [index for index, frame in enumerate(self.needed) if frame in held[rank]] for rank in others}
        self._place = self.needed.index(self.frames.start)

    def fetch(self, own: Tensor) -> Tensor:
        """own: [..., this rank's frames, tokens a frame, heads, head_dim]; returns the same of all frames in `needed`."""
        if len(self.needed) == len(self.frames) and not any(self._give.values()):
            return own
        dim = own.ndim - 4
        shape = list(own.shape)

        def room(count: int) -> Tensor:
            return own.new_empty([*shape[:dim], count, *shape[dim + 1 :]])

        sent = {rank: own.index_select(dim, torch.tensor(places, device=own.device)) for rank, places in self._give.items() if places}
        received = {rank: room(len(places)) for rank, places in self._take.items() if places}
        self._axis.exchange(sent, received)
        whole = room(len(self.needed))
        whole.narrow(dim, self._place, len(self.frames)).copy_(own)
        for rank, frames in received.items():
            whole.index_copy_(dim, torch.tensor(self._take[rank], device=own.device), frames)
        return whole
