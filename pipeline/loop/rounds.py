"""A take round after round on one rank: what is denoised now, and what later rounds need of what is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ...cache import Cached
from ...parallel.groups.errors import CollectiveError
from ...parallel.groups.mesh import Mesh
from ..families import Family
from ..take import Take
from .denoise import Denoising, Step


@dataclass(frozen=True)
class Finished:
    """A round has ended: its latents [1, channels, latent frames, height, width] (fp32) are final, on every rank alike.

    frames: which ones of the take; is_last: whether the take is done with them; was_kept: whether they were rendered before this run.
    """

    frames: range
    latents: Tensor
    is_last: bool
    was_kept: bool = False


class Rounds:
    """Iterate to run a take's rounds: the steps of each, and then that it is finished.

    number: of the running round; denoising: it; done: by latent frame, the latents of earlier rounds, or of an earlier film, that this one or a
    later one shows as context. is_stopped: set to end the take with the running round, or with the one that has just finished.
    """

    def __init__(self, family: Family, take: Take, cached: Cached | None, mesh: Mesh, earlier: Mapping[int, Tensor] | None = None) -> None:
        """earlier: the latents that the take's context has of an earlier film."""
        self._family, self._cached, self._mesh = family, cached, mesh
        self.take, self.timeline = take, take.timeline_for(family.card)
        self.encode_seconds = 0.0
        self.is_stopped = False
        self.done: dict[int, Tensor] = dict(earlier or {})
        self.denoising = self.go_to(0)

    def go_to(self, number: int) -> Denoising:
        """Begin round `number`, from its noise. `done` must hold what it shows as context."""
        self.number = number
        self.denoising = Denoising(self._family, self.take, self._cached, self._mesh, self.timeline.rounds[number], self.done)
        self.encode_seconds += self.denoising.encode_seconds
        return self.denoising

    def pass_over(self, latents: Tensor) -> Finished:
        """The next round, none of whose steps was made, is done already, with these latents. `go_to(number)` then begins the one behind it."""
        frames = self.timeline.rounds[self.number].frames
        self._keep(frames, latents)
        self.number += 1
        return Finished(frames, latents, is_last=False, was_kept=True)

    @property
    def steps_done(self) -> int:
        return self.number * len(self.denoising.scheduler.timesteps) + self.denoising.index

    def __iter__(self) -> Iterator[Step | Finished]:
        last = len(self.timeline.rounds) - 1
        while not self.is_stopped:  # by what was passed over
            try:
                yield from self.denoising
            except CollectiveError as error:
                raise (error.at(f"round {self.number + 1}") if last else error) from error
            yield Finished(self.timeline.rounds[self.number].frames, self.denoising.whole(), is_last=self.number == last)
            if self.number == last or self.is_stopped:
                return
            self.advance()

    def advance(self) -> None:
        """Begin the next round, once the steps of the running one are done."""
        self._keep(self.timeline.rounds[self.number].frames, self.denoising.whole())
        if self._cached is not None:
            self._cached.next_round()
        self.go_to(self.number + 1)

    def _keep(self, frames: range, latents: Tensor) -> None:
        needed = self.timeline.needed_after(self.number)
        self.done.update({frame: latent.clone() for frame, latent in zip(frames, latents.split(1, dim=2), strict=True)})
        self.done = {frame: latent for frame, latent in self.done.items() if frame in needed}
