"""Overlapping windows, fused by weights at every step: one round, whose cost grows with its length as the film does."""

from __future__ import annotations

from .timeline import Call, Round, Timeline


def windows(num_latent_frames: int, window: int, overlap: int) -> Timeline:
    """Windows of `window` latent frames, `overlap` of them shared with the next; the last one is shifted back, not shrunk.

    Weights fall off linearly over the overlap towards a window's ends, and not at the ends of the take.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"timeline.overlap is {overlap} latent frames; it must be at least 0 and below the window of {window}.")
    if num_latent_frames <= window:
        return Timeline.full(num_latent_frames)
    last = num_latent_frames - window
    calls = []
    for segment, start in enumerate([*range(0, last, window - overlap), last]):
        rising = [1.0 if start == 0 else min(1.0, (i + 1) / (overlap + 1)) for i in range(window)]
        falling = [1.0 if start == last else min(1.0, (window - i) / (overlap + 1)) for i in range(window)]
        weights = tuple(min(pair) for pair in zip(rising, falling, strict=True))
        calls.append(Call(segment, range(start, start + window), weights))
    return Timeline((Round(range(num_latent_frames), tuple(calls)),))
