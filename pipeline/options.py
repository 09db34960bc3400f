"""How a model is held and computed. Light to import: jobs are checked against it before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("even", "frames")
KERNELS = ("native", "xfuser")
SHARDS = ("none", "gang")
OFFLOADS = ("none", "blocks")
_LOSSY_ATTENTION = ("sage", "sparge", "sparse", "int8", "fp8", "fp4")  # in diffusers' names of backends


@dataclass(frozen=True)
class ModelOptions:
    """Nothing in it but `dtype` and a lossy attention backend may change a film.

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

    @property
    def lossy_attention(self) -> str | None:
        """The attention backend, if it quantises or leaves out what it attends to (diffusers' sage ones); exact ones give the same film."""
        name = self.attention_backend
        return name if name is not None and any(word in name for word in _LOSSY_ATTENTION) else None

    @property
    def can_rebind(self) -> bool:
        """Whether a loaded model can be bound to another mesh: weights that are shared out over a gang (FSDP2) keep its process group."""
        return self.shard != "gang"

    def check(self, sequence_degree: int) -> None:
        """Raise ValueError, with the mend, for options that exclude each other. sequence_degree: ranks that share tokens."""
        if self.shard == "gang" and sequence_degree == 1:
            raise ValueError("model.shard is gang, but no ranks share tokens; set parallel.ulysses_degree or parallel.ring_degree above 1.")
        if self.shard == "gang" and self.offload == "blocks":
            raise ValueError("model.shard is gang and model.offload is blocks; choose one of them.")
        if self.attention_backend is not None and self.kernel == "xfuser":
            raise ValueError(f"attention_backend is '{self.attention_backend}' and parallel.kernel is xfuser; choose one of them.")
