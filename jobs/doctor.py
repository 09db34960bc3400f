"""`longtake doctor`: what this machine and its cluster offer, what is missing and how to mend it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import ray
import torch

from ..parallel.groups.degrees import Degrees
from .cluster import ray_cluster, usable_cores
from .errors import AddressError, ClusterError
from .gang.failures import GangError
from .gang.gang import Gang
from .settings.config import ParallelConfig

_PACKAGES = ("torch", "diffusers", "transformers", "ray", "longtake")
_MIN_FREE_DISK, _MIN_MEMORY = 10e9, 4e9  # bytes: for some takes with their snapshots; for the demo on two ranks


@dataclass(frozen=True)
class Finding:
    """One line of the report. mend: what to do about it; None where all is well."""

    name: str
    value: str
    mend: str | None = None


def examine(num_ranks: int, folder: Path) -> Iterator[Finding]:
    """Look at this machine, then at the cluster (RAY_ADDRESS, or one started here) and at the links between `num_ranks` ranks."""
    yield from _versions()
    yield from _machine(folder)
    yield _ffmpeg()
    yield from _cluster(num_ranks)


def _versions() -> Iterator[Finding]:
    for package in _PACKAGES:
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            shipped = package == "longtake"
            yield Finding(package, "unpacked" if shipped else "missing", None if shipped else f"pip install {package}, with constraints.txt")


def _machine(folder: Path) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding("cores", str(usable_cores()))
    mend = "at least 4 GB free are needed; end other programs" if memory.available < _MIN_MEMORY else None
    yield Finding("memory", f"{memory.available / 1e9:.1f} GB free of {memory.total / 1e9:.1f}", mend)
    yield _disk(folder)
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"GPU {index}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB")
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield Finding("GPU", "none" if built else "none that torch can use", None if built is None else "torch is built for CUDA; check the driver")


def _disk(folder: Path) -> Finding:
    """Room for films in the folder, or in the nearest one above it that exists: a job makes its output folder itself."""
    folder = folder.absolute()
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding("disk", f"no films can be written to {folder} ({error.strerror})", "choose another output folder")
    mend = "less than 10 GB; make room, or choose another output folder" if free < _MIN_FREE_DISK else None
    return Finding("disk", f"{free / 1e9:.1f} GB free under {there.resolve()}", mend)


def _ffmpeg() -> Finding:
    from ..pipeline.film.encoder import ENCODER, check_encoder

    try:
        check_encoder()
    except ValueError as error:
        return Finding("ffmpeg", "none that can write films", str(error))
    return Finding("ffmpeg", ENCODER)


def _cluster(num_ranks: int) -> Iterator[Finding]:
    try:
        with ray_cluster(num_ranks) as where:
            num_nodes = sum(node["Alive"] for node in ray.nodes())
            totals = ray.cluster_resources()
            gpus = int(totals.get("GPU", 0))
            yield Finding("Ray", f"{where}: {num_nodes} node(s), {totals.get('CPU', 0):g} CPUs, {gpus} GPUs")
            yield _links(num_ranks, "cuda" if gpus >= num_ranks else "cpu")
    except AddressError as error:
        yield Finding("Ray", error.what, error.mend)
    except ClusterError as error:
        yield Finding("Ray", str(error), "end what is left of an earlier one with `ray stop`; see that /tmp is writable and has room")


def _links(num_ranks: int, device: str) -> Finding:
    name = f"{'NCCL' if device == 'cuda' else 'gloo'}, {num_ranks} ranks"
    config = ParallelConfig(placement_timeout=10, collective_timeout=30)
    try:
        with Gang(Degrees(ulysses_degree=num_ranks), config, device) as gang:
            links = gang.probe()
    except GangError as error:
        return Finding(name, str(error), "check that the nodes reach each other (firewall, NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)")
    slowest = min(links, key=lambda link: link.bytes_per_second)
    return Finding(name, f"round trip {max(link.round_trip for link in links) * 1e6:.0f} us, {slowest.bytes_per_second / 1e9:.2f} GB/s a rank")
