"""The film key: a hash of all that may change a film. Gang, layout, kernel, paths and retries are not in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from ..cache import Recipe
from .card import model_hash
from .take import Take

_VERSION = 1  # raised when the same inputs come to give another film


def film_key(model: Path, take: Take, recipe: Recipe | None, dtype: str) -> str:
    """64 hex digits. A take's name is not in it: it is where the film is kept, not what it shows."""
    content = asdict(take)
    del content["name"]
    key = {"version": _VERSION, "model": model_hash(model), "take": content, "recipe": recipe.deciding() if recipe else None, "dtype": dtype}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
