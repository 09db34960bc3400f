"""What can be wrong with a Ray cluster, as errors. Apart from what talks to Ray, which takes seconds to import."""

from __future__ import annotations

_MEND_ADDRESS = "start one with `ray start --head`, correct RAY_ADDRESS (host:port, 10.0.0.1:6379 for example), or unset it to use this machine alone"


class AddressError(ValueError):
    """RAY_ADDRESS names no cluster that can be joined. The message is `what`, and then the `mend`."""

    def __init__(self, what: str, mend: str = _MEND_ADDRESS) -> None:
        super().__init__(f"{what}; {mend}.")
        self.what, self.mend = what, mend

    def __reduce__(self) -> tuple[type[AddressError], tuple[str, str]]:
        return AddressError, (self.what, self.mend)


class ClusterError(RuntimeError):
    """No cluster could be started on this machine."""
