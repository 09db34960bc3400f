"""Ranks and tokens: meshes, layouts, sequence-parallel attention and group reductions. Never imports Ray or diffusers pipelines."""
