"""Chunk after chunk on clean context: a round a chunk, at constant cost, each final before the next begins."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from .timeline import Call, Round, Timeline

_LEFT_BY_A_CUT = 2  # latent frames before a chunk whose context is cut


def rollout(
    num_latent_frames: int,
    window: int,
    overlap: int,
    anchors: int,
    is_cut: Callable[[range, range], bool] = lambda before, chunk: False,
    *,
    goes_on: bool = False,
) -> Timeline:
    """The first chunk has `window` latent frames. Each later call shows as many: the take's first `anchors`, the last `overlap` that are done, and
    the new ones; the last chunk has as many new ones as are left. Raises ValueError where the context leaves no room for new frames, or is none.

    is_cut: whether the context between a chunk and the next is cut to one anchor, where there are any, and the last two frames. goes_on: from an
    earlier film, whose frames have numbers below 0: first `anchors` from its beginning, then the `overlap` last ones. The first chunk is then as
    the later ones, and the anchors are that film's.
    """
    if not 1 <= overlap < window - anchors:
        raise ValueError(
            f"timeline.overlap is {overlap} latent frames; it must be at least 1 and, with {anchors} of anchors, below {window - anchors}, so that "
            f"the window of {window} has room for new ones."
        )
    earlier, new = (overlap + anchors if goes_on else 0), window - overlap - anchors
    chunks = [range(min(new if goes_on else window, num_latent_frames))]
    while (begin := chunks[-1].stop) < num_latent_frames:
        chunks.append(range(begin, min(begin + new, num_latent_frames)))
    cut = [False, *(is_cut(before, chunk) for before, chunk in pairwise(chunks))]
    contexts = (
        _context(-earlier, chunk.start, min(overlap, _LEFT_BY_A_CUT), min(anchors, 1)) if short else _context(-earlier, chunk.start, overlap, anchors)
        for chunk, short in zip(chunks, cut, strict=True)
    )
    calls = (Call.alone(number, chunk, context) for number, (chunk, context) in enumerate(zip(chunks, contexts, strict=True)))
    return Timeline(tuple(Round(call.frames, (call,)) for call in calls))


def _context(first: int, begin: int, overlap: int, anchors: int) -> tuple[int, ...]:
    """Of the chunk that begins there: anchors and the frames before it, each once. first: the first frame of all."""
    return tuple(sorted({*range(first, min(first + anchors, begin)), *range(max(first, begin - overlap), begin)}))
