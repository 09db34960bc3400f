"""torch and numpy, imported as soon as something of them is used. Below all rooms: imports nothing of ours.

Recipes are listed, read, checked and sized without a tensor, and importing torch takes longer than all of that. What recipes are made of
therefore says `from ...later import torch` instead of `import torch`, and imports `Tensor` for annotations alone (under TYPE_CHECKING). In
functions `torch.cat(...)` then works as always; a use on a file's top level would import torch together with the file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["np", "torch"]


class _Later:
    """Stands for a module, which the first use of a name in it imports."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self._module), name)
        setattr(self, name, value)  # later uses find it without coming here
        return value


if TYPE_CHECKING:
    import numpy as np
    import torch
else:
    np, torch = _Later("numpy"), _Later("torch")
