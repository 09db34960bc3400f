"""Numbers that a recipe's authors published for one model, and the names by which models are told to be that one.

Knows names and paths as text: no files, no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

_PARTS = ("transformer", "transformer_2")  # a pipeline's folders; the model's own name is that of the folder around them
_FORMATS = {"diffusers", "hf", "bf16", "fp16", "fp32"}  # words that name a file format of the same weights


@dataclass(frozen=True)
class Fit:
    """Published numbers for one model: changes to the recipe's parts. model: its name; dim and num_blocks: the sizes that go with the name."""

    model: str = MISSING
    dim: int = MISSING
    num_blocks: int = MISSING
    trigger: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)
    guards: dict[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        every = {"trigger": self.trigger, "site": self.site, "predictor": self.predictor, "guards": self.guards}
        return {part: settings for part, settings in every.items() if settings}

    def is_for(self, model: str, dim: int, num_blocks: int) -> bool:
        """Whether a model of that name and size is the one that the numbers were published for."""
        return is_called(model, self.model) and (self.dim, self.num_blocks) == (dim, num_blocks)


def no_fit(recipe: str, fits: Sequence[Fit], model: str, dim: int, num_blocks: int) -> str:
    """Why none of a recipe's published numbers are those of a model, and the mend."""
    size, called = f"{num_blocks} blocks, dim {dim}", f"called '{model}'" if model else "without a name"
    command = f"`longtake calibrate MODEL --recipe {recipe}`: jobs find the file that it writes, enable_cache takes its path"
    for fit in fits:
        if is_called(model, fit.model):
            return (
                f"Recipe '{recipe}' has numbers for {fit.model} with {fit.num_blocks} blocks and dim {fit.dim}, but the model that is called "
                f"'{model}' has {size}: it is another one. Run {command}."
            )
    for fit in fits:
        if (fit.dim, fit.num_blocks) == (dim, num_blocks):
            return (
                f"Recipe '{recipe}' has numbers for {fit.model}, whose size this model has ({size}), but it is {called}. If it is {fit.model}, "
                f"say so: model.name={fit.model} in the job, `longtake: {{name: {fit.model}}}` in the front matter of its README.md, or "
                f"model_name in enable_cache; if it is not, run {command}."
            )
    return f"Recipe '{recipe}' needs numbers that are measured on the model, and has none for this one ({called}, {size}); run {command}."


def name_from_path(path: str) -> str:
    """The model's name in the path of its folder, of its transformer's folder or of a hub's cache, or in a hub id; empty if there is none."""
    names = [name for name in re.split(r"[/\\]", path) if name]
    if names and names[-1] in _PARTS:
        names.pop()
    if len(names) > 2 and names[-2] == "snapshots":  # models--OWNER--NAME/snapshots/HASH
        names = names[:-2]
    return names[-1].split("--")[-1] if names else ""


def is_called(name: str, published: str) -> bool:
    """Whether `name` is the published one: letters may be large or small, words joined in any way, and a file format may be added.

    Any other word makes it another model, as distilled and fine-tuned ones carry the name of what they were made from.
    """
    return _words(name) == _words(published)


def _words(name: str) -> str:
    return "".join(word for word in re.split(r"[\s_-]+", name.lower()) if word not in _FORMATS)
