"""The contract of a trigger."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..decision import Decision
from ..state.holds import Holds

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """Where in a take a model call stands. timestep: the scheduler's, 1000 for pure noise to 0."""

    step: int
    timestep: float
    num_inference_steps: int


class Trigger(ABC):
    """Decides for one segment and branch of one take; made anew for each. Sees numbers and tensors, never a model or a rank.

    holds: what its attributes hold; every class declares those that it adds, so that they can be saved.
    threshold, value: what the last decision compared, for the trace; None where nothing was judged, as by schedules. num_units: how many
    parts of the model the site keeps apart. measures: whether `signal` gives sums. measures_features: whether these are of what it learnt,
    not of the probe. num_probes: the most probes that it holds at once. learns: whether it wants `learn` called for all that is computed.
    by_branch: whether a joint decision hands it each branch's sums in turn (cond first) instead of their total. carries: which of its numbers hold
    for other latent frames of the same take as well, from their noise on, so that a recipe may keep them at a border; none for most.

    What it needs of a recipe: needs_latents: a site that shows it the model's input and, where it learns, the output. needs_checks: one that
    checks forecasts. needs_units: one that keeps units apart. needs_branches: who decides, one of BRANCHES; empty: any.
    """

    measures = False
    measures_features = False
    num_probes = 0
    learns = False
    by_branch = False
    carries: tuple[str, ...] = ()
    holds = Holds(settings=("config",), numbers=("threshold", "value", "num_units"))
    needs_latents = False
    needs_checks = False
    needs_units = False
    needs_branches = ""

    def __init__(self) -> None:
        self.threshold: float | None = None
        self.value: float | None = None
        self.num_units = 1

    @property
    def parts(self) -> Sequence[Trigger]:
        """Itself, or those that it decides by."""
        return (self,)

    def check_steps(self, num_inference_steps: int) -> None:  # noqa: B027 - most work for any number
        """Raise ValueError if its config was made for takes of another number of steps."""

    def signal(self, probe: Tensor) -> Tensor | None:
        """Partial sums, fp64, over this shard's probe, [batch, tokens, dim] or latents; None where nothing is measured.

        Its length depends on the trigger's class and `num_units` alone, so that all shards reduce alike.
        """
        return None

    @abstractmethod
    def decide(self, moment: Moment, sums: Sequence[float]) -> Decision:
        """Decide from the reduced signal, which is the same on every shard; empty for a schedule."""

    def reused_units(self) -> frozenset[int]:
        """Which units the last decision, PARTIAL, leaves out; none for triggers that never decide so."""
        return frozenset()

    def learn(self, unit: int, now: Tensor, before: Tensor | None) -> None:  # noqa: B027 - most learn nothing
        """Told what a unit really made, and the forecast of it if there was one. Sums of it go into the next `signal`."""

    def settle(self, decision: Decision) -> None:  # noqa: B027 - schedules have nothing to settle
        """Told the decision that was carried out in the end (guards may have overruled this trigger)."""
