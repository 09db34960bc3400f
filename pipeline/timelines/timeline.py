"""A take's latent frames in rounds: what is denoised together, and by which model calls. Pure arithmetic: knows nothing of models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...parallel.tokens.bands import Band


@dataclass(frozen=True)
class Call:
    """One model call of a step, or one of each guidance branch.

    segment: what caches and traces know it by. frames: the latent frames that it denoises. weights: how much each counts where calls overlap.
    context: latent frames that are done, shown to the model before the others, without noise; those below 0 are of an earlier film. bands: where not
    all frames attend to all, what each segment of them attends to, in order.
    """

    segment: int
    frames: range
    weights: tuple[float, ...]
    context: tuple[int, ...] = ()
    bands: tuple[Band, ...] = ()

    @classmethod
    def alone(cls, segment: int, frames: range, context: tuple[int, ...] = ()) -> Call:
        """With no other call that overlaps it."""
        return cls(segment, frames, (1.0,) * len(frames), context)

    @property
    def centre(self) -> float:
        return centre(self.frames)

    @property
    def spans(self) -> tuple[range, ...]:
        """The runs of its frames that have a text each, that of their middle."""
        return tuple(band.frames for band in self.bands) or (self.frames,)

    @property
    def num_shown(self) -> int:
        """Latent frames that the model sees."""
        return len(self.context) + len(self.frames)


def centre(frames: range) -> float:
    """The middle of frames in a row."""
    return (frames.start + frames.stop - 1) / 2


@dataclass(frozen=True)
class Round:
    """Latent frames that are denoised together, from noise to the last step; final when the round ends.

    calls: of each step; where they shift, all that some step makes. by_step: those of each step where they shift; empty where they do not.
    """

    frames: range
    calls: tuple[Call, ...]
    by_step: tuple[tuple[Call, ...], ...] = ()

    def calls_at(self, step: int) -> tuple[Call, ...]:
        """Which calls a step (0-based) makes, in the order of their frames."""
        return self.by_step[step] if self.by_step else self.calls

    @property
    def most_calls(self) -> int:
        """Of the step that makes most."""
        return max(map(len, self.by_step)) if self.by_step else len(self.calls)

    @property
    def is_banded(self) -> bool:
        return any(call.bands for call in self.calls)


@dataclass(frozen=True)
class Timeline:
    """The rounds of a take, in order; together they denoise every latent frame once."""

    rounds: tuple[Round, ...]

    @classmethod
    def full(cls, num_latent_frames: int) -> Timeline:
        """One round of one call: all frames attend to all."""
        frames = range(num_latent_frames)
        return cls((Round(frames, (Call.alone(0, frames),)),))

    @property
    def num_latent_frames(self) -> int:
        return self.rounds[-1].frames.stop

    @property
    def calls(self) -> Iterator[Call]:
        """Of each round: those of a step, or of all steps where they shift."""
        for one in self.rounds:
            yield from one.calls

    @property
    def spans(self) -> Iterator[range]:
        """Of the calls of a step of each round, those that have a text each."""
        for call in self.calls:
            yield from call.spans

    @property
    def most_calls(self) -> int:
        """Of the step that makes most."""
        return max(one.most_calls for one in self.rounds)

    @property
    def shifts(self) -> bool:
        """Whether steps of a round make different calls."""
        return any(one.by_step for one in self.rounds)

    @property
    def is_banded(self) -> bool:
        return any(one.is_banded for one in self.rounds)

    @property
    def most_windows(self) -> int:
        """How much of a step ranks can share out: its calls, or the segments of a banded one; of the round that has most."""
        return max(sum(len(call.spans) for call in one.calls) if one.is_banded else one.most_calls for one in self.rounds)

    @property
    def is_whole(self) -> bool:
        """Whether one call shows the whole take and nothing else, and all frames attend to all."""
        return [bool(call.context) for call in self.calls] == [False] and not self.is_banded

    @property
    def shown_by(self) -> Iterator[range]:
        """For each latent frame, in order, the frames of the call, or of its segment, that counts most there; of equals the first. Where calls shift,
        of those of the first step.
        """
        for one in self.rounds:
            most: dict[int, tuple[float, range]] = {}
            for call in one.calls_at(0):
                spans = {frame: span for span in call.spans for frame in span}
                for frame, weight in zip(call.frames, call.weights, strict=True):
                    if frame not in most or weight > most[frame][0]:
                        most[frame] = weight, spans[frame]
            yield from (most[frame][1] for frame in one.frames)

    def needed_after(self, number: int) -> frozenset[int]:
        """Latent frames that are done once round `number` is, and that a later round shows as context."""
        done = self.rounds[number].frames.stop
        return frozenset(frame for one in self.rounds[number + 1 :] for call in one.calls for frame in call.context if frame < done)
