"""How a model is held and computed. Light to import: jobs are checked against it before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("even", "frames")
KERNELS = ("native", "xfuser")
SHARDS = ("none", "gang")
OFFLOADS = ("none", "blocks")


@dataclass(frozen=True)
class ModelOptions:
    """Nothing in it but `dtype` may change a film.

    layout: which tokens a rank holds. kernel: attention on one rank; attention_backend: diffusers' name for the native one, its
    default if None. shard: `gang` keeps a part of the weights on each rank that shares tokens. offload: `blocks` keeps the blocks'
    weights off the accelerator (on CPU: in files) while they do not run.
    """

    dtype: str = "float32"
    layout: str = "even"
    kernel: str = "native"
    attention_backend: str | None = None
    shard: str = "none"
    offload: str = "none"
