"""What rank 0 writes of a take: the film round after round, looked at on the way, and at the end all that belongs to it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor

from ...cache import Trace
from ...pipeline.families import Family
from ...pipeline.film.checks.film import FilmChecks
from ...pipeline.film.checks.take import plan_checks
from ...pipeline.film.stills import ContactSheet
from ...pipeline.film.write import FilmWriter, GrowingFilm
from ...pipeline.loop.render import Rendered
from ...pipeline.loop.rounds import Finished
from ...pipeline.loop.timing import Timed, clock
from .background import BackgroundFiles
from .memory import peak_bytes
from .orders import Order
from .reports import DecodeReport, TakeReport

AnyWriter = TypeVar("AnyWriter", bound=FilmWriter)


class Delivery:
    """A context manager: leaving it by an exception leaves no film but the growing one. files: writes what is small, in the background."""

    def __init__(self, order: Order, family: Family, files: BackgroundFiles) -> None:
        self._order, self._device, self._files = order, family.device, files
        self._sheet = ContactSheet(order.take.num_frames)
        self._checks = FilmChecks(plan_checks(order.take, family.card, order.fps))
        self._latents: list[Tensor] = []  # only where they are to be saved
        self._seconds = {"decode": 0.0, "write": 0.0}
        self._film: FilmWriter | None = None
        self._growing: GrowingFilm | None = None  # where there is something to play before the take is done
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        self._opened.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._opened.__exit__(kind, error, traceback)

    def round(self, finished: Finished, frames: Iterator[Tensor]) -> Iterator[DecodeReport]:
        """Write a round's frames as they are decoded: memory does not grow with their number. Between two chunks the other ranks wait in a
        collective until ffmpeg has encoded the last one: storage that stands still for longer than collective_timeout fails the take.
        """
        began, chunks = clock(self._device), Timed(frames, self._device)
        if self._order.save_latents:
            self._latents.append(finished.latents.cpu())
        if self._film is None:
            self._film = self._open(FilmWriter, self._order.folder / "film.mp4")
            self._growing = None if finished.is_last else self._open(GrowingFilm, self._order.growing)
        film = self._film
        for chunk in chunks:
            levels = chunk.mul(255).round().byte()
            self._checks.add(levels)
            pictures = levels.cpu().numpy()
            film.write(pictures)
            if self._growing is not None:
                self._growing.write(pictures)
            self._sheet.add(pictures)
            if finished.is_last:  # until then steps tell how far the take is
                yield DecodeReport(film.num_frames, self._order.take.num_frames)
        decode = sum(chunks.seconds)
        self._seconds["decode"] += decode
        self._seconds["write"] += clock(self._device) - began - decode

    @property
    def is_marked(self) -> bool:
        """Whether what is written so far passed a limit of the checks."""
        return bool(self._checks.marks)

    def _open(self, kind: type[AnyWriter], path: Path) -> AnyWriter:
        order = self._order
        film = kind(path, width=order.take.width, height=order.take.height, fps=order.fps, metadata=order.metadata)
        self._opened.enter_context(film)
        return film

    def _saved_latents(self) -> bytes:
        return save({"latents": torch.cat(self._latents, dim=2).contiguous()})

    def finish(self, rendered: Rendered) -> TakeReport:
        """Close the film, at whatever round it ends, write all that is not frames, and wait until it is there: once nobody waits for this rank in
        a collective any more.
        """
        folder, began = self._order.folder, clock(self._device)
        self._opened.close()
        if self._latents:
            self._files.write(folder / "latents.safetensors", self._saved_latents)
        if rendered.trace:
            self._files.write(folder / "trace.json", replace(rendered.trace, model=self._order.model).to_json)
            self._files.write(folder / "decisions.png", partial(_picture, rendered.trace))
        self._sheet.save(folder / "contact_sheet.jpg")
        self._sheet.thumbnail(folder / "thumbnail.jpg")
        self._files.finish()
        self._seconds["write"] += clock(self._device) - began
        seconds = {"encode": rendered.encode_seconds, "denoise": rendered.denoise_seconds, **self._seconds}
        decisions = rendered.trace.summary() if rendered.trace else {}
        return TakeReport(seconds, decisions, rendered.cache_bytes, peak_bytes(self._device.type), rendered.speedup, self._checks.result())


def _picture(trace: Trace) -> bytes:
    """The trace drawn, as a PNG."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decisions.png"
        trace.plot(path)
        return path.read_bytes()
