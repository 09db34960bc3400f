"""What is to be checked of a take: where its timeline joins it, and where its prompts begin."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

from ...checkpoint.card import ModelCard
from ...take import Take
from ...timelines.timeline import centre
from .film import Plan


def plan_checks(take: Take, card: ModelCard, fps: Fraction) -> Plan:
    """fps: the film's frames a second.

    A join is where another call begins to count most: a chunk of a rollout, a segment of a banded take, the middle of what two windows share.
    Windows that shift leave none. A prompt begins with the first of them that is given another text than the one before.
    """
    timeline = take.timeline_for(card)
    spans = list(timeline.shown_by)
    begins = [frame for frame, (before, span) in enumerate(pairwise(spans), 1) if span != before]
    firsts = {frame: take.frames(range(frame, frame + 1), card).start for frame in begins}
    texts = [take.prompt_at(centre(span), card) for span in spans]
    return Plan(
        num_frames=take.num_frames,
        fps=fps,
        first=min(len(take.frames(next(timeline.calls).frames, card)), card.trained_frames),
        stride=card.temporal_stride,
        joins=() if timeline.shifts else tuple(firsts.values()),
        border=take.frames(range(1, 2), card).start,
        prompts=(0, *(first for frame, first in firsts.items() if texts[frame] != texts[frame - 1])),
    )
