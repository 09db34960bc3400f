"""The takes of a job that are not done yet, in the order in which they are begun. Knows neither gangs nor files; may be used by several threads."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Condition

from ..settings.plan import PlannedTake


class TakeQueue:
    """By priority, the highest first; takes of one priority as they are written. `len` says how many are not done: they wait, or are begun."""

    def __init__(self, takes: Sequence[PlannedTake]) -> None:
        self._changed = Condition()
        self._places = {planned.take.name: (-planned.priority, number) for number, planned in enumerate(takes)}
        self._waiting, self._begun, self._is_closed = list(takes), 0, False

    def next(self) -> PlannedTake | None:
        """The take to begin now, which is no one else's then. Where none waits, one may come back as long as others are begun: returns None once all
        are done, or once the queue is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._begun or self._is_closed)
            if self._is_closed or not self._waiting:
                return None
            first = min(self._waiting, key=lambda planned: self._places[planned.take.name])
            self._waiting.remove(first)
            self._begun += 1
            return first

    def done(self) -> None:
        """A take that was begun is done, or has failed for good."""
        with self._changed:
            self._begun -= 1
            self._changed.notify_all()

    def put_back(self, planned: PlannedTake) -> None:
        """A take that was begun waits again, at its old place."""
        with self._changed:
            self._waiting.append(planned)
            self._begun -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Give out no more takes."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting) + self._begun
