"""Reuse each part of the model for as long as its own change allows (AdaCache, arXiv 2411.02397; Foresight, arXiv 2506.00329; BWCache,
arXiv 2509.13789): a vector of signals, one entry a unit, in one collective.

When a unit is computed, its change since it was last computed is looked up in a codebook, which says after how many steps it is to be
computed again. AdaCache uses the mean change of all units, divided by the steps since then, and a codebook of many entries; BWCache the
mean and one entry; Foresight each unit's own mean square change, as a multiple of its change in the first steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import MISSING

from ...later import torch
from ..decision import Decision
from ..state.holds import Holds
from ..sums import l1_sums, ratio
from .trigger import Moment, Trigger

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LayerwiseConfig:
    """codebook: [bound, interval] pairs, bounds ascending: after a change of at most `bound` the unit is computed again `interval` steps
    later; after a change above the last bound, at the next step.

    measure: `l1` (relative L1) or `mse` of a unit's change. aggregate: `each` unit for itself or all by their `mean`. per_gap: divide the
    change by the number of steps since then. warmup: share of first steps that are computed. relative: bounds are multiples of the change in the
    warm-up (the sum of its MSEs, each weighted a tenth of the next; from the last two steps on down that is Foresight's lambda).
    tail: if the take's first reuse comes with k steps to go, the last `tail` times k steps are computed; 0 for none.
    """

    codebook: list[list[float]] = MISSING
    measure: str = "l1"
    aggregate: str = "mean"
    per_gap: bool = False
    warmup: float = 0.0
    relative: bool = False
    tail: float = 0.0

    def __post_init__(self) -> None:
        if self.measure not in ("l1", "mse") or self.aggregate not in ("each", "mean"):
            raise ValueError(f"measure is '{self.measure}' (l1 or mse) and aggregate '{self.aggregate}' (each or mean).")
        if isinstance(self.codebook, list):
            are_rungs = bool(self.codebook) and all(len(rung) == 2 and rung[1] >= 1 and rung[1] == int(rung[1]) for rung in self.codebook)
            if not are_rungs or self.codebook != sorted(self.codebook, key=lambda rung: rung[0]):
                raise ValueError(
                    f"codebook is {self.codebook}; it must list [bound, interval] pairs with ascending bounds and whole intervals from 1."
                )
        if not (0 <= self.warmup <= 1 and 0 <= self.tail <= 1):
            raise ValueError(f"warmup is {self.warmup:g} and tail {self.tail:g}; both are shares between 0 and 1.")


class Layerwise(Trigger):
    """It carries what bounds are multiples of, the change in the warm-up: frames that are given it have no warm-up of their own."""

    measures = True
    measures_features = True
    learns = True
    holds = Holds(
        settings=("carries",), numbers=("_change", "_usual", "_computed", "_gap", "_reused", "_step", "_tail_from", "_is_warm"), sums=("_pending",)
    )

    def __init__(self, config: LayerwiseConfig) -> None:
        super().__init__()
        self.config = config
        self._pending: dict[int, Tensor] = {}
        self._change: dict[int, float] = {}
        self._usual: dict[int, float] = {}
        self._computed: dict[int, int] = {}  # step at which a unit was last computed
        self._gap: dict[int, int] = {}
        self._reused: list[int] = []
        self._step, self._tail_from = 0, -1
        self._is_warm = False
        self.carries = ("_usual", "_is_warm") if config.relative else ()

    def signal(self, probe: Tensor) -> Tensor:
        nothing = torch.zeros(2, dtype=torch.float64, device=probe.device)
        sums = [self._pending.get(unit, nothing) for unit in range(self.num_units)]
        self._pending = {}
        return torch.cat(sums)

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        self._step = moment.step
        for unit in range(self.num_units):
            pair = sums[2 * unit : 2 * unit + 2]
            if pair[1] > 0:
                change = ratio(pair)
                self._usual[unit] = self._usual.get(unit, 0.0) / 10 + change if self._warms_up(moment, 1) else self._usual.get(unit, 0.0)
                self._change[unit] = change / self._gap[unit] if self.config.per_gap else change
        self.value, self.threshold = None, None
        self._is_warm = self._is_warm or not self._warms_up(moment, 1)
        if self._warms_up(moment, 0) or 0 <= self._tail_from <= moment.step:
            return Decision.COMPUTE
        self._reused = [unit for unit in range(self.num_units) if moment.step < self._due(unit)]
        if not self._reused:
            return Decision.COMPUTE
        if self.config.tail and self._tail_from < 0:
            left = moment.num_inference_steps - moment.step
            self._tail_from = moment.num_inference_steps - int(self.config.tail * left)
        return Decision.REUSE if len(self._reused) == self.num_units else Decision.PARTIAL

    def _warms_up(self, moment: Moment, steps_ago: int) -> bool:
        """Whether the step so many before this one belongs to the warm-up, of at least three where bounds are multiples of the change in it."""
        steps = max(int(self.config.warmup * moment.num_inference_steps), 3 if self.config.relative else 0)
        return not self._is_warm and moment.step - steps_ago < steps

    def _due(self, unit: int) -> int:
        """The step at which a unit must be computed again."""
        if unit not in self._change:
            return -1
        units = [unit] if self.config.aggregate == "each" else sorted(self._change)
        scale = sum(self._usual[one] for one in units) if self.config.relative else float(len(units))
        change = sum(self._change[one] for one in units) / scale if scale > 0 else float("inf")
        self._note_closest(change)
        return self._computed[unit] + next((int(interval) for bound, interval in self.config.codebook if change <= bound), 1)

    def _note_closest(self, change: float) -> None:
        """Keep the change that is nearest to a bound, for the trace."""
        bound = min((rung[0] for rung in self.config.codebook), key=lambda bound: abs(change - bound))
        if self.value is None or self.threshold is None or abs(change - bound) < abs(self.value - self.threshold):
            self.value, self.threshold = change, bound

    def reused_units(self) -> frozenset[int]:
        return frozenset(self._reused)

    def learn(self, unit: int, now: Tensor, before: Tensor | None) -> None:
        """Called for each feature that the unit keeps; the gap is counted at the first of them. There is none the first time, though a window that
        shifts may have been handed what others kept.
        """
        if self._computed.get(unit) != self._step:
            self._gap[unit] = self._step - self._computed.get(unit, self._step)
            self._computed[unit] = self._step
        if before is None or not self._gap[unit]:
            return
        if self.config.measure == "l1":
            sums = l1_sums(now, before)
        else:
            squared = torch.linalg.vector_norm((now - before).float(), dim=-1).double().square().sum()
            sums = torch.stack((squared, torch.full_like(squared, now.numel())))
        self._pending[unit] = self._pending[unit] + sums if unit in self._pending else sums
