"""What the driver asks of the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ...cache import Recipe, Replay
from ...pipeline.kept_rounds import KeptRounds
from ...pipeline.take import Take


@dataclass(frozen=True)
class Snapshots:
    """What a take can go on from, should it not be rendered to its end. folder: where it is written; every: seconds from one to the next, at
    least, 0 for none; at_borders: after each round as well, as the take could not go on from the round's latents alone; goes_on: whether the take
    goes on from one that lies there.
    """

    folder: Path
    every: float
    at_borders: bool
    goes_on: bool


@dataclass(frozen=True)
class Order:
    """One take to render, as every rank gets it. place: where the cache keeps features, `device` or `host`; model: its hash; folder: where rank 0
    writes, hidden until the take is whole; preview: the picture file that rank 0 rewrites every `preview_every` steps, 0 for no previews; growing:
    the film file of a take of several rounds that can be played before the take is done; kept: where its rounds are kept, None for one of a single
    round; metadata: what goes into the film's container. stops_on_drift: the take ends with the first round that passes a limit of the checks.
    snapshots: None for none.
    """

    take: Take
    recipe: Recipe | None
    replay: Replay | None
    place: str
    model: str
    film_key: str
    folder: Path
    preview: Path
    growing: Path
    kept: KeptRounds | None
    fps: Fraction
    preview_every: int
    save_latents: bool
    metadata: dict[str, str]
    stops_on_drift: bool = False
    snapshots: Snapshots | None = None
