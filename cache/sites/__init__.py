"""What is kept. One file a site; to add one, write its file and its line here.

These files get torch from longtake.later, as recipes are read and checked without it, and import what handles models (..model, diffusers) in the
methods that are handed one.
"""

from typing import Any

from .blocks import Blocks, BlocksConfig
from .guidance import Guidance, GuidanceConfig
from .modules import Modules, ModulesConfig
from .output import Output, OutputConfig
from .site import Begin, ModelShape, Site, SiteRun
from .stack import Stack, StackConfig

SITES: dict[str, tuple[type[Any], type[Site]]] = {
    "blocks": (BlocksConfig, Blocks),
    "guidance": (GuidanceConfig, Guidance),
    "modules": (ModulesConfig, Modules),
    "output": (OutputConfig, Output),
    "stack": (StackConfig, Stack),
}

__all__ = ["SITES", "Begin", "ModelShape", "Site", "SiteRun"]
