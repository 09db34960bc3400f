"""Keys and values of the frames that a rank's segments attend to and other ranks hold: fetched from these ranks, and from no others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..groups.axis import Axis
from .bands import Band, frames_needed, frames_of, share_out


class Halos:
    """What the ranks of an axis, which share out the segments of a take, send each other before each attention.

    bands: all segments. counts: of frames, on each rank. own: this rank's segments; first: the number of the first of them; frames: theirs. needed:
    the frames that they attend to, in order. The bytes that a rank sends depend on the bands that reach over its borders and on the anchors, not
    on how long the take is.
    """

    def __init__(self, axis: Axis, bands: Sequence[Band]) -> None:
        """Called on every rank with all segments of the take. Raises ValueError where there are fewer of them than ranks."""
        shares = share_out(bands, axis.size)
        held, needed = [frames_of(share) for share in shares], [frames_needed(share) for share in shares]
        self.counts = tuple(map(len, held))
        self._axis, self.bands, self.own = axis, tuple(bands), shares[axis.rank]
        self.first = self.bands.index(self.own[0])
        self.frames, self.needed = held[axis.rank], needed[axis.rank]
        self._place = self.needed.index(self.frames.start)
        others = [rank for rank in range(axis.size) if rank != axis.rank]
        give = {rank: [frame - self.frames.start for frame in needed[rank] if frame in self.frames] for rank in others}
        take = {rank: [index for index, frame in enumerate(self.needed) if frame in held[rank]] for rank in others}
        self._give, self._take = (
            {rank: torch.tensor(frames) for rank, frames in lists.items() if frames} for lists in (give, take)
        )  # by rank: which of this rank's frames it is sent, and which of those that are needed here it sends

    @property
    def is_needless(self) -> bool:
        """Whether this rank neither sends nor receives anything."""
        return not self._give and not self._take

    def fetch(self, own: Tensor) -> Tensor:
        """own: [..., this rank's frames, tokens a frame, heads, head_dim]; returns the same of all frames in `needed`."""
        self._give, self._take = ({rank: places.to(own.device) for rank, places in lists.items()} for lists in (self._give, self._take))
        dim = own.ndim - 4

        def room(count: int) -> Tensor:
            return own.new_empty([*own.shape[:dim], count, *own.shape[dim + 1 :]])

        sent = {rank: own.index_select(dim, places) for rank, places in self._give.items()}
        received = {rank: room(len(places)) for rank, places in self._take.items()}
        self._axis.exchange(sent, received)
        whole = room(len(self.needed))
        whole.narrow(dim, self._place, len(self.frames)).copy_(own)
        for rank, frames in received.items():
            whole.index_copy_(dim, self._take[rank], frames)
        return whole
