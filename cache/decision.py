"""What is decided for a model call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Decision(Enum):
    COMPUTE = "compute"
    REUSE = "reuse"
    PARTIAL = "partial"


@dataclass(frozen=True)
class Verdict:
    """What a call does at a site. reused: the site's units (0 to its number) that are not computed; all of them for REUSE."""

    decision: Decision
    reused: frozenset[int]

    @classmethod
    def of(cls, reused: frozenset[int], num_units: int) -> Verdict:
        decision = Decision.COMPUTE if not reused else Decision.REUSE if len(reused) == num_units else Decision.PARTIAL
        return cls(decision, reused)
