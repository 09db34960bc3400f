"""What lies in a take's folder of a run that did not end: rounds that are done, and snapshots. A take goes on from it, or it is removed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...files import remove
from ...pipeline.film_key import rounds_stand_alone
from ...pipeline.kept_rounds import KeptRounds
from ...pipeline.loop.generations import newest
from ..folder.folder import ROUNDS, SNAPSHOTS
from ..settings.plan import Plan, PlannedTake


@dataclass(frozen=True)
class GoesOn:
    """has_snapshot: whether the take goes on from one. text: what to say; empty for a take that begins at its start."""

    has_snapshot: bool
    text: str


def kept_rounds(plan: Plan, planned: PlannedTake) -> KeptRounds | None:
    """Where the take's rounds are kept; None for one of a single round."""
    return KeptRounds(planned.folder / ROUNDS, planned.rounds, rounds_stand_alone(plan.recipe)) if planned.rounds else None


def is_own(plan: Plan, planned: PlannedTake) -> bool:
    """Whether all that lies there of a run that did not end is this very take's, and whole."""
    snapshot, kept = newest(planned.folder / SNAPSHOTS), kept_rounds(plan, planned)
    if snapshot is not None and snapshot.film_key != planned.film_key:
        return False
    return kept.are_own() if kept is not None else not (planned.folder / ROUNDS).exists()


def goes_on(plan: Plan, planned: PlannedTake, aside: Path | None) -> GoesOn:
    """What the take goes on from: what `is_own` found, or the rounds that it has in common with a film that was moved `aside`."""
    folder, kept = planned.folder / SNAPSHOTS, kept_rounds(plan, planned)
    snapshot, count = newest(folder), 0
    if kept is not None:
        if aside is not None:
            kept.take_over(aside / ROUNDS)
        count = kept.count() if kept.stand_alone or snapshot else 0
        kept.drop_after(count)
    if snapshot is not None and kept is not None and count > snapshot.round and kept.stand_alone:
        snapshot = None  # older than the last of these rounds
    if snapshot is None:
        remove(folder)
        return GoesOn(False, _rounds_text(plan, planned, count) if count else "")
    done = snapshot.round * (planned.take.num_steps(plan.card) // len(planned.take.timeline_for(plan.card).rounds)) + snapshot.step
    return GoesOn(True, f"take '{planned.take.name}' goes on after step {done} of {planned.take.num_steps(plan.card)}")


def _rounds_text(plan: Plan, planned: PlannedTake, count: int) -> str:
    frames = planned.take.frames(planned.take.timeline_for(plan.card).rounds[count].frames, plan.card).start
    return (
        f"take '{planned.take.name}': its first {frames} frames ({float(frames / plan.fps):.2f} s, {count} of {len(planned.rounds)} chunks) "
        f"were rendered before and are kept"
    )
