"""One sequence over the whole take, in which each segment attends to a band no wider than the model was trained on: one round, nothing twice."""

from __future__ import annotations

from dataclasses import replace

from ...parallel.tokens.bands import Band
from .timeline import Call, Round, Timeline

_SEGMENTS_A_BAND = 3  # so that a segment sees about as much before and after itself as it is long


def banded(num_latent_frames: int, window: int, anchors: int) -> Timeline:
    """Each segment attends to `window` latent frames: the take's first `anchors`, and a band of the others around itself, which is shifted, not
    shrunk, at the take's ends. Segments are a third of the band, but for the last one. Raises ValueError where anchors leave no room for a band.
    """
    if not 0 <= anchors < window:
        raise ValueError(f"timeline.anchors is {anchors} latent frames; it must be at least 0 and below the window of {window}.")
    width, length = min(window - anchors, num_latent_frames), max(1, (window - anchors) // _SEGMENTS_A_BAND)
    bands = []
    for start in range(0, num_latent_frames, length):
        frames = range(start, min(start + length, num_latent_frames))
        begin = min(max(0, start - (width - len(frames)) // 2), num_latent_frames - width)
        bands.append(Band(frames, range(begin, begin + width), range(min(anchors, begin))))
    whole = Call.alone(0, range(num_latent_frames))
    return Timeline((Round(whole.frames, (replace(whole, bands=tuple(bands)),)),))
