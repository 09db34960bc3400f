"""Whether a long take holds: its thing, its motion, its background and its joins, read from its pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...pipeline.demo.analyse import Verdict, judge
from ...pipeline.demo.scene import FPS
from .takes import ACT_SECONDS, Script

_JUDGED = 33  # frames: as many as the model's own clips have


@dataclass(frozen=True)
class Held:
    """first: the first clip's verdict; acts: that of the last clip of each act, with the motion that was asked for there."""

    prompt: str
    first: Verdict
    acts: tuple[Verdict, ...]

    @property
    def begins_right(self) -> bool:
        return is_right(self.first)


def is_right(verdict: Verdict) -> bool:
    """In what a take must not lose."""
    return verdict.colour and verdict.shape


def held(frames: NDArray[np.uint8], of: Script) -> Held:
    """frames: of the whole take, [num_frames, height, width, 3]."""
    ends = [round((number + 1) * ACT_SECONDS * FPS) for number in range(len(of.acts))]
    acts = tuple(judge(frames[end - _JUDGED : end], act) for end, act in zip(ends, of.acts, strict=True))
    return Held(of.prompts[0].text, judge(frames[:_JUDGED], of.acts[0]), acts)


def shares(takes: Sequence[Held]) -> dict[str, float]:
    """identity: the smallest share, over the ends of acts, of takes that are right there, of those that began so; motion: of acts in these takes
    whose motion is the asked one, the first act apart.
    """
    begun = [take for take in takes if take.begins_right]
    right = [[is_right(act) for act in take.acts] for take in begun]
    moved = [act.motion for take in begun for act in take.acts[1:]]
    return {"identity": min(map(float, np.mean(right, axis=0))), "motion": float(np.mean(moved)), "began_right": len(begun) / len(takes)}


def as_row(take: Held) -> dict[str, object]:
    return {"prompt": take.prompt, "first": asdict(take.first), "acts": [asdict(act) for act in take.acts]}


def from_row(row: Mapping[str, Any]) -> Held:
    return Held(row["prompt"], Verdict(**row["first"]), tuple(Verdict(**act) for act in row["acts"]))
