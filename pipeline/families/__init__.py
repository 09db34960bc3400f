"""How each kind of model is called. One file a family; to add one, write its file, its line here and its line in card.py."""

from .family import Family
from .wan import Wan

FAMILIES: dict[str, type[Family]] = {"wan": Wan}

__all__ = ["FAMILIES", "Family"]
