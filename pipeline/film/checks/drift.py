"""Drift: the background's colour, or all colours, leave slowly what they were."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from .check import Check, Found, Part
from .figures import FARTHEST, LEAST_SIMILAR
from .pictures import Floats, Picture

_DISSIMILAR = 64.0  # grey levels, the mean distance of colours, at which similarity is 0


class Colours:
    """Those of some frames together, to compare others with: medians, as a film's first frame may be off. colours: [frames, 32, 3]."""

    def __init__(self, colours: Floats) -> None:
        self._usual: Floats = np.median(colours, axis=0)

    @property
    def background(self) -> Floats:
        """[3]: the colour that half of the picture is darker than, and half brighter."""
        return np.asarray(np.median(self._usual, axis=0), np.float32)

    def shift(self, colours: Floats) -> Floats:
        """[..., 32, 3] -> [..., 3]: how far the background is from here, in grey levels: what most ranks are shifted by, whatever the others do."""
        ranked = np.sort(colours - self._usual, axis=-2)
        return ranked[..., ranked.shape[-2] // 2, :]

    def similarity(self, colours: Floats) -> Floats:
        """[..., 32, 3] -> [...]: 1 where all are the same."""
        return np.maximum(0, 1 - np.abs(colours - self._usual).mean(axis=(-2, -1)) / _DISSIMILAR)


class Drift(Check):
    """Of the mean of the last second. What a part drifts adds up with what the parts before it did, but for what changes while a new one is learnt.

    before: the total of the part before, None for the film's first.
    """

    kind = "drift"

    def __init__(self, part: Part, before: NDArray[np.float64] | None) -> None:
        super().__init__(part)
        self._before = np.zeros(4) if before is None else before
        self._learnt: list[Floats] = []
        self._usual: Colours | None = None
        self._usual_loss = 0.0  # of similarity, as things move: in each part anew, so that it would add up to a drift
        self._last: deque[NDArray[np.float64]] = deque()
        self._sum = np.zeros(4)  # over these

    @property
    def total(self) -> NDArray[np.float64]:
        """[4]: until now, the background's shift and the loss of similarity."""
        return self._before + self._sum / max(1, len(self._last))

    def see(self, frame: int, picture: Picture) -> Found | None:
        if self._usual is None:
            self._learnt.append(picture.colours)
            if len(self._learnt) == self.part.learnt:
                learnt = np.stack(self._learnt)
                self._usual = Colours(learnt)
                self._usual_loss = float(1 - self._usual.similarity(learnt).mean())
                self._learnt.clear()
            return None
        colours = picture.colours
        self._last.append(np.array((*self._usual.shift(colours), 1 - self._usual.similarity(colours) - self._usual_loss)))
        self._sum += self._last[-1]
        if len(self._last) <= self.part.second:
            return None
        self._sum -= self._last.popleft()
        *shift, loss = self.total.tolist()
        farthest = max(map(abs, shift))
        if farthest > FARTHEST:
            return Found(frame, f"the background is {farthest:.1f} grey levels from where it began (limit {FARTHEST:g})")
        if 1 - loss < LEAST_SIMILAR:
            return Found(frame, f"its colours are {1 - loss:.2f} similar to those that it began with (limit {LEAST_SIMILAR:g})")
        return None
