"""One decision of a take, as it is written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Key = tuple[int, int, str, str]  # segment, step, branch, site


@dataclass
class TraceEntry:
    """What one model call did at one site. layers: the blocks that this is about, as `name_layers` writes them.

    value: the reduced signal, or the risk of the forecasts where guards limit that; margin: its distance from the threshold; both None for
    schedules and first steps.
    forecast_error: relative L1 error of what the predictor would have said at a computed step; None until the take is through.
    """

    segment: int
    step: int
    branch: str
    site: str
    layers: str
    decision: str
    value: float | None
    margin: float | None
    forecast_error: float | None = None

    @property
    def key(self) -> Key:
        """Which of the take's decisions this is."""
        return (self.segment, self.step, self.branch, self.site)

    @property
    def choice(self) -> tuple[int, int, str, str, str, str]:
        """What must be equal wherever the same film is rendered."""
        return (self.segment, self.step, self.branch, self.site, self.layers, self.decision)


def name_layers(runs: Sequence[range]) -> str:
    """Runs of blocks as people write them, neighbours joined: `0-3,7`; `all` where the runs are empty, as of a model's output."""
    if not any(runs):
        return "all"
    joined: list[range] = []
    for run in runs:
        joined = [*joined[:-1], range(joined[-1].start, run.stop)] if joined and joined[-1].stop == run.start else [*joined, run]
    return ",".join(str(run.start) if len(run) == 1 else f"{run.start}-{run.stop - 1}" for run in joined)


def read_layers(layers: str) -> Iterator[range]:
    """The runs of blocks that `name_layers` wrote down; none for `all`."""
    for run in layers.split(",") if layers != "all" else ():
        first, _, last = run.partition("-")
        yield range(int(first), int(last or first) + 1)
