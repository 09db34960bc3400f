"""Where a transformer's weights are kept: whole on every rank, a part on each, or out of the way while they are not used."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading

from ...cache.model.block_calls import block_lists
from ...parallel.groups.axis import Axis


def shard_weights(transformer: Any, axis: Axis, device: torch.device) -> None:
    """Keep 1 / axis.size of the weights on each rank for good (FSDP2); a block's weights are gathered while it runs.

    The axis must be one whose ranks run the same blocks at the same time: the sequence axis, not guidance branches or windows, as a
    cache may decide differently for these.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = axis.device_mesh(device.type)
    for blocks in block_lists(transformer).values():
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(transformer, mesh=mesh, reshard_after_forward=True)


def offload_weights(transformer: Any, device: torch.device) -> tempfile.TemporaryDirectory[str] | None:
    """Keep the blocks' weights away from `device`, except for the block that runs: in host memory, or in files where the device is the CPU.

    Returns the folder of the files, which must live as long as the model.
    """
    if device.type == "cpu":
        folder = tempfile.TemporaryDirectory(prefix="longtake-weights-")
        apply_group_offloading(
            transformer, onload_device=device, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=folder.name
        )
        return folder
    apply_group_offloading(transformer, onload_device=device, offload_type="block_level", num_blocks_per_group=1, use_stream=True)
    return None


def weight_bytes(transformer: Any) -> int:
    """Bytes of weights that this rank holds between model calls."""
    return sum(getattr(weight, "to_local", lambda weight=weight: weight)().nbytes for weight in transformer.parameters())
