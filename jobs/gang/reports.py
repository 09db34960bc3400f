"""What a rank tells the driver: where it runs, what it loaded, how far it is. Small: large tensors never go through the driver."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...pipeline.film.checks.figures import Checks


@dataclass(frozen=True)
class Seat:
    """Where Ray placed a rank. node: Ray's id of it; host: its name; process: its process number there; cores: those that processes on that node may
    use, shared by all ranks there.
    """

    node: str
    host: str
    process: int
    cores: int

    @property
    def text(self) -> str:
        return f"node {self.host}, process {self.process}"


@dataclass(frozen=True)
class StepReport:
    """`step` of the take's `num_steps` denoising steps, in all its rounds, are done. decisions: how many of each kind so far; empty without a
    cache.
    """

    step: int
    num_steps: int
    decisions: dict[str, int]


@dataclass(frozen=True)
class DecodeReport:
    """`frames` of the film's `num_frames` are written so far."""

    frames: int
    num_frames: int


@dataclass(frozen=True)
class TakeReport:
    """The film and all that belongs to it are written: the whole of it, or, where the order says so, up to the round that passed a limit.

    seconds: spent by this rank on each stage: `encode` (the texts), `denoise` (the steps), `decode` (latents to frames) and `write` (ffmpeg,
    pictures and files). cache_bytes: held by this rank's cache at the end of the take. peak_memory_bytes: the most that this rank held
    during the take, on its accelerator or, on the CPU, in all. speedup: what the cache saved, how many times as fast the steps were as
    computing all of each; None without a cache. checks: of all frames that are written.
    """

    seconds: dict[str, float]
    decisions: dict[str, int]
    cache_bytes: int
    peak_memory_bytes: int
    speedup: float | None
    checks: Checks


@dataclass(frozen=True)
class Loaded:
    """A rank has its model. seconds: spent on loading it. versions: of the packages that may change a film."""

    rank: int
    node: str
    device: str
    threads: int
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Link:
    """The link of a rank to all others. round_trip: seconds of an all-reduce of one number; bytes_per_second: that it sends in an all-to-all."""

    round_trip: float
    bytes_per_second: float


Report = StepReport | DecodeReport | TakeReport
