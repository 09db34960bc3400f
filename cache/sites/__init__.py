"""What is kept. One file a site; to add one, write its file and its line here."""

from typing import Any

from .site import Site, SiteRun
from .stack import Stack, StackConfig

SITES: dict[str, tuple[type[Any], type[Site]]] = {
    "stack": (StackConfig, Stack),
}

__all__ = ["SITES", "Site", "SiteRun"]
