"""One rank: a Ray actor that loads the model once and renders one take after another with its gang."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from statistics import median

import ray
import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but missing from its __all__

from ...parallel.groups.degrees import Degrees
from ...parallel.groups.mesh import Mesh, leave_gang, leaving_on_error
from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.earlier_film import Encoded
from ...pipeline.film.encoder import check_encoder
from ...pipeline.film.preview import Preview
from ...pipeline.loop.denoise import Step
from ...pipeline.loop.render import Rendered, Renderer
from ...pipeline.loop.rounds import Finished
from ...pipeline.options import ModelOptions
from ...pipeline.versions import package_versions
from ..cluster import usable_cores
from .background import BackgroundFiles
from .delivery import Delivery
from .memory import forget_peak
from .orders import Order
from .reports import Link, Loaded, Report, Seat, StepReport
from .snapshots import SnapshotWriter

_VERSIONED = ("longtake", "torch", "diffusers", "transformers", "ray")


class Rank:
    """Methods run one at a time. max_restarts=0: a gang that lost a rank is rebuilt by the driver, never behind its back.

    Whatever a method raises, the rank leaves its process group at once, so that the others do not wait for it. It keeps its model, and may
    join another group after `leave`.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.num_ranks, self.device = 0, 1, device
        self._mesh = Mesh()
        self._renderer: Renderer | None = None
        self._preview: Preview | None = None
        self._files = BackgroundFiles()

    def seat(self) -> Seat:
        return Seat(ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid(), usable_cores())

    def take_number(self, rank: int, num_ranks: int) -> None:
        """Be this rank, of so many, from now on; asked for before every `join`."""
        self.rank, self.num_ranks = rank, num_ranks

    def use_threads(self, count: int) -> None:
        """CPU threads of each of torch's operations."""
        self.threads = count
        torch.set_num_threads(count)

    def open_store(self, timeout: float) -> tuple[str, int]:
        """On rank 0: open the store through which the ranks find each other; returns its address and port. timeout: in seconds."""
        address = ray.util.get_node_ip_address()
        self._store = TCPStore(address, 0, self.num_ranks, is_master=True, timeout=timedelta(seconds=timeout), wait_for_workers=False)
        return address, self._store.port

    @leaving_on_error()
    def join(self, address: str, port: int, timeout: float, degrees: Degrees) -> None:
        """Form the gang's process group, NCCL on CUDA, gloo elsewhere, and bind the model to it where one is loaded."""
        limit = timedelta(seconds=timeout)
        store = self._store if self.rank == 0 else TCPStore(address, port, self.num_ranks, is_master=False, timeout=limit)
        backend = "nccl" if self.device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.num_ranks, timeout=limit)
        assert dist.group.WORLD is not None
        self._mesh = Mesh(degrees, dist.group.WORLD)
        if self._renderer is not None:
            self._renderer.bind(self._mesh)

    @leaving_on_error()
    def leave(self) -> None:
        """Leave the gang's process group, or what is left of it. Returns once nothing of a failed take is being written any more."""
        self._files.wait()
        self._mesh = Mesh()
        if self._renderer is not None:
            self._renderer.bind(self._mesh)
        leave_gang()

    @leaving_on_error()
    def load(self, card: ModelCard, options: ModelOptions, with_preview: bool) -> Loaded:
        """Load the model and, on rank 0, what previews need. Raises ValueError where this node does not see the folder that the driver saw,
        or cannot encode films.
        """
        if not card.path.is_dir():
            raise ValueError(f"Node {socket.gethostname()} does not see the model folder '{card.path}'; put it on storage that all nodes share.")
        if self.rank == 0:
            check_encoder()
        began = time.monotonic()
        self._renderer = self._preview = None  # gone before another one is loaded
        self._renderer = Renderer(card, options, device=self.device, mesh=self._mesh)
        if with_preview and self.rank == 0:
            self._preview = Preview(self._renderer.family)
        return Loaded(self.rank, socket.gethostname(), self.device, self.threads, time.monotonic() - began, package_versions(_VERSIONED))

    @leaving_on_error()
    def probe(self, *, num_rounds: int = 20, num_bytes: int = 1 << 24) -> Link:
        """Measure the links to the gang's other ranks: medians over rounds of a tiny sum and of a large all-to-all."""
        gang = self._mesh.gang
        tiny = torch.ones(1, device=self.device)
        large = [torch.ones(num_bytes // gang.size, dtype=torch.uint8, device=self.device) for _ in range(gang.size)]
        shapes = [part.shape for part in large]
        sums, exchanges = [], []
        for _ in range(num_rounds):
            began = time.perf_counter()
            gang.sum(tiny).item()
            summed = time.perf_counter()
            gang.all_to_all(large, shapes)[-1].item()
            sums.append(summed - began)
            exchanges.append(time.perf_counter() - summed)
        sent = sum(part.nbytes for part in large[1:])
        return Link(median(sums), sent / median(exchanges))

    def render(self, order: Order) -> Iterator[Report]:
        """Render a take with the gang. Rank 0 reports and writes the film; the others take part in denoising and decoding.

        Between two collectives rank 0 does nothing that may take longer than the gang's collective_timeout: small files are written
        in the background, and waited for after the last collective.
        """
        with leaving_on_error():
            try:
                yield from self._render(order)
            finally:
                self._files.drop()

    def _render(self, order: Order) -> Iterator[Report]:
        assert self._renderer is not None, "render() before load()"
        if self.rank == 0 and not order.folder.is_dir():
            raise ValueError(f"Node {socket.gethostname()} does not see the output folder '{order.folder}'; put it on storage that all nodes share.")
        forget_peak(self.device)
        renderer, snapshots = self._renderer, order.snapshots
        with ExitStack() as opened:
            delivery = opened.enter_context(Delivery(order, renderer.family, self._files)) if self.rank == 0 else None
            writer = None if snapshots is None else opened.enter_context(SnapshotWriter(snapshots, self._mesh.gang, self.device))
            decoding = renderer.family.decoding()
            num_steps = order.take.num_steps(renderer.family.card)
            for one in self._running(renderer, order):
                if isinstance(one, Step):
                    if self.rank == 0:
                        self._show(order, one)
                        yield StepReport(renderer.steps_done, num_steps, renderer.decisions)
                elif isinstance(one, Encoded):
                    _exhaust(decoding.frames(one.end, is_last=False))  # the take's frames then follow on the earlier film's
                elif isinstance(one, Finished):
                    frames = decoding.frames(one.latents, is_last=one.is_last)
                    if delivery is None:
                        _exhaust(frames)
                    else:
                        yield from delivery.round(one, frames)
                    if order.stops_on_drift and self._hears(delivery is not None and delivery.is_marked):
                        renderer.stop()
                elif delivery is not None:
                    yield delivery.finish(one)
                if writer is not None and _goes_on_after(one):
                    writer.look(renderer, is_border=isinstance(one, Finished))

    @staticmethod
    def _running(renderer: Renderer, order: Order) -> Iterator[Encoded | Step | Finished | Rendered]:
        snapshot = order.snapshots.folder if order.snapshots and order.snapshots.goes_on else None
        told = {"place": order.place, "film_key": order.film_key}
        return renderer.steps(order.take, order.recipe, order.replay, snapshot=snapshot, kept=order.kept, **told)

    def _hears(self, is_marked: bool) -> bool:
        """Whether rank 0, which alone sees the film, found a limit passed. Called on every rank of the gang."""
        return bool(self._mesh.gang.sum(torch.tensor([float(is_marked)], device=self.device)).item())

    def _show(self, order: Order, step: Step) -> None:
        if order.preview_every and (step.index + 1) % order.preview_every == 0:
            if self._preview is None:  # it was not rank 0 when the model was loaded
                assert self._renderer is not None, "a step before load()"
                self._preview = Preview(self._renderer.family)
            self._files.write(order.preview, partial(self._preview.jpeg, step.clean))


def _goes_on_after(one: Encoded | Step | Finished | Rendered) -> bool:
    """Whether something was computed that need not be computed again, and the take is not done with it."""
    if isinstance(one, Step):
        return one.index + 1 < one.num_inference_steps
    return isinstance(one, Finished) and not one.is_last and not one.was_kept


def _exhaust(frames: Iterator[object]) -> None:
    for _ in frames:
        pass
