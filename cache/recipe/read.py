"""Recipes by name, YAML path or mapping."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from .config import suggestion
from .recipe import Recipe, merged


def recipe_names() -> list[str]:
    """The recipes that come with longtake."""
    folder = resources.files("longtake.configs") / "cache"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe, changes: Mapping[str, Mapping[str, Any]] | None = None, dtype: str | None = None
) -> Recipe:
    """A recipe by name, YAML path or mapping, with `changes` merged into its parts ({"trigger": {"threshold": 0.1}}).

    dtype: how features are kept, instead of what the recipe says.
    """
    if isinstance(recipe, Recipe):
        values: dict[str, Any] = recipe.to_dict()
    elif isinstance(recipe, Mapping):
        values = dict(recipe)
    else:
        values = _read_yaml(str(recipe))
    values = merged(values, changes or {})
    return Recipe.from_mapping(values if dtype is None else {**values, "dtype": dtype})


def _read_yaml(name: str) -> dict[str, Any]:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"There is no recipe file '{name}'; give the path of a YAML file or one of: {', '.join(recipe_names())}.")
        content = path.read_bytes()
    elif name in recipe_names():
        content = (resources.files("longtake.configs") / "cache" / f"{name}.yaml").read_bytes()
    else:
        raise ValueError(f"There is no recipe '{name}'. {suggestion(name, [*recipe_names(), 'none'])}")
    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"Recipe '{name}' is not valid YAML: {' '.join(str(error).split())}; mend it, or name another recipe.") from None
    if not isinstance(values, dict):
        raise ValueError(f"Recipe '{name}' must be a mapping with trigger, site, predictor and guards.")
    return values
