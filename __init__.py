"""longtake renders long video clips ("takes") with video diffusion transformers on Ray clusters.

from longtake import render

result = render("job.yaml")
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .jobs.rendering import JobFailed, JobResult, Rendering, TakeResult, render

try:
    __version__ = version("longtake")
except PackageNotFoundError:  # a Ray worker that got the wheel's files through py_modules has no metadata
    __version__ = "0+unknown"

__all__ = ["JobFailed", "JobResult", "Rendering", "TakeResult", "__version__", "render"]


if not TYPE_CHECKING:  # type checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """What renders is imported when it is asked for: `from longtake.cache import Recipe` needs none of it."""
        if name not in __all__:
            raise AttributeError(f"module 'longtake' has no attribute '{name}'")
        from .jobs import rendering

        return getattr(rendering, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
