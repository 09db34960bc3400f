"""Ranks and tokens: meshes, layouts, sequence-parallel attention and group reductions. Never imports Ray or diffusers pipelines."""

from .axis import Axis, CollectiveError
from .compaction import Compaction
from .degrees import Degrees
from .layout import Layout
from .mesh import Mesh, leave_gang, leaving_on_error
from .rows import RowShards
from .shards import TokenShards

__all__ = ["Axis", "CollectiveError", "Compaction", "Degrees", "Layout", "Mesh", "RowShards", "TokenShards", "leave_gang", "leaving_on_error"]
