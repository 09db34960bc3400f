"""Rendering takes on one rank: a loaded model, its gang's mesh and a recipe, kept for all takes of a job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...cache import Cached, Recipe, Replay, Shards, Trace, enable_cache
from ...parallel.attention.bands import check_mesh
from ...parallel.attention.kernels import Kernel, NativeKernel, XfuserKernel
from ...parallel.groups.mesh import Mesh
from ...parallel.tokens.by_frame import ByFrame
from ..checkpoint.card import ModelCard
from ..earlier_film import Encoded, encode_film
from ..families import FAMILIES
from ..families.weights import offload_weights, shard_weights
from ..film_key import film_key as key_of
from ..kept_rounds import KeptRounds
from ..options import ModelOptions
from ..take import Take
from .denoise import Step
from .rounds import Finished, Rounds
from .snapshot import BandsRelay, MeshRelay, Snapshot, find_snapshot, load_snapshot, take_snapshot
from .timing import Timed, cache_speedup, clock


@dataclass(frozen=True)
class Rendered:
    """What became of a take whose rounds are all denoised. trace: None without a cache. cache_bytes: held at the end.

    encode_seconds: spent on the texts, and on a film that is gone on from; denoise_seconds: on the steps. speedup: what the cache saved of these,
    by `cache_speedup` of this rank's own calls; None without a cache.
    """

    trace: Trace | None
    cache_bytes: int
    encode_seconds: float
    denoise_seconds: float
    speedup: float | None


@dataclass(frozen=True)
class WholeTake(Rendered):
    """With the latents of all rounds: [1, channels, latent frames, height, width], fp32."""

    latents: Tensor


def whole_take(rendering: Iterable[Encoded | Step | Finished | Rendered]) -> WholeTake:
    """Exhaust what `Renderer.steps` gives, and put the rounds together. Those that a snapshot left behind are not among them."""
    latents: list[Tensor] = []
    rendered: Rendered | None = None
    for one in rendering:
        if isinstance(one, Finished):
            latents.append(one.latents)
        elif isinstance(one, Rendered):
            rendered = one
    assert rendered is not None, "a take without an end"
    return WholeTake(**vars(rendered), latents=torch.cat(latents, dim=2))


class Renderer:
    """Load once, render takes one after another."""

    def __init__(self, card: ModelCard, options: ModelOptions | None = None, *, device: str = "cpu", mesh: Mesh | None = None) -> None:
        """Raises ValueError, before any weight is read, for options that this machine or mesh does not allow."""
        self.options, mesh = options or ModelOptions(), mesh or Mesh()
        self.cached: Cached | None = None  # of the running take
        self._running: tuple[Rounds, str] | None = None  # with its film key
        self._kernel: Kernel = XfuserKernel() if self.options.kernel == "xfuser" else NativeKernel(self.options.attention_backend)
        self.options.check(mesh.sequence.size)
        where = torch.device(device)
        held = torch.device("cpu") if self.options.shard == "gang" or self.options.offload == "blocks" else where
        self.family = FAMILIES[card.family].load(card, getattr(torch, self.options.dtype), where, held)
        self._place_weights(where, mesh)
        if self.options.attention_backend is not None:  # for cross-attention as well, which is never sharded
            self.family.transformer.set_attention_backend(self.options.attention_backend)
        self._bind(mesh)

    def bind(self, mesh: Mesh) -> None:
        """Between two takes: work as one rank of another mesh from now on, with the model that is loaded; `Mesh()` is a gang of one. No reference
        to the old mesh is kept. Raises ValueError for a model whose weights keep their process group (`ModelOptions.can_rebind`), and for
        degrees that do not fit it.
        """
        if not self.options.can_rebind:
            raise ValueError("model.shard is gang: the weights are shared out over one process group for good; load the model again in another one.")
        assert self._running is None, "a take is running"
        self.family.unbind()
        self._bind(mesh)

    def _bind(self, mesh: Mesh, *, keeps_context: bool = False, is_banded: bool = False) -> None:
        by_frames = self.options.layout == "frames"
        self.family.bind(mesh, self._kernel, by_frames=by_frames, keeps_context=keeps_context, is_banded=is_banded)
        self.mesh = mesh

    def bind_for(self, take: Take) -> None:
        """Let the model keep context, or attend by bands, for a take that needs it, and for no other; `steps` does it by itself."""
        keeps = take.timeline.name == "rollout" and take.timeline.context == "isolated"
        is_banded = take.timeline_for(self.family.card).is_banded
        if (keeps, is_banded) != (self.family.context is not None, self.family.bands is not None):
            if is_banded:
                check_mesh(self.mesh)  # while the model is still bound
            self.family.unbind()
            self._bind(self.mesh, keeps_context=keeps, is_banded=is_banded)

    def _place_weights(self, device: torch.device, mesh: Mesh) -> None:
        if self.options.shard == "gang":
            shard_weights(self.family.transformer, mesh.sequence, device)
        if self.options.offload == "blocks":
            self._offloaded = offload_weights(self.family.transformer, device)

    def steps(
        self,
        take: Take,
        recipe: Recipe | None,
        replay: Replay | None = None,
        *,
        place: str = "device",
        snapshot: Path | None = None,
        film_key: str = "",
        kept: KeptRounds | None = None,
    ) -> Iterator[Encoded | Step | Finished | Rendered]:
        """Denoise a take: a Step after each step, Finished after each round, then one Rendered; before all these, Encoded, where it goes on from an
        earlier film and from no snapshot. Every rank of the gang must exhaust it.

        replay: decisions to make again; the recipe says what is kept and how it is predicted. place: where the cache keeps it, `device`
        or `host`. snapshot: a folder that `save` wrote, on any gang, to go on from. film_key: of the take, kept in its snapshots; one with
        another key is refused; if left out, a key without the model and the recipe. kept: where the take's rounds are kept as they finish; those
        that are there already are not rendered, and come first, with a snapshot as well; without `kept`, only what follows on the snapshot
        comes. Raises SnapshotError for a snapshot that cannot be gone on from, and FloatingPointError, on every rank, for a take whose latents
        are not finite.
        """
        film_key = film_key or key_of(self.family.card, "", take, None, self.options)
        self.bind_for(take)
        self.cached = cached = self._cached(take, recipe, replay, place) if recipe else None
        try:
            began, earlier = clock(self.family.device), None
            if take.continue_from is not None and (snapshot is None or kept is not None):  # a snapshot holds what is shown of it
                earlier = encode_film(self.family, take, self.mesh)
            film_seconds = clock(self.family.device) - began
            if earlier is not None:
                yield earlier
            rounds = Rounds(self.family, take, cached, self.mesh, earlier.context if earlier else None)
            self._running = (rounds, film_key)
            yield from self._go_on(rounds, cached, snapshot, kept)
            first, encoded, before = rounds.steps_done, rounds.encode_seconds, 0.0
            timed, seconds = Timed(iter(rounds), self.family.device), list[float]()
            for one in timed:
                if isinstance(one, Step):
                    in_texts, before = rounds.encode_seconds - encoded - before, rounds.encode_seconds - encoded
                    seconds.append(timed.seconds[-1] - in_texts)
                elif kept is not None:
                    self._keep(one, rounds, cached, kept)
                yield one
            decisions = cached.trace.numbered(len(rounds.denoising.scheduler.timesteps)) if cached else ()
            yield Rendered(
                self._whole_trace(cached) if cached else None,
                cached.state.num_bytes if cached else 0,
                encode_seconds=film_seconds + rounds.encode_seconds,
                denoise_seconds=sum(timed.seconds) - before,
                speedup=cache_speedup(seconds, first, decisions) if cached else None,
            )
        finally:
            self.cached, self._running = None, None
            if cached:
                cached.disable()

    def _cached(self, take: Take, recipe: Recipe, replay: Replay | None, place: str) -> Cached:
        """The recipe on the model. Decisions are those of the ranks that run a window, or of all that run a branch where windows shift or one call
        is spread over all of them.
        """
        mesh, card, bands, shifts = self.mesh, self.family.card, self.family.bands, take.timeline_for(self.family.card).shifts
        tokens, both = (mesh.one_branch, mesh.gang) if shifts or bands else (mesh.sequence, mesh.branches)
        first = (mesh.sequence if bands else tokens).rank == 0
        by_frame = ByFrame(mesh.sequence, self._tokens_a_frame(take), whole_frames=self.options.layout == "frames")
        return enable_cache(
            self.family.transformer,
            recipe,
            num_inference_steps=card.sampled_by(take.scheduler).num_calls(take.num_inference_steps),
            shards=Shards(tokens.sum, both.sum if mesh.cfg.size == 2 else None, is_first=first, by_frame=by_frame, segments=bands),
            replay=replay,
            place=place,
            overlap=take.timeline.overlap if shifts else None,
        )

    def _go_on(self, rounds: Rounds, cached: Cached | None, snapshot: Path | None, kept: KeptRounds | None) -> Iterator[Finished]:
        """Bring a take to where it goes on: from a snapshot, behind the rounds that are kept, which are yielded, or at its start."""
        assert self._running is not None, "no take is running"
        relay, (_, film_key) = self._relay(rounds.take), self._running
        found = None if snapshot is None else find_snapshot(snapshot, rounds.take, cached, relay, film_key)
        if kept is not None:
            count = relay.from_writer(partial(kept.count_with, None if found is None else found.round))
            if found is not None and count > found.round:
                found = None  # it was taken before the last of these rounds was done
            yield from self._pass_over(rounds, cached, kept, count)
        if rounds.is_stopped:
            return
        if found is not None and snapshot is not None:
            load_snapshot(snapshot, found, rounds, cached, relay)
        elif rounds.number:
            rounds.go_to(rounds.number)

    def _pass_over(self, rounds: Rounds, cached: Cached | None, kept: KeptRounds, count: int) -> Iterator[Finished]:
        """The first `count` rounds, as rank 0 finds them, one after the other: they may be more than fit into memory."""
        relay = self._relay(rounds.take)
        for number in range(count):
            latents, trace = relay.from_writer(partial(kept.read, number))
            if cached is not None:
                cached.trace.entries.extend(Trace.from_json(trace).entries)
            yield rounds.pass_over(latents.to(self.family.device))
            if rounds.is_stopped:
                return

    def _keep(self, finished: Finished, rounds: Rounds, cached: Cached | None, kept: KeptRounds) -> None:
        """Write the round that has finished, and what was decided in it. Called on every rank; rank 0 writes."""
        trace, segments = None, {call.segment for call in rounds.denoising.round.calls}
        if cached is not None:
            own = cached.finish()
            of_round = replace(own, entries=[entry for entry in own.entries if entry.segment in segments])
            trace = Trace.joined(self.mesh.calls.gather_objects(of_round))
        if self.mesh.rank == 0:
            kept.write(rounds.number, finished.latents, trace)

    def save(self, folder: Path) -> None:
        """Write a snapshot of the running take, between two of its steps; called on every rank. Raises ValueError if no take is running: a
        cache lives as long as its take.
        """
        if self._running is None:
            raise ValueError(f"No take is running, so there is no snapshot to write into '{folder}'; call save() between two steps of a take.")
        if (snapshot := self.snapshot()) is not None:
            snapshot.write(folder)

    def snapshot(self) -> Snapshot | None:
        """One of the running take, between two of its steps, to be written while the take goes on: on rank 0, None on the others, which call this as
        well.
        """
        assert self._running is not None, "no take is running"
        rounds, film_key = self._running
        return take_snapshot(rounds, self.cached, self._relay(rounds.take), film_key)

    @property
    def steps_done(self) -> int:
        """Of the running take, in all its rounds; those that an earlier run made are among them."""
        assert self._running is not None, "no take is running"
        return self._running[0].steps_done

    def stop(self) -> None:
        """End the running take with the round that is denoised, or that has just finished; called on every rank. It is Rendered as far as that."""
        assert self._running is not None, "no take is running"
        self._running[0].is_stopped = True

    def _relay(self, take: Take) -> MeshRelay:
        card, by_frames, bands = self.family.card, self.options.layout == "frames", self.family.bands
        if bands is not None:
            return BandsRelay(self.mesh, bands, self._tokens_a_frame(take), by_frames=by_frames)
        return MeshRelay(self.mesh, self._tokens_a_frame(take) if by_frames else 0, windows_shift=take.timeline_for(card).shifts)

    def _tokens_a_frame(self, take: Take) -> int:
        card = self.family.card
        return card.num_tokens(card.patch_size[0], take.height, take.width)

    def _whole_trace(self, cached: Cached) -> Trace:
        """The take's trace, with the calls that other ranks made (of other branches, of other windows)."""
        return Trace.joined(self.mesh.calls.gather_objects(cached.finish()))

    @property
    def decisions(self) -> dict[str, int]:
        """How many of each decision the running take has seen so far; empty without a cache."""
        return self.cached.trace.summary() if self.cached else {}

    def render(self, take: Take, recipe: Recipe | None, replay: Replay | None = None) -> WholeTake:
        """Denoise a take without looking at its steps."""
        return whole_take(self.steps(take, recipe, replay))
