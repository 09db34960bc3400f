"""How far off forecasts would have been where a feature was computed anyway."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..sums import ratio
from ..trace.trace import Trace


class ForecastErrors:
    """Partial sums of the errors of a take's decisions, by their index in its trace: [2] each, fp64, as `l1_sums` gives them. They wait until
    all are reduced at once, so that they cost one collective a take.
    """

    def __init__(self) -> None:
        self._sums: dict[int, Tensor] = {}

    def add(self, index: int, sums: Tensor) -> None:
        """Note the sums of one feature; those of all features of a decision are added up."""
        self._sums[index] = self._sums[index] + sums if index in self._sums else sums

    def write_to(self, trace: Trace, reduce: Callable[[Tensor], Tensor]) -> None:
        """Reduce what has come together and note it in the trace's entries; called on every shard."""
        if self._sums:
            for index, sums in zip(self._sums, reduce(torch.stack(list(self._sums.values()))), strict=True):
                trace.entries[index].forecast_error = ratio(sums)
            self._sums.clear()
