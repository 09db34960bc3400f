"""What can go wrong between ranks, as errors. Apart from what exchanges, which takes seconds to import."""

from __future__ import annotations


class CollectiveError(RuntimeError):
    """An exchange with the gang failed or ran out of time, because another rank raised, died or hangs.

    The message names the exchange; whoever passes the error on names the place in front of it with `at`.
    """

    def at(self, place: str) -> CollectiveError:
        return CollectiveError(f"{place}: {self}")
