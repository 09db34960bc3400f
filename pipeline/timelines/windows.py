"""Overlapping windows, fused by weights at every step: one round, whose cost grows with its length as the film does."""

from __future__ import annotations

from .timeline import Call, Round, Timeline

SHIFTS = ("none", "bit_reversed")


def windows(num_latent_frames: int, window: int, overlap: int, shift: str = "none", num_steps: int = 1) -> Timeline:
    """Windows of `window` latent frames, `overlap` of them shared with the next; the last one is shifted back, not shrunk.

    shift: `none`, or `bit_reversed`: at step i all windows but the first and the last begin round(hop x bit_reversed(i)) frames later, a hop at
    most, so that no frame is always near a window's end; the first window stays where it is, and so does the last one. num_steps: of the take.
    Weights fall off linearly over the overlap towards a window's ends, and not at the ends of the take.
    """
    if not 0 <= overlap < window:
        raise ValueError(f"timeline.overlap is {overlap} latent frames; it must be at least 0 and below the window of {window}.")
    if num_latent_frames <= window:
        return Timeline.full(num_latent_frames)
    frames, hop = range(num_latent_frames), window - overlap
    if shift == "none":
        return Timeline((Round(frames, _calls(num_latent_frames, window, overlap, 0)),))
    offsets = [round(hop * bit_reversed(step)) for step in range(num_steps)]
    at = {offset: _calls(num_latent_frames, window, overlap, offset) for offset in sorted(set(offsets))}
    every = tuple(dict.fromkeys(call for calls in at.values() for call in calls))
    return Timeline((Round(frames, every, tuple(at[offset] for offset in offsets)),))


def bit_reversed(step: int) -> float:
    """The binary digits of a step behind the point, last one first: 0, 1/2, 1/4, 3/4, 1/8 ...; steps in a row lie far apart, and all of them
    evenly between 0 and 1 (van der Corput's sequence).
    """
    return sum(int(digit) / 2 ** (place + 1) for place, digit in enumerate(reversed(f"{step:b}")))


def _calls(num_latent_frames: int, window: int, overlap: int, offset: int) -> tuple[Call, ...]:
    """Of a step whose windows begin `offset` frames later."""
    last = num_latent_frames - window
    starts = sorted({0, *range(offset, last, window - overlap), last})
    calls = []
    for segment, start in enumerate(starts):
        rising = [1.0 if start == 0 else min(1.0, (i + 1) / (overlap + 1)) for i in range(window)]
        falling = [1.0 if start == last else min(1.0, (window - i) / (overlap + 1)) for i in range(window)]
        weights = tuple(min(pair) for pair in zip(rising, falling, strict=True))
        calls.append(Call(segment, range(start, start + window), weights))
    return tuple(calls)
