"""A trace's decisions, made again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from ..decision import Decision, Verdict
from .entry import Key, name_layers, read_layers
from .trace import Trace


class Replay:
    """The decisions of a trace, to be made again; a take with more segments than the trace goes on with those of its last one."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._entries = {entry.key: entry for entry in trace.entries}
        self._last_segment = max(trace.segments, default=0)

    def verdict(self, key: Key, units: Sequence[range]) -> Verdict:
        """What the trace decided for a call. units: the blocks that each of the site's units stands for. Raises ValueError for a call that the
        trace does not know.
        """
        segment, step, branch, site = key
        entry = self._entries.get((min(segment, self._last_segment), step, branch, site))
        if entry is None:
            raise ValueError(f"The replayed trace has no decision for step {step}, branch {branch}, site {site}; it belongs to another kind of take.")
        if entry.decision == Decision.COMPUTE.value:
            return Verdict.of(frozenset(), len(units))
        named = name_layers(units) == entry.layers
        blocks = set(chain(*read_layers(entry.layers)))
        return Verdict.of(frozenset(unit for unit, run in enumerate(units) if named or blocks.issuperset(run)), len(units))
