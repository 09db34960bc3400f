"""What counts as the same, on any processor: tensors, films, decisions; and what counts as memory that does not grow.

Equality to the bit (`torch.equal`) is asked for only where the same kernels run on the same shapes in the same memory layout: two
takes on one model, a replay, data that is moved and not computed with. Other shapes (another number of ranks), other layouts (weights
that were read from elsewhere) and other processors add up in another order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from longtake.cache import Trace
from longtake.cache.decision import Decision
from longtake.pipeline.loop.render import WholeTake
from torch import Tensor

SAME = 1e-4
"""How far fp32 numbers of about one may lie apart: the promise of latents on any gang.

It is 840 roundings (fp32 rounds by 1.2e-7). A sum of n products is off by n roundings at most, by their square root as a rule, and the
longest sums of the tiny models have a thousand terms. Through a few layers and eight steps they are seen to reach 1e-5; a token that is
missed, a row too many or a step that is not computed changes 1e-3 and more.
"""

SAME_FRAME = 0.1 / 255
"""The same for frames in 0..1 that were decoded in parts: a tenth of what 8 bits tell apart.

A decoder divides by norms over its channels, four of them in the tiny one, and where these are all near zero it makes hundreds of
roundings of one. Rows without their neighbours, or normed by themselves, change half of the range.
"""

SAME_IN_BFLOAT16 = 0.1
"""The same for a film in bfloat16, which rounds by 0.0039: 25 roundings. Its decisions are replayed, as rounding would change them."""

MARGIN = 1e-3
"""How far from its threshold a decision must lie, for it to be the same wherever numbers differ by SAME."""


def assert_same(ours: Tensor, theirs: Tensor, where: object = "", bound: float = SAME) -> None:
    """The same but for rounding. Numbers above one count by the largest of them."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} is not {tuple(theirs.shape)} {where}"
    largest = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
    difference = (ours - theirs).abs().max().item() / largest if theirs.numel() else 0.0
    assert difference <= bound, f"largest difference {difference:.2e} {where}"


def assert_same_decisions(ours: Trace, theirs: Trace, where: object = "") -> None:
    """Theirs must reuse something, and decide nothing by a hair."""
    assert theirs.count(Decision.COMPUTE) < len(theirs.entries), "nothing is reused: give the recipe another threshold in tests/takes.py"
    assert theirs.smallest_margin > MARGIN, (
        f"a decision of the reference is a close call: {theirs.smallest_margin:.2e} {where} (its threshold: tests/takes.py)"
    )
    assert ours.choices == theirs.choices, where


def assert_same_film(ours: WholeTake, theirs: WholeTake, where: object = "") -> None:
    """Latents and, with a cache, every decision."""
    assert_same(ours.latents, theirs.latents, where)
    assert (ours.trace is None) == (theirs.trace is None)
    if ours.trace is not None and theirs.trace is not None:
        assert_same_decisions(ours.trace, theirs.trace, where)


def slope(lengths: Sequence[int], sizes: Sequence[float]) -> float:
    """What one more costs, by least squares over several: one reading that the system disturbed says little."""
    assert len(lengths) == len(sizes) >= 4
    return float(np.polyfit(lengths, sizes, 1)[0])
