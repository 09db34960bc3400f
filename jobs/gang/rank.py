"""One rank: a Ray actor that loads the model once and renders one take after another with its gang."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median

import ray
import torch
import torch.distributed as dist
from safetensors.torch import save
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, but missing from its __all__

from ...cache import Trace
from ...parallel.groups.degrees import Degrees
from ...parallel.groups.mesh import Mesh, leave_gang, leaving_on_error
from ...pipeline.checkpoint.card import ModelCard
from ...pipeline.families import Family
from ...pipeline.film.encoder import check_encoder
from ...pipeline.film.preview import Preview
from ...pipeline.film.stills import ContactSheet
from ...pipeline.film.write import FilmWriter
from ...pipeline.loop.denoise import Step
from ...pipeline.loop.render import Rendered, Renderer
from ...pipeline.loop.timing import Timed, clock
from ...pipeline.options import ModelOptions
from ...pipeline.versions import package_versions
from ..cluster import usable_cores
from .background import BackgroundFiles
from .memory import forget_peak, peak_bytes
from .orders import Order
from .reports import DecodeReport, Link, Loaded, Report, Seat, StepReport, TakeReport

_VERSIONED = ("longtake", "torch", "diffusers", "transformers", "ray")


class Rank:
    """Methods run one at a time. max_restarts=0: a gang that lost a rank is rebuilt by the driver, never behind its back.

    Whatever a method raises, the rank leaves its process group at once, so that the others do not wait for it. It keeps its model, and may
    join another group after `leave`.
    """

    def __init__(self, rank: int, num_ranks: int, device: str) -> None:
        self.rank, self.num_ranks, self.device = rank, num_ranks, device
        self._mesh = Mesh()
        self._renderer: Renderer | None = None
        self._preview: Preview | None = None
        self._files = BackgroundFiles()

    def seat(self) -> Seat:
        return Seat(ray.get_runtime_context().get_node_id(), os.getpid(), usable_cores())

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
        for step in self._renderer.steps(order.take, order.recipe, order.replay, place=order.place):
            if isinstance(step, Step):
                if self.rank == 0:
                    self._show(order, step)
                    yield StepReport(step.index + 1, step.num_inference_steps, self._renderer.decisions)
            elif self.rank == 0:
                yield from self._deliver(order, step, self._renderer.family)
            else:
                for _ in self._renderer.family.decode(step.latents):
                    pass

    def _show(self, order: Order, step: Step) -> None:
        if order.preview_every and (step.index + 1) % order.preview_every == 0:
            assert self._preview is not None, "the model was loaded without previews"
            self._files.write(order.preview, partial(self._preview.jpeg, step.clean))

    def _deliver(self, order: Order, rendered: Rendered, family: Family) -> Iterator[DecodeReport | TakeReport]:
        """Decode and write in chunks: memory does not grow with the number of frames. Between two chunks the other ranks wait in a
        collective until ffmpeg has encoded the last one: storage that stands still for longer than collective_timeout fails the take.
        """
        take, folder, began = order.take, order.folder, clock(family.device)
        if order.save_latents:
            self._files.write(folder / "latents.safetensors", lambda: save({"latents": rendered.latents.cpu().contiguous()}))
        if rendered.trace:
            self._files.write(folder / "trace.json", replace(rendered.trace, model=order.model).to_json)
            self._files.write(folder / "decisions.png", partial(_picture, rendered.trace))
        sheet = ContactSheet(take.num_frames)
        written, chunks = 0, Timed(family.decode(rendered.latents), family.device)
        with FilmWriter(folder / "film.mp4", width=take.width, height=take.height, fps=order.fps, metadata=order.metadata) as film:
            for chunk in chunks:
                frames = chunk.mul(255).round().byte().cpu().numpy()
                film.write(frames)
                sheet.add(frames)
                written += len(frames)
                yield DecodeReport(written, take.num_frames)
        sheet.save(folder / "contact_sheet.jpg")
        sheet.thumbnail(folder / "thumbnail.jpg")
        self._files.finish()
        decode = sum(chunks.seconds)
        seconds = {
            "encode": rendered.encode_seconds,
            "denoise": rendered.denoise_seconds,
            "decode": decode,
            "write": clock(family.device) - began - decode,
        }
        decisions = rendered.trace.summary() if rendered.trace else {}
        yield TakeReport(seconds, decisions, rendered.cache_bytes, peak_bytes(self.device), rendered.speedup)


def _picture(trace: Trace) -> bytes:
    """The trace drawn, as a PNG."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decisions.png"
        trace.plot(path)
        return path.read_bytes()
