"""All that is needed to go on with a take: latents and scheduler in one file, what the cache holds in another, as a generation of a folder.

Nothing in it depends on the gang that wrote it. Every rank saves and loads; rank 0 writes, and says which generation is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...cache import Cached
from ...cache.state.saving import Packed, PackedState
from ...cache.state.values import Plain, pack, restore, unpack
from ...files import written_whole
from ...parallel.attention.bands import Bands
from ...parallel.groups.mesh import Mesh
from ...parallel.tokens.layout import Layout
from ..take import Take
from .denoise import BRANCHES
from .generations import Generation, SnapshotError, file_name, last_whole, next_number, publish
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
        return self.mesh.calls.gather_objects_to_first(packed)

    def runs_here(self, segment: int, branch: str) -> bool:
        return self._runs_branch(branch) and (self._windows_shift or segment % self.mesh.window.size == self.mesh.window.rank)

    def _runs_branch(self, branch: str) -> bool:
        return self.mesh.cfg.size == 1 or branch not in BRANCHES or BRANCHES.index(branch) == self.mesh.cfg.rank

    def writes(self) -> bool:
        return self.mesh.rank == 0

    def from_writer(self, find: Callable[[], Found]) -> Found:
        """What `find` gives to the rank that writes, or the error that it raises there: the same on every rank."""
        found: Found | Exception | None = None
        if self.writes():
            try:
                found = find()
            except (OSError, ValueError) as error:
                found = error
        answer = self.mesh.gang.gather_objects(found)[0]
        if isinstance(answer, Exception):
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
        return self.mesh.cfg.gather_objects_to_first(packed)

    def runs_here(self, segment: int, branch: str) -> bool:
        return self._runs_branch(branch)


def _part(whole: Tensor, dim: int, first: int, wanted: range) -> Tensor:
    """Of entries along `dim` that are numbered from `first` on, those that are wanted, maybe none."""
    stop = first + whole.shape[dim]
    begin, end = (min(max(edge, first), stop) for edge in (wanted.start, wanted.stop))
    return whole.narrow(dim, begin - first, end - begin).clone()


@dataclass(frozen=True)
class Snapshot:
    """A take between two of its steps, in the CPU's memory and apart from the take, which goes on. round, step: its next ones. tensors: of the
    take and its sampler, by name; scheduler: the sampler with these names; cache: what the cache holds, None without one.
    """

    film_key: str
    num_inference_steps: int
    round: int
    step: int
    tensors: dict[str, Tensor]
    scheduler: Plain
    cache: PackedState | None

    def write(self, folder: Path) -> None:
        """As a new generation in `folder`; older ones stay until it is whole. In any thread, one at a time."""
        folder.mkdir(parents=True, exist_ok=True)
        number, paths = next_number(folder), {}
        if self.cache is not None:
            paths["cache"] = folder / file_name("cache", number, ".safetensors")
            self.cache.write(paths["cache"])
        paths["take"] = folder / file_name("take", number, ".safetensors")
        with written_whole(paths["take"]) as temporary:
            save_file(self.tensors, temporary, {"scheduler": json.dumps(self.scheduler)})
        told = {name: getattr(self, name) for name in ("film_key", "num_inference_steps", "round", "step")}
        publish(folder, number, paths, **told)


def take_snapshot(rounds: Rounds, cached: Cached | None, relay: MeshRelay, film_key: str) -> Snapshot | None:
    """On the rank that writes; None on the others, which all call it as well. film_key: of the take."""
    cache = None if cached is None else cached.pack(relay)
    denoising = rounds.denoising
    tensors = {"latents": _kept(relay.gather_frames(denoising.latents))}
    tensors.update({f"{_DONE}{frame}": _kept(latent) for frame, latent in rounds.done.items()})

    def put(value: object) -> str:
        if not isinstance(value, Tensor):
            raise TypeError(f"a {type(value).__name__} of the scheduler cannot be saved")
        whole = relay.gather_frames(value) if value.ndim == denoising.latents.ndim else value
        tensors[name := f"scheduler:{len(tensors)}"] = _kept(whole)
        return name

    scheduler = pack({name: value for name, value in vars(denoising.scheduler).items() if name != "_internal_dict"}, put)
    if not relay.writes():
        return None
    return Snapshot(film_key, rounds.take.num_inference_steps, rounds.number, denoising.index, tensors, scheduler, cache)


def _kept(tensor: Tensor) -> Tensor:
    """A copy in the CPU's memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def find_snapshot(folder: Path, take: Take, cached: Cached | None, relay: MeshRelay, film_key: str) -> Generation:
    """The last whole generation of that take. Raises SnapshotError if there is none, or if it belongs to another film, recipe or way to call the
    branches; the take must then be made anew.
    """
    generation = relay.from_writer(lambda: last_whole(folder))
    _check(generation, folder, take, cached, film_key)
    if cached is not None:
        try:
            cached.check_saved(folder / generation.files["cache"].name)
        except ValueError as error:
            raise SnapshotError(str(error)) from None
    return generation


def load_snapshot(folder: Path, generation: Generation, rounds: Rounds, cached: Cached | None, relay: MeshRelay) -> None:
    """Set a take back to where `take_snapshot` found it. Tensors are copied: in the file they lie anywhere, and an operation's sums may depend on
    how its inputs lie in memory.
    """
    device = rounds.denoising.latents.device
    with safe_open(folder / generation.files["take"].name, "pt", str(device)) as file:
        rounds.done = {int(name.removeprefix(_DONE)): file.get_tensor(name).clone() for name in file.keys() if name.startswith(_DONE)}  # noqa: SIM118
        denoising = rounds.go_to(generation.round)
        if cached is not None:
            cached.load(folder / generation.files["cache"].name, relay, device)

        def own(name: str) -> Tensor:
            tensor: Tensor = file.get_tensor(name).clone()
            return relay.share_frames(tensor, None) if tensor.ndim == denoising.latents.ndim else tensor

        denoising.latents, denoising.index = own("latents"), generation.step
        restore(denoising.scheduler, unpack(json.loads(file.metadata()["scheduler"]), own))


def _check(generation: Generation, folder: Path, take: Take, cached: Cached | None, film_key: str) -> None:
    steps = take.num_inference_steps
    if generation.num_inference_steps != steps:
        raise SnapshotError(
            f"The snapshot in '{folder}' is of a take of {generation.num_inference_steps} steps, this one has {steps}; make them equal."
        )
    if generation.film_key != film_key:
        raise SnapshotError(
            f"The snapshot in '{folder}' is of another film: its key is '{generation.film_key}', this take's '{film_key}'. Go on with the settings "
            f"that it was made with, or render the take from its start."
        )
    if ("cache" in generation.files) != (cached is not None):
        kept, asked = ("a cache", "none") if cached is None else ("no cache", f"recipe '{cached.recipe.name}'")
        raise SnapshotError(f"The snapshot in '{folder}' holds {kept}, and the take is rendered with {asked}; go on with what it was made with.")
