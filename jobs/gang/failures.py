"""What went wrong with a gang, and which of its ranks is to blame. Pure: knows neither Ray nor processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class FailureKind(IntEnum):
    """What a rank's failure tells of the cause, the most telling first.

    DIED: its process is gone. RAISED: something went wrong on the rank itself. LOST_EXCHANGE: it waited for ranks that had failed before.
    """

    DIED = 0
    RAISED = 1
    LOST_EXCHANGE = 2


@dataclass(frozen=True)
class Failure:
    """One rank's failure, as the driver heard of it. cause: one line."""

    rank: int
    kind: FailureKind
    cause: str


class GangError(RuntimeError):
    """The gang cannot do what it was asked to: no place for its ranks, or one of them failed or died. The message says all that follows.

    rank: the one that failed first, None where it was none of them. cause: what happened, in one line. step: denoising steps of the take
    that were done by then, None outside of a take. died: the rank's process is gone, and its loaded model with it.
    """

    def __init__(self, message: str, *, rank: int | None = None, cause: str = "", step: int | None = None, died: bool = False) -> None:
        super().__init__(message)
        self.rank, self.cause, self.step, self.died = rank, cause or message, step, died


def gang_error(heard: Sequence[Failure], when: str, step: int | None) -> GangError:
    """Of several failures, in the order in which they were heard, the first one that tells most of the cause. when: `while starting`."""
    first = min(heard, key=lambda failure: failure.kind)
    died = first.kind is FailureKind.DIED
    message = f"Rank {first.rank} {'died' if died else 'failed'} {when}: {first.cause}"
    return GangError(message, rank=first.rank, cause=first.cause, step=step, died=died)
