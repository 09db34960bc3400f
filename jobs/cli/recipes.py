"""`longtake recipes`: the cache methods that come with longtake."""

from __future__ import annotations

from typing import Annotated

import typer
import yaml

from .said import checked, say, say_table


def recipes(
    name: Annotated[str | None, typer.Argument(help="show this one with all its settings")] = None,
) -> None:
    """List the cache recipes, or show one; any setting can be changed in a job: `cache: {recipe: fbcache, trigger: {threshold: 0.1}}`."""
    from ...cache.recipe.budget import describe_collectives, describe_memory
    from ...cache.recipe.read import load_recipe, recipe_names

    if name is not None:
        say(yaml.safe_dump(checked(load_recipe, name).to_dict(), sort_keys=False, width=120).rstrip())
        return
    rows = [("recipe", "class", "memory a branch", "collectives", "trigger x site x predictor", "paper")]
    for known in map(load_recipe, recipe_names()):
        made_of = ", ".join(f"{part.trigger.name} x {part.site.name} x {part.predictor.name}" for part in known.parts)
        rows.append((known.name, known.category, describe_memory(known), describe_collectives(known), made_of, known.paper))
    say_table(rows)
    say("H: one tensor of the hidden states, tokens x dim. L: blocks of the model. latent: one of the model's input.")
