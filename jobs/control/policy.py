"""What is done after a failure: a pure class, causes and counts in, a verdict out. Knows neither gangs nor files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum, auto

from ..gang.failures import Cause
from ..settings.config import RetryConfig

_FIRST_WAIT, _LONGEST_WAIT = 5.0, 60.0  # seconds, until a disk or a store is tried again


class Answer(Enum):
    """RETRY: go on from the last snapshot. AFRESH: the same from the start, without snapshots. OFFLOAD: load the model again with its weights off
    the device, then as RETRY. WAIT: for storage, then as RETRY. FAIL: the take has failed; the job goes on with the next one.
    """

    RETRY = auto()
    AFRESH = auto()
    OFFLOAD = auto()
    WAIT = auto()
    FAIL = auto()


@dataclass(frozen=True)
class Verdict:
    """why: the count and its limit, or what speaks against a retry, to be said beside the cause. count, limit: 0 where none counts. seconds: to wait
    before the retry.
    """

    answer: Answer
    why: str = ""
    count: int = 0
    limit: int = 0
    seconds: float = 0.0


class Policy:
    """Counts a job's failures. can_offload: whether the model's weights may yet be moved off the device, which changes no film."""

    def __init__(self, limits: RetryConfig, *, can_offload: bool) -> None:
        self._limits, self._can_offload = limits, can_offload
        self._takes: Counter[str] = Counter()
        self._job = self._preemptions = 0
        self._afresh: set[str] = set()
        self._waited: dict[str, float] = {}

    def decide(self, take: str, cause: Cause) -> Verdict:
        """After a take was broken off by `cause`."""
        if cause is Cause.BAD_INPUT:
            return Verdict(Answer.FAIL)
        if cause is Cause.OUT_OF_MEMORY:
            return self._after_no_memory()
        if cause is Cause.BAD_SNAPSHOT and take not in self._afresh:
            self._afresh.add(take)
            return Verdict(Answer.AFRESH, "it begins anew")
        if cause in (Cause.DISK_FULL, Cause.STORE_AWAY):
            return self._wait(take)
        if cause is Cause.PREEMPTED:
            return self._after_preemption()
        return self._retry(take)

    def succeeded(self, take: str) -> None:
        """A take's wait for storage is over."""
        self._waited.pop(take, None)

    def _after_no_memory(self) -> Verdict:
        if not self._can_offload:
            return Verdict(Answer.FAIL)
        self._can_offload = False
        return Verdict(Answer.OFFLOAD, "once more with model.offload=blocks, for the rest of the job")

    def _after_preemption(self) -> Verdict:
        limit = self._limits.preemptions
        if self._preemptions >= limit:
            return Verdict(Answer.FAIL, f"the job's {limit} preemptions are used up", self._preemptions, limit)
        self._preemptions += 1
        return Verdict(Answer.RETRY, f"preemption {self._preemptions} of {limit}", self._preemptions, limit)

    def _wait(self, take: str) -> Verdict:
        waited, limit = self._waited.get(take, 0.0), 60 * self._limits.wait_minutes
        if waited >= limit:
            return Verdict(Answer.FAIL, f"it was waited for {waited / 60:.3g} min")
        seconds = min(max(_FIRST_WAIT, waited), _LONGEST_WAIT, limit - waited)
        self._waited[take] = waited + seconds
        return Verdict(Answer.WAIT, f"tried again in {seconds:.0f} s, for {self._limits.wait_minutes:g} min at most", seconds=seconds)

    def _retry(self, take: str) -> Verdict:
        if self._takes[take] >= self._limits.take:
            return Verdict(Answer.FAIL, _used_up("take", self._limits.take), self._takes[take], self._limits.take)
        if self._job >= self._limits.job:
            return Verdict(Answer.FAIL, _used_up("job", self._limits.job), self._job, self._limits.job)
        self._takes[take] += 1
        self._job += 1
        return Verdict(Answer.RETRY, f"retry {self._takes[take]} of {self._limits.take}", self._takes[take], self._limits.take)


def _used_up(whose: str, limit: int) -> str:
    return f"the {whose}'s {limit} retries are used up" if limit else f"retries.{whose} is 0"
