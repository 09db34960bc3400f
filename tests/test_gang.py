"""Joining Ray, placing and ending a gang, and what its ranks may do between two collectives."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from longtake.cache import Trace, load_recipe
from longtake.jobs.cli.app import app
from longtake.jobs.cluster import ray_cluster, usable_cores
from longtake.jobs.errors import AddressError
from longtake.jobs.folder.manifest import computed_share
from longtake.jobs.gang.failures import Cause, Failure, GangError, gang_error
from longtake.jobs.gang.gang import Gang
from longtake.jobs.gang.memory import forget_peak, peak_bytes
from longtake.jobs.gang.orders import Order
from longtake.jobs.gang.rank import Rank
from longtake.jobs.gang.reports import DecodeReport, Loaded, Report, TakeReport
from longtake.jobs.settings.config import ParallelConfig
from longtake.parallel.groups.degrees import Degrees
from longtake.pipeline.checkpoint.card import read_card
from longtake.pipeline.options import ModelOptions
from longtake.pipeline.take import TimelineSettings
from ray.util.placement_group import placement_group, remove_placement_group
from typer.testing import CliRunner

from takes import tiny_take

TWO = Degrees(ulysses_degree=2)


@contextmanager
def _listener() -> Iterator[str]:
    with socket.create_server(("", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "http://127.0.0.1:8265", "ray://127.0.0.1:10001", "garbage", "host:port", " "])
def test_an_address_that_is_no_clusters_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(AddressError, match=rf"RAY_ADDRESS is '{re.escape(address)}'.*unset it"), ray_cluster(1):
        pass


def test_somebody_else_who_listens_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    with _listener() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(AddressError, match="what answers there is no Ray cluster"), ray_cluster(1):
            pass


def test_the_command_line_says_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(f"{{model: demo, output: {tmp_path / 'out'}, cache: none, takes: [{{name: one, prompt: a red circle}}]}}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for command, code, said in ((["render", str(job)], 2, "error: RAY_ADDRESS is '127.0.0.1:1'"), (["doctor"], 1, "RAY_ADDRESS is '127.0.0.1:1'")):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, SystemExit)
        assert done.exit_code == code
        assert said in done.stderr + done.stdout


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:  # ended meanwhile
        return ""


@pytest.mark.parametrize("stage", ["gcs_server", "raylet"])
def test_a_signal_while_ray_starts_leaves_nothing(stage: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "longtake", "doctor"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    started: list[psutil.Process] = []
    while not any(_name(child) == stage for child in started):
        assert process.poll() is None, process.communicate()
        started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "stopped: not everything was looked at\n"
    assert not psutil.wait_procs(started, timeout=30)[1]


def _order(folder: Path, **changes: Any) -> Order:
    whole = {"num_frames": 17, "guidance_scale": 1.0, "prompts": tiny_take().prompts[:1], "timeline": TimelineSettings("full", 0, 0)}
    take = tiny_take(**{**whole, **changes})
    return Order(take, None, None, "device", "", "", folder, folder / "preview.jpg", folder / "film.partial.mp4", None, Fraction(8), 1, True, {})


@contextmanager
def _loaded(model: Path, config: ParallelConfig, degrees: Degrees = TWO) -> Iterator[Gang]:
    with Gang(degrees, config, "cpu") as gang:
        gang.load(read_card(str(model)), ModelOptions(), with_preview=True)
        yield gang


class _StoppedStorage(Rank):
    """Writes no preview until the film's last frame is written."""

    def load(self, *args: Any) -> Loaded:
        loaded = super().load(*args)
        if self.rank == 0:
            self._jpeg, self._preview.jpeg = self._preview.jpeg, self._draw_late
        return loaded

    def _draw_late(self, clean: torch.Tensor) -> bytes:
        while not self._told.exists():
            time.sleep(0.1)
        return self._jpeg(clean)

    def render(self, order: Order) -> Iterator[Report]:
        self._told = order.folder / "written"
        yield from super().render(order)


@pytest.mark.ray
def test_slow_storage_does_not_keep_the_other_ranks(ray_driver: str, tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 goes on to the film's end; did it wait for its preview, the other one would run out of time."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("longtake.jobs.gang.gang.Rank", _StoppedStorage)
    with _loaded(tiny_wan, ParallelConfig(collective_timeout=60, threads=1)) as gang:
        for event in gang.render(_order(tmp_path)):
            if isinstance(event, DecodeReport) and event.frames == event.num_frames:
                assert not (tmp_path / "preview.jpg").exists()
                (tmp_path / "written").touch()
        assert isinstance(event, TakeReport)
    assert {"film.mp4", "latents.safetensors", "thumbnail.jpg", "preview.jpg"} <= {path.name for path in tmp_path.iterdir()}


def test_the_rank_that_tells_most_of_the_cause_is_blamed() -> None:
    lost, raised, died = (Failure(rank, cause, cause.name) for rank, cause in ((2, Cause.LOST_EXCHANGE), (1, Cause.RAISED), (3, Cause.DIED)))
    later = Failure(0, Cause.DISK_FULL, "later")
    seats = [f"node {letter}" for letter in "abcd"]
    for heard, rank, cause, said in (
        ([lost], 2, "LOST_EXCHANGE", "Rank 2 failed"),
        ([lost, raised, later], 1, "RAISED", "Rank 1 failed"),
        ([lost, later, died], 3, "DIED", "Rank 3 (node d) died"),
    ):
        error = pickle.loads(pickle.dumps(gang_error(heard, "after step 4", 4, seats)))
        assert (error.rank, error.why, error.cause, error.step) == (rank, Cause[cause], cause, 4)
        assert str(error) == f"{said} after step 4: {cause}"


@pytest.mark.ray
def test_what_cannot_be_written_fails_the_take(ray_driver: str, tiny_wan: Path, tmp_path: Path) -> None:
    (tmp_path / "latents.safetensors").mkdir()
    with _loaded(tiny_wan, ParallelConfig(threads=1)) as gang:
        with pytest.raises(GangError, match=r"Rank 0 failed after step 6: IsADirectoryError") as failed:
            list(gang.render(_order(tmp_path)))
        assert (failed.value.rank, failed.value.step, failed.value.why) == (0, 6, Cause.RAISED)
        assert failed.value.cause.startswith("IsADirectoryError")


class _FailingRank(Rank):
    """Counts how often it loads. In the midst of a step of a take of that name, rank 1 `raises`; where the take `lingers`, rank 0 raises and
    the others stay in that step until rank 0 has left the process group.
    """

    def load(self, *args: Any) -> Loaded:
        self._loads = getattr(self, "_loads", 0) + 1
        return super().load(*args)

    def loads(self) -> int:
        return self._loads

    def render(self, order: Order) -> Iterator[Report]:
        calls, block = count(), self._renderer.family.transformer.blocks[1]

        def fail(*_: object) -> None:
            if next(calls) != 2:
                return
            if (order.take.name, self.rank) in (("raises", 1), ("lingers", 0)):
                raise ZeroDivisionError("in a block")
            while order.take.name == "lingers" and not self._left.exists():
                time.sleep(0.05)

        self._left = order.folder / "left"
        hook = block.register_forward_pre_hook(fail)
        try:
            yield from super().render(order)
        finally:
            hook.remove()

    def leave(self) -> None:
        super().leave()
        if self.rank == 0:
            self._left.touch()


@pytest.mark.ray
@pytest.mark.parametrize("degrees", [TWO, pytest.param(Degrees(cfg_degree=2, ring_degree=2), marks=pytest.mark.slow)], ids=str)
def test_a_gang_goes_on_after_a_failed_take(
    ray_driver: str, tiny_wan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, degrees: Degrees
) -> None:
    """Failed on one rank, on all of them, on rank 0 alone behind the last collective, and on rank 0 while the others are still at it; the next
    film is that of a fresh gang, without loading.
    """
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr("longtake.jobs.gang.gang.Rank", _FailingRank)
    films = []
    with _loaded(tiny_wan, ParallelConfig(threads=1), degrees) as gang:
        for failing, said in (
            ("raises", "Rank 1 failed after step .: ZeroDivisionError: in a block"),
            ("diverges", "not finite"),
            ("written", "Rank 0 failed after step 6: IsADirectoryError"),
            ("lingers", "Rank 0 failed after step .: ZeroDivisionError: in a block"),
            (None, ""),
        ):
            folder = tmp_path / str(failing)
            folder.mkdir()
            assert isinstance(list(gang.render(_order(folder, guidance_scale=4.0)))[-1], TakeReport)
            films.append((folder / "latents.safetensors").read_bytes())
            if failing is None:
                break
            with pytest.raises(GangError, match=said) as failed:
                (folder / "bad" / "latents.safetensors").mkdir(parents=True)
                list(gang.render(_order(folder / "bad", name=failing, guidance_scale=1e38 if failing == "diverges" else 4.0)))
            assert not failed.value.why.is_death
            assert gang.heal() == []
        assert films == films[:1] * 5
        actors = [member.actor for member in gang._members]
        ray.kill(actors[1])
        assert len(gang.heal()) == 1
        assert [member.actor == actor for member, actor in zip(gang._members, actors, strict=True)] == [rank != 1 for rank in range(len(actors))]
        assert ray.get([member.actor.loads.remote() for member in gang._members]) == [1] * degrees.num_ranks
        list(gang.render(_order(folder, guidance_scale=4.0)))
        assert (folder / "latents.safetensors").read_bytes() == films[0]


@pytest.mark.ray
def test_a_gang_whose_weights_are_shared_out_loads_them_again(ray_driver: str, tiny_wan: Path, tmp_path: Path) -> None:
    with Gang(TWO, ParallelConfig(threads=1), "cpu") as gang:
        gang.load(read_card(str(tiny_wan)), ModelOptions(shard="gang"), with_preview=True)
        assert [loaded.rank for loaded in gang.heal()] == [0, 1]
        assert isinstance(list(gang.render(_order(tmp_path)))[-1], TakeReport)


@pytest.mark.ray
def test_a_take_with_a_cache_is_reported_on(ray_driver: str, tiny_wan: Path, tmp_path: Path) -> None:
    recipe = load_recipe("interval")
    with _loaded(tiny_wan, ParallelConfig(threads=1)) as gang:
        *_, plain = gang.render(_order(tmp_path))
        assert not (tmp_path / "decisions.png").exists()
        *_, cached = gang.render(replace(_order(tmp_path, num_inference_steps=8), recipe=recipe))
    assert isinstance(plain, TakeReport)
    assert isinstance(cached, TakeReport)
    for report in (plain, cached):
        assert list(report.seconds) == ["encode", "denoise", "decode", "write"]
        assert all(seconds >= 0 for seconds in report.seconds.values())
    assert (plain.speedup, computed_share(plain.decisions)) == (None, 1.0)
    assert cached.speedup is not None
    assert cached.speedup > 0
    assert computed_share(cached.decisions) == cached.decisions["compute"] / 8 < 1
    trace = Trace.load(tmp_path / "trace.json")
    trace.plot(tmp_path / "again.png")
    assert (tmp_path / "decisions.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_a_call_that_is_computed_in_part_counts_as_half() -> None:
    assert computed_share({"compute": 2, "partial": 4, "reuse": 4}) == 0.4
    assert computed_share({"compute": 0, "reuse": 4}) == 0.0


@pytest.mark.ray
def test_running_out_of_memory_is_called_that(ray_driver: str, tiny_wan: Path, tmp_path: Path) -> None:
    message = r"failed after step 0: out of memory \(.*\); more ranks, model.offload=blocks"
    with _loaded(tiny_wan, ParallelConfig(threads=1)) as gang, pytest.raises(GangError, match=message):
        list(gang.render(_order(tmp_path, height=1 << 25, width=1 << 25)))


@pytest.mark.ray
def test_every_rank_is_ended_also_where_ray_cannot_end_one(ray_driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(actor: Any) -> None:
        raise RuntimeError("lost the cluster's head")

    gang = Gang(TWO, ParallelConfig(), "cpu").__enter__()
    seats = [member.seat for member in gang._members]
    assert gang.threads == (max(1, usable_cores() // 2),) * 2
    monkeypatch.setattr(ray, "kill", kill)
    gang.close()
    assert not any(psutil.pid_exists(seat.process) for seat in seats)


@pytest.mark.ray
def test_a_gang_is_spread_where_no_node_has_room_for_it_now(ray_driver: str) -> None:
    """Of two nodes one has room for one rank beside other work and one for two; threads are shared out by node."""
    node = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={ray_driver}", "--num-cpus=2", "--block"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    other_work = placement_group([{"CPU": 7}], strategy="STRICT_PACK", _soft_target_node_id=ray.get_runtime_context().get_node_id())
    try:
        assert other_work.wait(60)
        while sum(one["Alive"] for one in ray.nodes()) < 2 or ray.available_resources().get("CPU") != 3:
            assert node.poll() is None
            time.sleep(0.1)
        with Gang(Degrees(ulysses_degree=3), ParallelConfig(placement_timeout=30), "cpu") as gang:
            cores = usable_cores()
            assert sorted(gang.threads) == sorted((cores, max(1, cores // 2), max(1, cores // 2)))
    finally:
        remove_placement_group(other_work)
        node.terminate()
        node.wait(60)
        while sum(one["Alive"] for one in ray.nodes()) > 1:
            time.sleep(0.1)


def test_the_peak_is_that_of_the_take() -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not let a process forget its peak")
    grown = []
    for size in (100_000_000, 1_000_000):
        forget_peak("cpu")
        before = psutil.Process().memory_info().rss
        torch.ones(size)
        grown.append(peak_bytes("cpu") - before)
    assert grown[0] >= 0.9 * 400_000_000
    assert grown[1] <= 0.5 * 400_000_000
