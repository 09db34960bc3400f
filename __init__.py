"""longtake renders long video clips ("takes") with video diffusion transformers on Ray clusters."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("longtake")
except PackageNotFoundError:  # a Ray worker that got the wheel's files through py_modules has no metadata
    __version__ = "0+unknown"
