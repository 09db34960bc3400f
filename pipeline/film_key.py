"""The film key: a hash of all that may change a film. Gang, layout, kernel, paths and retries are not in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from ..cache import Recipe, Trace
from .take import Take

_VERSION = 1  # raised when the same inputs come to give another film


def film_key(model: str, take: Take, recipe: Recipe | None, dtype: str, replayed: Trace | None = None) -> str:
    """64 hex digits. model: its hash. A take's name is not in it: it is where the film is kept, not what it shows."""
    content = asdict(take)
    del content["name"]
    key = {"version": _VERSION, "model": model, "take": content, "recipe": recipe.deciding() if recipe else None, "dtype": dtype}
    if replayed is not None:
        key["replayed"] = replayed.choices
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
