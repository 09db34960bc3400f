"""Recompute when a probe has changed enough (first-block cache of ParaAttention; TeaCache, arXiv 2411.19108, eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from omegaconf import MISSING

from ..decision import Decision
from ..state.holds import Holds
from ..sums import l1_sums, ratio
from .trigger import Moment, Trigger

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RelativeChangeConfig:
    """threshold: relative L1 change, dimensionless, from which a step is computed.

    accumulate: False compares with the last computed step (FBCache); True adds up changes from step to step since then (TeaCache).
    rescale: polynomial applied to each change, highest power first; empty leaves it as it is.
    """

    threshold: float = MISSING
    accumulate: bool = False
    rescale: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.threshold, float) and self.threshold < 0:
            raise ValueError(f"threshold is {self.threshold}; it must be 0 (compute every step) or above.")


class RelativeChange(Trigger):
    measures = True
    num_probes = 1
    holds = Holds(numbers=("_accumulated",), probes=("_probe", "_reference"))

    def __init__(self, config: RelativeChangeConfig) -> None:
        super().__init__()
        self.config = config
        self.threshold = config.threshold
        self._probe: Tensor | None = None
        self._reference: Tensor | None = None
        self._accumulated = 0.0

    def signal(self, probe: Tensor) -> Tensor:
        self._probe = probe
        return l1_sums(probe, self._reference)

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        self._accumulated = self._rescaled(ratio(sums)) + (self._accumulated if self.config.accumulate else 0.0)
        self.value = self._accumulated
        return Decision.REUSE if self._accumulated < self.config.threshold else Decision.COMPUTE

    def settle(self, decision: Decision) -> None:
        if decision is Decision.COMPUTE:
            self._accumulated = 0.0
        if decision is Decision.COMPUTE or self.config.accumulate:
            self._reference = self._probe
        self._probe = None

    def _rescaled(self, change: float) -> float:
        if not self.config.rescale or change == float("inf"):
            return change
        value = 0.0
        for coefficient in self.config.rescale:
            value = value * change + coefficient
        return value
