"""Segments of latent frames, the bands that they attend to, and which rank holds which. Pure arithmetic: no process groups, no models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .layout import Layout


@dataclass(frozen=True)
class Band:
    """What the tokens of one segment attend to.

    frames: the segment, latent frames in a row. seen: the band, frames in a row around it and with it. anchors: the take's first frames, all of them
    before the band; they are attended to as if they lay right before it, as a model knows no offsets beyond the clips that it was trained on.
    """

    frames: range
    seen: range
    anchors: range = range(0)

    @property
    def shift(self) -> int:
        """By how many frames the anchors' positions are moved."""
        return self.seen.start - self.anchors.stop if self.anchors else 0


def share_out(bands: Sequence[Band], num_ranks: int) -> list[tuple[Band, ...]]:
    """Each rank's segments, in a row, of numbers that differ by one at most. Raises ValueError where there are fewer segments than ranks."""
    if len(bands) < num_ranks:
        raise ValueError(f"{len(bands)} segments cannot be shared by {num_ranks} ranks; lower window_degree, or render a longer take.")
    layout = Layout.even(len(bands), num_ranks)
    return [tuple(bands[offset : offset + count]) for offset, count in zip(layout.offsets, layout.counts, strict=True)]


def frames_of(bands: Sequence[Band]) -> range:
    """The frames of segments in a row."""
    return range(bands[0].frames.start, bands[-1].frames.stop)


def frames_needed(bands: Sequence[Band]) -> tuple[int, ...]:
    """The frames that these segments attend to, their own among them, in order."""
    return tuple(sorted({frame for band in bands for frames in (band.seen, band.anchors) for frame in frames}))
