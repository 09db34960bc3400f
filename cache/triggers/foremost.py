"""A trigger a segment of a take, of which the one that asks for most decides: a mean over a long take would drown one moving second of it.

Not of any recipe's own choice of trigger: a recipe says `aggregate: max`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...later import torch
from ..decision import Decision
from ..state.holds import Holds
from ..state.segments import Segments, cut
from .trigger import Moment, Trigger

if TYPE_CHECKING:
    from torch import Tensor


class Foremost(Trigger):
    """Sums of all segments are reduced at once; a step is computed as soon as one segment wants it, and units are reused that none wants."""

    holds = Holds(settings=("_triggers", "_segments", "measures", "measures_features", "learns", "by_branch", "needs_latents", "_reused"))

    def __init__(self, triggers: Sequence[Trigger], segments: Segments) -> None:
        """triggers: fresh ones of one kind, one for each of the take's segments."""
        super().__init__()
        first, self._triggers, self._segments = triggers[0], triggers, segments
        self.num_units, self._reused = first.num_units, frozenset[int]()
        self.measures, self.measures_features, self.learns = first.measures, first.measures_features, first.learns
        self.by_branch, self.needs_latents = first.by_branch, first.needs_latents

    @property
    def parts(self) -> Sequence[Trigger]:
        return self._triggers

    def signal(self, probe: Tensor) -> Tensor:
        """By segment; where branches are handed over one after the other, by branch and then by segment."""
        signals = [trigger.signal(part) for trigger, part in zip(self._triggers, cut(probe, self._segments), strict=True)]
        by_segment = torch.stack([signal for signal in signals if signal is not None])
        return by_segment.unflatten(1, (len(probe), -1)).transpose(0, 1).flatten() if self.by_branch else by_segment.flatten()

    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        count = len(self._triggers)
        if self.by_branch:
            each = len(sums) // 2 // count
            own = [[*sums[i * each : (i + 1) * each], *sums[(count + i) * each : (count + i + 1) * each]] for i in range(count)]
        else:
            each = len(sums) // count
            own = [list(sums[i * each : (i + 1) * each]) for i in range(count)]
        wishes = [trigger.decide(moment, mine) for trigger, mine in zip(self._triggers, own, strict=True)]
        self._note_foremost()
        self._reused = self._reused_by_all(wishes)
        if Decision.COMPUTE in wishes or not self._reused:
            return Decision.COMPUTE
        return Decision.PARTIAL if Decision.PARTIAL in wishes else Decision.REUSE

    def _reused_by_all(self, wishes: Sequence[Decision]) -> frozenset[int]:
        units = frozenset(range(self.num_units))
        for trigger, wish in zip(self._triggers, wishes, strict=True):
            units &= trigger.reused_units() if wish is Decision.PARTIAL else frozenset() if wish is Decision.COMPUTE else units
        return units

    def _note_foremost(self) -> None:
        """Keep what the trigger compared that is farthest above its threshold, or least below it, for the trace."""
        compared = [(one.value, one.threshold) for one in self._triggers if one.value is not None and one.threshold is not None]
        self.value, self.threshold = max(compared, key=lambda pair: pair[0] - pair[1], default=(None, None))

    def reused_units(self) -> frozenset[int]:
        return self._reused

    def learn(self, unit: int, now: Tensor, before: Tensor | None) -> None:
        befores = [None] * len(self._triggers) if before is None else cut(before, self._segments)
        for trigger, part, forecast in zip(self._triggers, cut(now, self._segments), befores, strict=True):
            trigger.learn(unit, part, forecast)

    def settle(self, decision: Decision) -> None:
        for trigger in self._triggers:
            trigger.settle(decision)
