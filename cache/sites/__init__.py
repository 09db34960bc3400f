"""What is kept. One file a site; to add one, write its file and its line here."""

from typing import Any

from .output import Output, OutputConfig
from .site import Begin, Site, SiteRun
from .stack import Stack, StackConfig

SITES: dict[str, tuple[type[Any], type[Site]]] = {
    "output": (OutputConfig, Output),
    "stack": (StackConfig, Stack),
}

__all__ = ["SITES", "Begin", "Site", "SiteRun"]
