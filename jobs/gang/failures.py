"""What went wrong with a gang, and which of its ranks is to blame. Pure: knows neither Ray nor processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class FailureKind(IntEnum):
    """How a rank failed; the lower its number, the likelier it is the cause, and no effect of another rank's failure.

    DIED: its process is gone. RAISED: it raised an error of its own. LOST_EXCHANGE: a collective failed, as other ranks had failed before.
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
    """The gang cannot do what it was asked to: no place for its ranks, or one of them failed or died. The fields repeat what the message says.

    rank: the one that is the cause, None where it is none of them. cause: what happened, in one line. step: denoising steps of the take
    that were done by then, None outside of a take. died: the rank's process is gone, and its loaded model with it.
    """

    def __init__(self, message: str, *, rank: int | None = None, cause: str = "", step: int | None = None, died: bool = False) -> None:
        super().__init__(message)
        self.rank, self.cause, self.step, self.died = rank, cause or message, step, died


def gang_error(heard: Sequence[Failure], when: str, step: int | None) -> GangError:
    """The error of a gang, blamed on the first failure of the most telling kind. heard: in order of time. when: `while starting` for example."""
    first = min(heard, key=lambda failure: failure.kind)
    died = first.kind is FailureKind.DIED
    message = f"Rank {first.rank} {'died' if died else 'failed'} {when}: {first.cause}"
    return GangError(message, rank=first.rank, cause=first.cause, step=step, died=died)
