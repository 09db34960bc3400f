"""All that is needed to go on with a take, as a folder: latents, step and scheduler in take.safetensors, the cache in cache.safetensors.

Nothing in it depends on the gang that wrote it. Every rank saves and loads; rank 0 writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..cache import Cached
from ..cache.saving import Packed
from ..cache.values import pack, restore, unpack
from ..parallel import Layout, Mesh
from .denoise import BRANCHES, Denoising


class MeshRelay:
    """The cache's Relay over a gang. tokens_a_frame: of a latent frame step, where ranks hold whole frames; 0: they hold even shares."""

    def __init__(self, mesh: Mesh, tokens_a_frame: int) -> None:
        self.mesh, self._tokens_a_frame = mesh, tokens_a_frame

    def gather(self, local: Tensor) -> Tensor:
        counts = tuple(int(str(count)) for count in self.mesh.sequence.gather_objects(local.shape[1]))
        return self.mesh.sequence.all_gather(local, counts, dim=1)

    def share(self, whole: Tensor) -> Tensor:
        ranks, num_tokens, each = self.mesh.sequence.size, whole.shape[1], self._tokens_a_frame
        layout = Layout.frames(num_tokens // each, each, ranks) if each and num_tokens > each else Layout.even(num_tokens, ranks)
        return layout.shard(whole, self.mesh.sequence.rank, dim=1).clone()

    def sum(self, sums: Tensor) -> Tensor:
        return self.mesh.sequence.sum(sums)

    def is_first(self) -> bool:
        return self.mesh.sequence.rank == 0

    def collect(self, packed: Packed) -> list[Packed]:
        return self.mesh.calls.gather_objects(packed)  # type: ignore[return-value]

    def runs_here(self, segment: int, branch: str) -> bool:
        its_branch = self.mesh.cfg.size == 1 or branch not in BRANCHES or BRANCHES.index(branch) == self.mesh.cfg.rank
        return its_branch and segment % self.mesh.window.size == self.mesh.window.rank

    def writes(self) -> bool:
        return self.mesh.rank == 0


def save_snapshot(folder: Path, denoising: Denoising, cached: Cached | None, relay: MeshRelay) -> None:
    """Between two steps. The files take their final names whole, the take's last: a folder that has it is complete."""
    if relay.writes():
        folder.mkdir(parents=True, exist_ok=True)
    if cached is not None:
        cached.save(folder / "cache.safetensors", relay)
    if relay.writes():
        tensors: dict[str, Tensor] = {"latents": denoising.latents.cpu()}

        def put(tensor: Any) -> str:
            tensors[name := f"scheduler:{len(tensors)}"] = tensor.detach().to("cpu", copy=True).contiguous()
            return name

        scheduler = {name: value for name, value in vars(denoising.scheduler).items() if name != "_internal_dict"}
        metadata = {"step": str(denoising.index), "scheduler": json.dumps(pack(scheduler, put))}
        save_file(tensors, folder / "take.tmp", metadata)
        (folder / "take.tmp").replace(folder / "take.safetensors")


def load_snapshot(folder: Path, denoising: Denoising, cached: Cached | None, relay: MeshRelay) -> None:
    """Set a fresh take back to where `save_snapshot` left it. Raises ValueError if there is no snapshot."""
    if not (folder / "take.safetensors").is_file():
        raise ValueError(f"There is no snapshot in '{folder}'; render the take from its start.")
    with safe_open(folder / "take.safetensors", "pt", str(denoising.latents.device)) as file:
        metadata = file.metadata()
        denoising.latents, denoising.index = file.get_tensor("latents"), int(metadata["step"])
        restore(denoising.scheduler, unpack(json.loads(metadata["scheduler"]), file.get_tensor))
    if cached is not None:
        cached.load(folder / "cache.safetensors", relay, torch.device(denoising.latents.device))
