"""The contract of a trigger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from ..decision import Decision, Signal


@dataclass(frozen=True)
class Moment:
    """Where in a take a model call stands. timestep: the scheduler's, 1000 for pure noise to 0."""

    step: int
    timestep: float
    num_inference_steps: int


class Trigger(ABC):
    """Decides for one segment and branch of one take; made anew for each. Sees numbers and tensors, never a model or a rank."""

    threshold: float | None = None

    def signal(self, probe: Tensor) -> Signal | None:
        """Partial sums of this shard's probe [batch, tokens, dim]; None where the trigger is a schedule and measures nothing.

        Whether it is None depends on the trigger's class alone, so that all shards reduce, or none does.
        """
        return None

    @abstractmethod
    def decide(self, moment: Moment, change: float | None) -> Decision:
        """Decide from the reduced signal, which is the same on every shard."""

    def settle(self, decision: Decision) -> None:  # noqa: B027 - schedules have nothing to settle
        """Take note of the decision that was carried out in the end (guards may have overruled this trigger)."""

    def tensors(self) -> list[Tensor]:
        """What the trigger holds on to between steps."""
        return []
