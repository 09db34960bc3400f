"""How many bytes a recipe holds, before anything is rendered."""

from __future__ import annotations

from dataclasses import replace

from ..sites import ModelShape
from ..state.storage import DTYPES, SCALE_BYTES
from .part import Part
from .recipe import Recipe


def predict_bytes(recipe: Recipe, shape: ModelShape, num_segments: int, num_branches: int, itemsize: int) -> int:
    """The most bytes that a take's cache holds in one process. num_branches: the guidance branches that run there. itemsize: bytes a value
    in the dtype that the model computes in.
    """
    if recipe.branches == "joint":
        shape, num_branches = replace(shape, batch=shape.batch * num_branches), 1
    return sum(_part_bytes(recipe, part, shape, num_branches, itemsize) for part in recipe.parts) * num_segments


def _part_bytes(recipe: Recipe, part: Part, shape: ModelShape, num_branches: int, itemsize: int) -> int:
    """For one segment. Features, as many as the predictor looks back on, lie in the recipe's dtype with their scales; probes in the model's."""
    site, trigger, predictor = part.site.build(), part.trigger.build(), part.predictor.build()
    dtype = DTYPES[recipe.dtype]
    values = list(site.feature_values(shape))
    features = sum(values) * (dtype.itemsize if dtype is not None else itemsize)
    if dtype is not None and dtype.scaled:
        features += SCALE_BYTES * sum(feature // shape.dim if site.sharded else shape.batch * shape.scales for feature in values)
    watched, beside = site.probe_values(shape)
    keeping = 1 if part.site.name == "guidance" else num_branches
    deciding = 1 if recipe.branches == "cond" else keeping
    held = features * predictor.num_kept + beside * predictor.num_probes * itemsize
    return held * keeping + watched * trigger.num_probes * itemsize * deciding


def describe_memory(recipe: Recipe) -> str:
    """What one branch's cache holds, for people: `2 L H + H` is twice the hidden states of each block, and once those of one."""

    def held(num_blocks: int, dim: int, latents: int) -> int:
        shape = ModelShape(tokens=1, text_tokens=0, dim=dim, latents=latents, num_blocks=num_blocks, num_joint=0)
        return predict_bytes(replace(recipe, dtype="model"), shape, num_segments=1, num_branches=1, itemsize=1)

    a_block = (held(80, 1, 0) - held(40, 1, 0)) // 40
    terms = [(a_block, "L H"), (held(40, 1, 0) - 40 * a_block, "H"), (held(40, 0, 1), "latents")]
    return " + ".join(f"{count} {unit}" for count, unit in terms if count) or "nothing"


def describe_collectives(recipe: Recipe) -> str:
    """Whether shards must add up sums before each decision, for the decision itself or for a forecast."""
    measures = [part.trigger.build().measures or part.predictor.build().measures for part in recipe.parts]
    return "1 a decision" if any(measures) else "none"
