"""All that is needed to go on with a take: latents and scheduler in one file, what the cache holds in another, as a generation of a folder.

Nothing in it depends on the gang that wrote it. Every rank saves and loads; rank 0 writes, and says which generation is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...cache import Cached
from ...cache.state.saving import Packed
from ...cache.state.values import Plain, pack, restore, unpack
from ...files import written_whole
from ...parallel.attention.bands import Bands
from ...parallel.groups.mesh import Mesh
from ...parallel.tokens.layout import Layout
from ..take import Take
from .denoise import BRANCHES
from .generations import Generation, file_name, last_whole, next_number, publish
from .rounds import Rounds

Found = TypeVar("Found")
_DONE = "done:"  # and the number of a latent frame


class MeshRelay:
    """The cache's Relay over a gang. tokens_a_frame: of a latent frame, patched, where ranks hold whole frames; 0 where they hold even shares.
    windows_shift: whether all ranks of a branch hold what is kept of latents, whichever windows they run.
    """

    def __init__(self, mesh: Mesh, tokens_a_frame: int, *, windows_shift: bool = False) -> None:
        self.mesh, self._tokens_a_frame, self._windows_shift = mesh, tokens_a_frame, windows_shift

    def gather(self, local: Tensor) -> Tensor:
        counts = self.mesh.sequence.gather_objects(local.shape[1])
        return self.mesh.sequence.all_gather(local, tuple(counts), dim=1)

    def share(self, whole: Tensor, segment: int | None) -> Tensor:
        ranks, num_tokens, each = self.mesh.sequence.size, whole.shape[1], self._tokens_a_frame
        layout = Layout.frames(num_tokens // each, each, ranks) if each and num_tokens > each else Layout.even(num_tokens, ranks)
        return layout.shard(whole, self.mesh.sequence.rank, dim=1).clone()

    def gather_frames(self, local: Tensor) -> Tensor:
        return local

    def share_frames(self, whole: Tensor, segment: int | None) -> Tensor:
        return whole

    def sum(self, sums: Tensor) -> Tensor:
        return self.mesh.sequence.sum(sums)

    def is_first(self) -> bool:
        return self.mesh.sequence.rank == 0

    def sum_frames(self, sums: Tensor) -> Tensor:
        return sums

    def is_first_of_frames(self) -> bool:
        return True

    def collect(self, packed: Packed) -> list[Packed]:
        return self.mesh.calls.gather_objects(packed)

    def runs_here(self, segment: int, branch: str) -> bool:
        return self._runs_branch(branch) and (self._windows_shift or segment % self.mesh.window.size == self.mesh.window.rank)

    def _runs_branch(self, branch: str) -> bool:
        return self.mesh.cfg.size == 1 or branch not in BRANCHES or BRANCHES.index(branch) == self.mesh.cfg.rank

    def writes(self) -> bool:
        return self.mesh.rank == 0

    def from_writer(self, find: Callable[[], Found]) -> Found:
        """What `find` gives to the rank that writes, or the ValueError that it raises there: the same on every rank."""
        found: Found | ValueError | None = None
        if self.writes():
            try:
                found = find()
            except ValueError as error:
                found = error
        answer = self.mesh.gang.gather_objects(found)[0]
        if isinstance(answer, ValueError):
            raise answer
        assert answer is not None, "rank 0 writes"
        return answer


class BandsRelay(MeshRelay):
    """The same for a banded take: each place on the window axis holds the latents of its segments, whose tokens the sequence axis shares out."""

    def __init__(self, mesh: Mesh, bands: Bands, tokens_a_frame: int, *, by_frames: bool) -> None:
        super().__init__(mesh, tokens_a_frame)
        self._bands, self._by_frames = bands, by_frames

    def gather(self, local: Tensor) -> Tensor:
        counts = self.mesh.one_branch.gather_objects(local.shape[1])
        return self.mesh.one_branch.all_gather(local, tuple(counts), dim=1)

    def share(self, whole: Tensor, segment: int | None) -> Tensor:
        each, frames, ranks = self._tokens_a_frame, self._bands.frames, self.mesh.sequence.size
        layout = Layout.frames(len(frames), each, ranks) if self._by_frames and len(frames) > 1 else Layout.even(len(frames) * each, ranks)
        first = frames.start * each + layout.offsets[self.mesh.sequence.rank]
        return _part(whole, 1, self._first_frame(segment) * each, range(first, first + layout.counts[self.mesh.sequence.rank]))

    def _first_frame(self, segment: int | None) -> int:
        return 0 if segment is None else self._bands.halos.bands[segment].frames.start

    def gather_frames(self, local: Tensor) -> Tensor:
        counts = self.mesh.window.gather_objects(local.shape[2])
        return self.mesh.window.all_gather(local, tuple(counts), dim=2).contiguous()

    def share_frames(self, whole: Tensor, segment: int | None) -> Tensor:
        return _part(whole, 2, self._first_frame(segment), self._bands.frames)

    def sum(self, sums: Tensor) -> Tensor:
        return self.mesh.one_branch.sum(sums)

    def is_first(self) -> bool:
        return self.mesh.one_branch.rank == 0

    def sum_frames(self, sums: Tensor) -> Tensor:
        return self.mesh.window.sum(sums)

    def is_first_of_frames(self) -> bool:
        return self.mesh.window.rank == 0

    def collect(self, packed: Packed) -> list[Packed]:
        return self.mesh.cfg.gather_objects(packed)

    def runs_here(self, segment: int, branch: str) -> bool:
        return self._runs_branch(branch)


def _part(whole: Tensor, dim: int, first: int, wanted: range) -> Tensor:
    """Of entries along `dim` that are numbered from `first` on, those that are wanted, maybe none."""
    stop = first + whole.shape[dim]
    begin, end = (min(max(edge, first), stop) for edge in (wanted.start, wanted.stop))
    return whole.narrow(dim, begin - first, end - begin).clone()


def save_snapshot(folder: Path, rounds: Rounds, cached: Cached | None, relay: MeshRelay, film_key: str) -> None:
    """Write a take, between two of its steps, as a new generation in `folder`; older ones stay until it is whole. film_key: of the take."""
    number, paths = 0, {}
    if relay.writes():
        folder.mkdir(parents=True, exist_ok=True)
        number = next_number(folder)
    if cached is not None:
        paths["cache"] = folder / file_name("cache", number, ".safetensors")
        cached.save(paths["cache"], relay)
    tensors, scheduler = _packed(rounds, relay)
    if relay.writes():
        paths["take"] = folder / file_name("take", number, ".safetensors")
        with written_whole(paths["take"]) as temporary:
            save_file(tensors, temporary, {"scheduler": json.dumps(scheduler)})
        at = {"round": rounds.number, "step": rounds.denoising.index}
        publish(folder, number, paths, film_key=film_key, num_inference_steps=rounds.take.num_inference_steps, **at)


def _packed(rounds: Rounds, relay: MeshRelay) -> tuple[dict[str, Tensor], Plain]:
    """The take's tensors, on the rank that writes, and its scheduler with their names. Called on every rank."""
    denoising = rounds.denoising
    tensors: dict[str, Tensor] = {"latents": relay.gather_frames(denoising.latents).cpu()}
    tensors.update({f"{_DONE}{frame}": latent.cpu() for frame, latent in rounds.done.items()})

    def put(value: object) -> str:
        if not isinstance(value, Tensor):
            raise TypeError(f"a {type(value).__name__} of the scheduler cannot be saved")
        whole = relay.gather_frames(value) if value.ndim == denoising.latents.ndim else value
        tensors[name := f"scheduler:{len(tensors)}"] = whole.detach().to("cpu", copy=True).contiguous()
        return name

    scheduler = {name: value for name, value in vars(denoising.scheduler).items() if name != "_internal_dict"}
    return tensors, pack(scheduler, put)


def load_snapshot(folder: Path, rounds: Rounds, cached: Cached | None, relay: MeshRelay, film_key: str) -> None:
    """Set a fresh take back to where `save_snapshot` left it, from the last whole generation. Raises ValueError if there is none, or if
    it belongs to another film, recipe or way to call the branches; the take must then be made anew.
    """
    generation = relay.from_writer(lambda: last_whole(folder))
    _check(generation, folder, rounds.take, cached, film_key)
    device = rounds.denoising.latents.device
    with safe_open(folder / generation.files["take"].name, "pt", str(device)) as file:
        rounds.done = {int(name.removeprefix(_DONE)): file.get_tensor(name) for name in file.keys() if name.startswith(_DONE)}  # noqa: SIM118
        denoising = rounds.go_to(generation.round)
        if cached is not None:
            cached.load(folder / generation.files["cache"].name, relay, device)

        def own(name: str) -> Tensor:
            tensor: Tensor = file.get_tensor(name)
            return relay.share_frames(tensor, None) if tensor.ndim == denoising.latents.ndim else tensor

        denoising.latents, denoising.index = own("latents"), generation.step
        restore(denoising.scheduler, unpack(json.loads(file.metadata()["scheduler"]), own))


def _check(generation: Generation, folder: Path, take: Take, cached: Cached | None, film_key: str) -> None:
    steps = take.num_inference_steps
    if generation.num_inference_steps != steps:
        raise ValueError(f"The snapshot in '{folder}' is of a take of {generation.num_inference_steps} steps, this one has {steps}; make them equal.")
    if generation.film_key != film_key:
        raise ValueError(
            f"The snapshot in '{folder}' is of another film: its key is '{generation.film_key}', this take's '{film_key}'. Go on with the settings "
            f"that it was made with, or render the take from its start."
        )
    if ("cache" in generation.files) != (cached is not None):
        kept, asked = ("a cache", "none") if cached is None else ("no cache", f"recipe '{cached.recipe.name}'")
        raise ValueError(f"The snapshot in '{folder}' holds {kept}, and the take is rendered with {asked}; go on with what it was made with.")
