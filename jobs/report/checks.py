"""What the page shows of a take's checks: words, and a plot over the film. Pure: figures in, words and coordinates out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...pipeline.film.checks.figures import FARTHEST, LEAST_SIMILAR, Checks

WIDTH, HEIGHT = 320, 70  # of the plot, in its own units
STRIP = 10  # of these, the height of the background's colour over time
_PEAK = 2.0  # times the limit; curves that go farther are cut off there


@dataclass(frozen=True)
class Plot:
    """strip: where each colour of the background begins, how wide it is, and #rrggbb. shift, similarity: points of a polyline, both as shares of
    their limits, whose height is `limit`. marks: places.
    """

    strip: tuple[tuple[float, float, str], ...]
    shift: str
    similarity: str
    limit: float
    marks: tuple[float, ...]


@dataclass(frozen=True)
class ShownChecks:
    """marks: in words. facts: labels and values."""

    marks: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    plot: Plot | None


def shown_checks(checks: Checks, fps: float) -> ShownChecks:
    """fps: the film's frames a second."""
    return ShownChecks(tuple(map(str, checks.marks)), tuple(_facts(checks, fps)), _plot(checks))


def _facts(checks: Checks, fps: float) -> Iterator[tuple[str, str]]:
    if checks.seam_ratio is not None:
        joins = f"{len(checks.joins)} join{'' if len(checks.joins) == 1 else 's'}"
        yield f"Change at {joins}", f"{checks.seam_ratio:.2f} times that at other borders"
    yield "Background, last to first chunk", f"{checks.background_shift:.1f} grey levels"
    yield "Similarity to the first chunk", f"{checks.similarity:.2f}"
    if checks.stillest is not None:
        yield "Least movement", f"{checks.stillest:.0%} of that in the first chunk"
    if checks.loop_period is not None and checks.loop_distance is not None:
        yield "Most like itself", f"after {checks.loop_period / fps:.1f} s, {checks.loop_distance:.2f} frames off"


def _plot(checks: Checks) -> Plot | None:
    """None for a film too short to have a course."""
    curves, last = checks.curves, checks.num_frames - 1
    if len(curves.frame) < 2:
        return None
    places = [WIDTH * frame / last for frame in curves.frame]
    edges = [0.0, *((before + after) / 2 for before, after in pairwise(places)), float(WIDTH)]
    strip = tuple((edges[i], edges[i + 1] - edges[i] + 0.5, colour) for i, colour in enumerate(curves.background))
    shifts = [shift / FARTHEST for shift in curves.background_shift]
    losses = [(1 - similarity) / (1 - LEAST_SIMILAR) for similarity in curves.similarity]
    top = min(_PEAK, max(1.25, *shifts, *losses))

    def height(share: float) -> float:
        return round(HEIGHT - (HEIGHT - STRIP - 4) * min(share, top) / top, 1)

    def line(shares: Sequence[float]) -> str:
        return " ".join(f"{place:.1f},{height(share)}" for place, share in zip(places, shares, strict=True))

    return Plot(strip, line(shifts), line(losses), height(1), tuple(round(WIDTH * mark.frame / last, 1) for mark in checks.marks))
