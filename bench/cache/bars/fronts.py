"""Fronts of quality against speed: how fast a tool can be at a given PSNR. Knows numbers only.

A method's points are joined in order of their speed-ups, with the speed-up linear in dB between neighbours. A tool's front is the upper
envelope of its methods; an uncached film, speed-up 1, belongs to each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Point:
    """One setting of one method. speedup: against no cache, by the clock. psnr: dB, against the uncached film."""

    speedup: float
    psnr: float


def speed_at(points: Iterable[Point], psnr: float) -> float:
    """The highest speed-up of one method at `psnr` dB or more; 1 where it never reaches that."""
    ordered = sorted(points, key=lambda point: point.speedup)
    reached = [1.0, *(point.speedup for point in ordered if point.psnr >= psnr)]
    for slow, fast in pairwise(ordered):
        if (slow.psnr - psnr) * (fast.psnr - psnr) < 0:
            reached.append(slow.speedup + (fast.speedup - slow.speedup) * (slow.psnr - psnr) / (slow.psnr - fast.psnr))
    return max(reached)


def fastest_at(methods: Mapping[str, Sequence[Point]], psnr: float) -> tuple[float, str]:
    """A tool's front at `psnr` dB: the speed-up, and the method that reaches it."""
    return max((speed_at(points, psnr), name) for name, points in methods.items())


def comparable_at(psnr: float, *tools: Mapping[str, Sequence[Point]]) -> float:
    """`psnr`, or the lowest dB that every tool falls to where one of them never falls so low: beyond its last point a front says nothing."""
    return max(psnr, *(min(point.psnr for points in methods.values() for point in points) for methods in tools))


def worth_going_on(methods: Mapping[str, Sequence[Point]], margin: float = 0.9) -> set[str]:
    """The methods that reach so much of their tool's front at some dB between 20 and 50, and so may lie on it on other clips."""
    kept = set()
    for level in range(20, 51):
        best = fastest_at(methods, level)[0]
        kept |= {name for name, points in methods.items() if speed_at(points, level) >= max(margin * best, 1.01)}
    return kept
