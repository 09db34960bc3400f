"""Frame rates as exact fractions, as people write them."""

from __future__ import annotations

import math
from fractions import Fraction

_LARGEST = 1000
_DENOMINATOR = 1001  # ffmpeg keeps fractions whose terms are at most 1,001,000


def frame_rate(stated: str | float) -> Fraction:
    """Frames a second. "24000/1001" is kept as it is written; 23.976, 29.97 and their like are the broadcast rates of n * 1000 / 1001 that
    they round. Raises ValueError for what is no rate.
    """
    text = str(stated).strip()
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 1 <= rate <= _LARGEST:
        raise ValueError(f"fps is {text}; it must be a number from 1 to {_LARGEST}, 24, 23.976 or 24000/1001 for example.")
    digits = len(text.partition(".")[2])
    broadcast = Fraction(math.ceil(rate) * 1000, 1001)
    if digits >= 2 and text.replace(".", "", 1).isdigit() and round(broadcast, digits) == rate:
        return broadcast
    exact = rate.limit_denominator(_DENOMINATOR)
    if "/" in text and exact != rate:
        raise ValueError(f"fps is {text}; films keep fractions with a denominator of at most {_DENOMINATOR}, {exact} for example.")
    return exact
