"""What went wrong with a gang: the cause, and which of its ranks is to blame. Pure: knows neither Ray nor processes."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from ...parallel.groups.errors import CollectiveError
from ...pipeline.loop.generations import SnapshotError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LASTING = (errno.EACCES, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOTEMPTY, errno.EPERM, errno.EROFS)
_NO_MEMORY = "can't allocate memory"  # how torch's CPU allocator says it


class Cause(Enum):
    """Why a take was broken off, and how likely one rank's failure is the cause of the others': the lower the number, the likelier.

    PREEMPTED: the cluster took a rank's node away. DIED: a rank's process, or its node, is gone. STORE_AWAY: files cannot be read or written for
    now. BAD_SNAPSHOT: the take cannot go on from where it was. BAD_INPUT: the take itself is wrong, and would be each time. RAISED: any other
    error. NO_PLACE: the cluster has no room for a rank. LOST_EXCHANGE: a collective failed or ran out of time, and no rank says why. HUNG: nothing
    was heard of the take for too long.
    """

    PREEMPTED = ("a node was taken away", 0)
    DIED = ("a rank died", 0)
    OUT_OF_MEMORY = ("out of memory", 1)
    DISK_FULL = ("the disk is full", 1)
    STORE_AWAY = ("storage does not answer", 1)
    BAD_SNAPSHOT = ("no snapshot to go on from", 1)
    BAD_INPUT = ("the take cannot be rendered", 1)
    RAISED = ("an error", 1)
    LOST_EXCHANGE = ("an exchange between ranks failed", 2)
    NO_PLACE = ("no place for a rank", 1)
    HUNG = ("no progress", 2)

    def __init__(self, text: str, effect: int) -> None:
        self.text, self.effect = text, effect

    @property
    def is_death(self) -> bool:
        """Whether a process is gone, and the model that it had loaded."""
        return self in (Cause.PREEMPTED, Cause.DIED)


def cause_of(error: BaseException) -> Cause:
    """Of an error that a rank, or the driver, raised."""
    if isinstance(error, CollectiveError):
        return Cause.LOST_EXCHANGE
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY in str(error):
        return Cause.OUT_OF_MEMORY
    if isinstance(error, SnapshotError):
        return Cause.BAD_SNAPSHOT
    if (isinstance(error, OSError) and error.errno in _FULL) or os.strerror(errno.ENOSPC) in str(error):  # ffmpeg says it in words
        return Cause.DISK_FULL
    if isinstance(error, OSError) and error.errno not in _LASTING:
        return Cause.STORE_AWAY
    return Cause.BAD_INPUT if isinstance(error, ValueError | FloatingPointError) else Cause.RAISED


@dataclass(frozen=True)
class Failure:
    """One rank's failure, as the driver heard of it. text: what happened, in one line."""

    rank: int
    cause: Cause
    text: str


class GangError(RuntimeError):
    """The gang cannot do what it was asked to: no place for its ranks, or one of them failed or died. The fields repeat what the message says.

    rank: the one that is the cause, None where it is none of them. why: the kind of cause; cause: what happened, in one line. step: denoising
    steps of the take that were done by then, None outside of a take.
    """

    def __init__(self, message: str, *, rank: int | None = None, why: Cause = Cause.RAISED, cause: str = "", step: int | None = None) -> None:
        super().__init__(message)
        self.rank, self.why, self.cause, self.step = rank, why, cause or message, step

    @property
    def died(self) -> bool:
        """Whether the rank's process is gone, and its loaded model with it."""
        return self.why.is_death


def gang_error(heard: Sequence[Failure], when: str, step: int | None, seats: Sequence[str] = ()) -> GangError:
    """The error of a gang, blamed on the first failure of the most telling kind. heard: in order of time. when: `while starting` for example. seats:
    where each rank is, or was, as far as that is known.
    """
    first = min(heard, key=lambda failure: failure.cause.effect)
    where = f" ({seats[first.rank]})" if first.cause.is_death and first.rank < len(seats) else ""
    message = f"Rank {first.rank}{where} {'died' if first.cause.is_death else 'failed'} {when}: {first.text}"
    return GangError(message, rank=first.rank, why=first.cause, cause=first.text, step=step)
