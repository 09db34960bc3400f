"""What a take's stages took, and what its cache saved."""

from __future__ import annotations

import pytest
import torch
from longtake.pipeline.loop.timing import Timed, cache_speedup


def _calls(decisions: str, branches: int = 2) -> list[tuple[int, str]]:
    """c: the conditional branch is computed, the other one as well; p: the other one in part; r: both are reused."""
    kinds = {"c": ("compute", "compute"), "p": ("compute", "partial"), "r": ("reuse", "reuse")}
    return [(step, kinds[letter][branch]) for step, letter in enumerate(decisions) for branch in range(branches)]


@pytest.mark.parametrize(
    ("decisions", "seconds", "first", "speedup"),
    [
        ("crcrcr", [9, 1, 4, 1, 6, 3], 0, (19 + 5 * 3) / 24),  # the first step warms up; the median of 4 and 6
        ("crrr", [8, 2, 2, 4], 0, (8 + 8 * 3) / 16),  # the first step is the only one that was computed whole
        ("ccccc", [5, 2, 2, 2, 2], 0, 1),  # nothing is reused
        ("crcpcr", [6, 2, 4, 1], 2, (10 + 4 * 2) / 13),  # a take that went on from a snapshot: step 2 is the first one here
        ("crpr", [2, 4, 1], 1, None),  # no step of these was computed whole
    ],
)
def test_the_speedup_is_that_of_the_steps_against_the_computed_ones(decisions: str, seconds: list[float], first: int, speedup: float | None) -> None:
    assert cache_speedup(seconds, first, _calls(decisions)) == (None if speedup is None else pytest.approx(speedup))


def test_what_is_timed_comes_through() -> None:
    timed = Timed(iter("abc"), torch.device("cpu"))
    assert "".join(timed) == "abc"
    assert len(timed.seconds) == 4
    assert all(seconds >= 0 for seconds in timed.seconds)
