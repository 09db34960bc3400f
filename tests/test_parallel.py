"""Meshes, layouts, and sequence-parallel attention against plain attention."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from longtake.bench.pool import GlooPool
from longtake.parallel.attention.context import ContextStore
from longtake.parallel.attention.kernels import Attended, NativeKernel, XfuserKernel
from longtake.parallel.attention.sequence import SequenceAttention
from longtake.parallel.groups.degrees import Degrees, Demand, choose_degrees
from longtake.parallel.groups.errors import CollectiveError
from longtake.parallel.groups.mesh import Mesh, leaving_on_error
from longtake.parallel.tokens.compaction import Compaction
from longtake.parallel.tokens.layout import Layout
from longtake.parallel.tokens.shards import TokenShards
from torch import Tensor

from same import assert_same

pytestmark = pytest.mark.numerical

RING = Degrees(ring_degree=3)
BOTH = Degrees(ring_degree=2, ulysses_degree=2)
SHAPES = [Degrees(ulysses_degree=2), Degrees(ulysses_degree=3), Degrees(ring_degree=2), RING, BOTH, Degrees(ring_degree=5)]


@given(num_tokens=st.integers(0, 500), num_ranks=st.integers(1, 9), tokens_a_frame=st.integers(1, 20))
def test_layouts_cover_every_token_once(num_tokens: int, num_ranks: int, tokens_a_frame: int) -> None:
    even, frames = Layout.even(num_tokens, num_ranks), Layout.frames(num_tokens // tokens_a_frame, tokens_a_frame, num_ranks)
    for layout in (even, frames):
        tokens = torch.arange(layout.num_tokens)
        assert torch.equal(torch.cat([layout.shard(tokens, rank, dim=0) for rank in range(num_ranks)]), tokens)
    assert max(even.counts) - min(even.counts) <= 1
    assert all(count % tokens_a_frame == 0 for count in frames.counts)


@given(counts=st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_overlaps_of_two_layouts_are_what_each_sends_the_other(counts: list[int]) -> None:
    scattered = Layout(tuple(counts))
    even = Layout.even(scattered.num_tokens, len(counts))
    sent = [scattered.overlaps(rank, even) for rank in range(len(counts))]
    received = [even.overlaps(rank, scattered) for rank in range(len(counts))]
    assert [list(row) for row in zip(*sent, strict=True)] == received
    assert tuple(map(sum, sent)) == scattered.counts
    assert tuple(map(sum, received)) == even.counts


@given(
    num_ranks=st.integers(1, 64),
    num_heads=st.sampled_from([6, 12, 24, 40]),
    num_branches=st.integers(1, 2),
    num_windows=st.integers(1, 30),
    ranks_per_node=st.integers(1, 16),
)
def test_chosen_degrees_fit(num_ranks: int, num_heads: int, num_branches: int, num_windows: int, ranks_per_node: int) -> None:
    degrees, why = choose_degrees(num_ranks, Demand(num_heads, 10_000, num_branches, num_windows), ranks_per_node)
    assert degrees.num_ranks == num_ranks
    assert num_heads % degrees.ulysses_degree == 0
    assert degrees.ulysses_degree <= ranks_per_node
    assert degrees.window_degree <= num_windows
    assert degrees.cfg_degree <= num_branches
    assert why.startswith(f"{num_ranks} rank(s): ")
    assert "\n" not in why


def test_degrees_are_chosen_by_what_exchanges_least() -> None:
    assert choose_degrees(8, Demand(12, 10_000, 2, 1), 8)[0] == Degrees(cfg_degree=2, ulysses_degree=4)
    assert choose_degrees(6, Demand(12, 10_000, 1, 1), 8)[0] == Degrees(ulysses_degree=6)
    assert choose_degrees(16, Demand(40, 10_000, 1, 1), 8)[0] == Degrees(ring_degree=2, ulysses_degree=8)
    assert choose_degrees(5, Demand(12, 10_000, 2, 1), 8)[0] == Degrees(ring_degree=5)
    assert choose_degrees(8, Demand(12, 10_000, 2, 20), 8)[0] == Degrees(cfg_degree=2, window_degree=4)
    with pytest.raises(ValueError, match="3 tokens cannot be shared by 5 ranks"):
        choose_degrees(5, Demand(12, 3, 1, 1), 8)


def test_shard_refuses_a_tensor_of_another_length() -> None:
    with pytest.raises(ValueError, match="Expected 10 tokens along dim 1"):
        Layout.even(10, 2).shard(torch.zeros(1, 9), 0, dim=1)


def test_too_few_tokens_for_the_ranks() -> None:
    with pytest.raises(ValueError, match="0 tokens cannot be shared"):
        TokenShards(Mesh()).begin_call(0)


def test_degrees_must_multiply_to_the_ranks(gloo_pool: GlooPool) -> None:
    assert gloo_pool.run(_refusal, 3) == ["The degrees (1, 1, 2, 2) (cfg x window x ring x ulysses) multiply to 4, but the gang has 3 ranks."] * 3


def _refusal(mesh: Mesh) -> str:
    try:
        Mesh(BOTH, mesh.gang.group)
    except ValueError as error:
        return str(error)
    return ""


def _lines(mesh: Mesh) -> list[list[object]]:
    axes = (mesh.cfg, mesh.window, mesh.ring, mesh.ulysses, mesh.sequence, mesh.gang)
    return [axis.gather_objects(mesh.rank) for axis in axes]


def test_every_axis_of_a_mesh_joins_the_right_ranks(gloo_pool: GlooPool) -> None:
    last = gloo_pool.run(_lines, Degrees(cfg_degree=2, ulysses_degree=2))[3]
    assert last == [[1, 3], [3], [3], [2, 3], [2, 3], [0, 1, 2, 3]]
    last = gloo_pool.run(_lines, Degrees(window_degree=2, ring_degree=2))[3]
    assert last == [[3], [1, 3], [2, 3], [3], [2, 3], [0, 1, 2, 3]]


def _rebuild(mesh: Mesh) -> list[float]:
    sums = []
    for degrees in (BOTH, Degrees(cfg_degree=2, ring_degree=2), BOTH):
        other = Mesh(degrees, mesh.gang.group)
        sums.append(float(other.sequence.sum(torch.tensor(float(other.rank)))))
    return sums


def test_a_mesh_can_be_dropped_and_built_anew(gloo_pool: GlooPool) -> None:
    assert gloo_pool.run(_rebuild, 4)[0] == [6.0, 1.0, 6.0]


def _survive(rank: int, stores: list[str], pipe: Connection) -> None:
    """Rank 2 dies while the others wait for it in a collective; these form a smaller gang in the same processes."""
    limit = timedelta(seconds=40)  # for processes that start at different times
    dist.init_process_group("gloo", init_method=f"file://{stores[0]}", rank=rank, world_size=3, timeout=limit)
    dist.barrier()
    mesh = Mesh(Degrees(ring_degree=3), dist.new_group(timeout=limit))
    mesh.gang.sum(torch.ones(1))
    if rank == 2:
        os._exit(9)
    try:
        mesh.gang.sum(torch.ones(1))
        first = "no error"
    except CollectiveError as error:
        first = str(error)
    dist.destroy_process_group()
    dist.init_process_group("gloo", init_method=f"file://{stores[1]}", rank=rank, world_size=2, timeout=limit)
    smaller = Mesh(Degrees(cfg_degree=2), dist.group.WORLD)
    pipe.send((first, float(smaller.cfg.sum(torch.ones(1)))))
    dist.destroy_process_group()


def test_the_ranks_that_are_left_form_a_new_gang(gloo_pool: GlooPool, tmp_path: Path) -> None:
    context = mp.get_context("forkserver")  # the pool's, which has imported everything
    pipes = [context.Pipe() for _ in range(3)]
    stores = [str(tmp_path / name) for name in ("three", "two")]
    processes = [context.Process(target=_survive, args=(rank, stores, pipes[rank][1]), daemon=True) for rank in range(3)]
    for process in processes:
        process.start()
    for ours, _ in pipes[:2]:
        assert ours.poll(120), "a hang"
        first, total = ours.recv()
        assert first.startswith("sum over the gang axis failed on its rank")
        assert total == 2.0
    for process in processes:
        process.join(10)


def _lose_rank_3(mesh: Mesh, folder: Path, how: str) -> str:
    """Ranks 1 and 2 wait for rank 3, rank 0 for rank 1; what each of them hears. All stay until everybody has heard."""
    group = dist.new_group(timeout=timedelta(seconds=4 if how == "hangs" else 1000))
    gang = Mesh(mesh.degrees, group)
    mesh.gang.sum(torch.zeros(1))  # from here on nobody is late
    heard = "nothing"
    try:
        with leaving_on_error():
            if mesh.rank == 3 and how == "raises":
                raise ZeroDivisionError
            if mesh.rank < 3:
                gang.cfg.sum(torch.zeros(1))
                gang.ulysses.sum(torch.zeros(1))
    except (CollectiveError, ZeroDivisionError) as error:
        heard = str(error)
    (folder / str(mesh.rank)).touch()
    deadline = time.monotonic() + 60
    while not all((folder / str(rank)).exists() for rank in range(3)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return heard if time.monotonic() < deadline else "not everybody heard within a minute"


@pytest.mark.parametrize("how", ["hangs", "raises"])
def test_a_lost_rank_is_heard_of_on_every_axis(gloo_pool: GlooPool, tmp_path: Path, how: str) -> None:
    """At the gang's timeout where it hangs, at once where it raises, also by a rank that was not its peer."""
    first, second, third, _ = gloo_pool.run(_lose_rank_3, Degrees(cfg_degree=2, ulysses_degree=2), tmp_path, how)
    assert first.startswith("sum over the ulysses axis failed on its rank 0 of 2")
    assert second.startswith("sum over the cfg axis failed on its rank 0 of 2")
    assert third.startswith("sum over the ulysses axis failed on its rank 0 of 2")


def _run_out_of_memory(mesh: Mesh) -> tuple[str, str]:
    """The last rank cannot hold its part of the ring; what it says, and what this mesh says once its rank has left."""
    shards = TokenShards(mesh)
    shards.begin_call(6)
    local = [shards.shard(tensor, dim=1) for tensor in _inputs(6, 0)]

    class Full(NativeKernel):
        def with_lse(self, *_: object) -> Attended:
            raise RuntimeError("can't allocate memory")

    said = []
    for kernel in (Full() if mesh.rank == 2 else NativeKernel(), NativeKernel()):
        try:
            with leaving_on_error():
                SequenceAttention(shards, kernel)(*local)
        except RuntimeError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said[0], said[1]


def test_running_out_of_memory_in_a_ring_is_no_failed_exchange(gloo_pool: GlooPool) -> None:
    results = gloo_pool.run(_run_out_of_memory, RING)
    assert results[2][0] == "RuntimeError: can't allocate memory"
    assert all(first.startswith("CollectiveError: attention: ring exchange over the ring axis failed") for first, _ in results[:2])
    assert all(then == "CollectiveError: attention: the ring axis is no more: this rank has left its gang" for _, then in results)


def _round_trip(mesh: Mesh, num_frames: int, tokens_a_frame: int, by_frames: bool) -> bool:
    shards = TokenShards(mesh, by_frames=by_frames)
    shards.begin_call(num_frames * tokens_a_frame, num_frames)
    tokens = torch.arange(shards.layout.num_tokens * 6.0).view(1, -1, 2, 3)
    return torch.equal(shards.gather(shards.shard(tokens, dim=1), dim=1), tokens)


@pytest.mark.parametrize("num_ranks", [2, 3, 5])
@pytest.mark.parametrize("by_frames", [True, False])
def test_gather_undoes_shard(gloo_pool: GlooPool, num_ranks: int, by_frames: bool) -> None:
    for num_frames, tokens_a_frame in ((1, 7), (3, 3), (11, 9)):
        assert all(gloo_pool.run(_round_trip, num_ranks, num_frames, tokens_a_frame, by_frames))


def _compact(mesh: Mesh, chosen: list[int], num_tokens: int) -> tuple[Tensor, Tensor]:
    """The compacted tokens, and all tokens after the chosen ones were negated."""
    shards = TokenShards(mesh)
    shards.begin_call(num_tokens)
    whole = torch.zeros(num_tokens, dtype=torch.bool)
    whole[chosen] = True
    tokens = shards.shard(torch.arange(1.0, num_tokens + 1).view(1, -1, 1), dim=1)
    compaction = Compaction(mesh.sequence, shards.shard(whole, dim=0))
    compacted = compaction.compact(tokens)
    restored = compaction.restore(-compacted, tokens)
    return compacted[0, :, 0], shards.gather(restored, dim=1)[0, :, 0]


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_chosen_tokens_are_split_evenly_and_come_back(gloo_pool: GlooPool, num_ranks: int, data: st.DataObject) -> None:
    num_tokens = data.draw(st.integers(5, 60))
    chosen = sorted(data.draw(st.sets(st.integers(0, num_tokens - 1), min_size=1)))
    results = gloo_pool.run(_compact, num_ranks, chosen, num_tokens)
    assert torch.cat([compacted for compacted, _ in results]).tolist() == [index + 1 for index in chosen]
    assert max(len(c) for c, _ in results) - min(len(c) for c, _ in results) <= 1
    expected = [-(i + 1.0) if i in chosen else i + 1.0 for i in range(num_tokens)]
    assert all(whole.tolist() == expected for _, whole in results)


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention by its formula, in fp64; zeros where a query sees no key."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query.double(), key.double()) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1).nan_to_num(0.0), value.double()).float()


def _inputs(num_tokens: int, num_text: int, heads: int = 6) -> list[Tensor]:
    return [_draw(2, num_tokens + num_text, heads, 8, seed=seed) for seed in range(3)]


def _mask(num_tokens: int, num_text: int) -> Tensor:
    """Some tokens of the video, all but two of the text; for the second of the batch everything."""
    mask = torch.rand(2, num_tokens + num_text, generator=torch.Generator().manual_seed(9)) < 0.6
    mask[:, num_tokens + 2 :] = False
    mask[1] = False
    return mask


def _attend(mesh: Mesh, num_tokens: int, num_text: int, masked: bool, by_frames: bool) -> tuple[Tensor, Tensor]:
    """The whole video's part of the result, and the text's as this rank has it."""
    shards = TokenShards(mesh, by_frames=by_frames)
    shards.begin_call(num_tokens, 3 if by_frames else 1)

    def local(whole: Tensor) -> Tensor:
        return torch.cat((shards.shard(whole[:, :num_tokens], dim=1), whole[:, num_tokens:]), dim=1)

    mask = local(_mask(num_tokens, num_text)) if masked else None
    attended = SequenceAttention(shards, NativeKernel())(*map(local, _inputs(num_tokens, num_text)), attn_mask=mask)
    return shards.gather(attended[:, : shards.num_local], dim=1), attended[:, shards.num_local :]


@pytest.mark.parametrize("degrees", SHAPES, ids=str)
@pytest.mark.parametrize(("num_tokens", "num_text", "masked"), [(1001, 0, False), (12, 5, False), (63, 7, True)])
def test_sequence_parallel_attention_equals_plain_attention(
    gloo_pool: GlooPool, degrees: Degrees, num_tokens: int, num_text: int, masked: bool
) -> None:
    expected = _plain(*_inputs(num_tokens, num_text), _mask(num_tokens, num_text) if masked else None)
    for by_frames in (False, num_tokens % 3 == 0):
        for video, text in gloo_pool.run(_attend, degrees, num_tokens, num_text, masked, by_frames):
            assert_same(torch.cat((video, text), dim=1), expected)


def _attend_with_context(mesh: Mesh, num_tokens: int, num_kept: int) -> tuple[Tensor, Tensor, int]:
    """What the context's tokens attend to, then what later ones do, and the bytes that this rank keeps."""
    shards, store = TokenShards(mesh), ContextStore()
    attention = SequenceAttention(shards, NativeKernel(), context=store)
    shards.begin_call(num_kept)
    context = [shards.shard(_draw(2, num_kept, 6, 8, seed=seed), dim=1) for seed in (6, 7, 8)]
    with store.write("cond"):
        before = shards.gather(attention(*context), dim=1)
    with store.write("uncond"):
        attention(*(torch.zeros_like(tensor) for tensor in context))
    num_bytes = store.num_bytes // 2
    shards.begin_call(num_tokens)
    local = [shards.shard(tensor, dim=1) for tensor in _inputs(num_tokens, 0)]
    mask = shards.shard(_mask(num_tokens, 0), dim=1)
    with store.read("cond", 1):
        return before, shards.gather(attention(*local, attn_mask=mask), dim=1), num_bytes


@pytest.mark.parametrize("degrees", [Degrees(), Degrees(ulysses_degree=2), RING, BOTH], ids=str)
@pytest.mark.parametrize("num_kept", [5, 12])
def test_kept_context_counts_as_further_keys(gloo_pool: GlooPool, degrees: Degrees, num_kept: int) -> None:
    """Its own tokens attend to it alone; a rank keeps its heads of the tokens at its place on the ring."""
    query, key, value = _inputs(20, 0)
    further = [_draw(2, num_kept, 6, 8, seed=seed) for seed in (6, 7, 8)]
    mask = torch.cat((_mask(20, 0), torch.ones(2, num_kept, dtype=torch.bool)), dim=1)
    expected = _plain(query, torch.cat((key, further[1]), dim=1), torch.cat((value, further[2]), dim=1), mask)
    kept = gloo_pool.run(_attend_with_context, degrees, 20, num_kept)
    for before, attended, _ in kept:
        assert_same(before, _plain(*further))
        assert_same(attended, expected)
    assert sum(num_bytes for *_, num_bytes in kept) == further[1].nbytes + further[2].nbytes


@pytest.mark.parametrize("sizes", [(0, 4, 3), (3, 0, 3), (0, 0, 0), (5, 4, 3)])
def test_the_cpu_kernel_survives_empty_and_masked_inputs(sizes: tuple[int, int, int]) -> None:
    queries, keys, heads = sizes
    query, key, value = _draw(1, queries, heads, 8, seed=0), _draw(1, keys, heads, 8, seed=1), _draw(1, keys, heads, 8, seed=2)
    kernel = NativeKernel()
    nothing = torch.zeros(1, keys, dtype=torch.bool)
    for mask in (None, nothing):
        attended = kernel.with_lse(query, key, value, mask, None)
        assert attended.out.shape == query.shape
        if not keys or mask is nothing:
            assert (attended.out == 0).all()
            assert attended.lse.isneginf().all()
        assert_same(kernel(query, key, value, mask, None), attended.out)


@settings(deadline=None)
@given(split=st.integers(0, 9), seed=st.integers(0, 99))
def test_merged_halves_equal_the_whole(split: int, seed: int) -> None:
    query, key, value = _draw(1, 4, 2, 8, seed=seed), _draw(1, 9, 2, 8, seed=seed + 1), _draw(1, 9, 2, 8, seed=seed + 2)
    kernel = NativeKernel()
    halves: list[Attended] = [kernel.with_lse(query, key[:, part], value[:, part], None, None) for part in (slice(split), slice(split, None))]
    assert_same(halves[0].merge(halves[1]).out, _plain(query, key, value))


def _sent_bytes(mesh: Mesh, num_tokens: int) -> int:
    shards = TokenShards(mesh)
    shards.begin_call(num_tokens)
    local = [shards.shard(tensor, dim=1) for tensor in _inputs(num_tokens, 0)]
    before = mesh.traffic.sent_bytes
    SequenceAttention(shards, NativeKernel())(*local)
    return mesh.traffic.sent_bytes - before


def test_a_rank_sends_what_the_formula_says(gloo_pool: GlooPool) -> None:
    tokens, dim = 60, 2 * 48  # a batch of two
    assert gloo_pool.run(_sent_bytes, 3, tokens) == [4 * tokens * dim * 4 // 3 * 2 // 3] * 3
    assert gloo_pool.run(_sent_bytes, RING, tokens) == [2 * tokens * dim * 4 * 2 // 3] * 3


def test_unknown_backends_and_missing_cuda_are_named() -> None:
    with pytest.raises(ValueError, match=r"attention_backend is 'flush'; diffusers knows flash"):
        NativeKernel("flush")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"xfuser, which needs a CUDA device; set parallel\.kernel=native"):
            XfuserKernel()


@pytest.mark.gpu
def test_xfuser_kernel_equals_the_native_one() -> None:
    pytest.importorskip("xfuser", reason="the extra 'xfuser' is not installed")
    query, key, value = (_draw(1, 100, 4, 64, seed=seed).to("cuda", torch.bfloat16) for seed in range(3))
    native, xfuser = (kernel.with_lse(query, key, value, None, None) for kernel in (NativeKernel(), XfuserKernel()))
    assert (native.out.float() - xfuser.out.float()).abs().max() <= 2e-2
    assert (native.lse - xfuser.lse).abs().max() <= 2e-2
