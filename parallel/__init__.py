"""Ranks and tokens: meshes, layouts, sequence-parallel attention and group reductions. Never imports Ray or diffusers pipelines."""

from .layout import EvenLayout
from .mesh import Mesh
from .shards import TokenShards

__all__ = ["EvenLayout", "Mesh", "TokenShards"]
