"""Takes that are broken off: what is tried again, what a take goes on from, and that the film is the same."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import ray
import torch
from longtake.files import remove
from longtake.jobs.control.policy import Answer, Policy
from longtake.jobs.control.queue import TakeQueue
from longtake.jobs.control.unfinished import goes_on, is_own
from longtake.jobs.events import Event, GangFormed, JobEnded, JobState, Note, Stepped, TakeChanged, TakeState
from longtake.jobs.folder.folder import ROUNDS, SNAPSHOTS, Todo
from longtake.jobs.gang.failures import Cause, cause_of
from longtake.jobs.rendering import JobFailed, Rendering
from longtake.jobs.settings.config import RetryConfig, load_job
from longtake.jobs.settings.plan import PlannedTake
from longtake.jobs.settings.planning import plan_job
from longtake.parallel.groups.errors import CollectiveError
from longtake.pipeline.film.write import EncodingError
from longtake.pipeline.kept_rounds import KeptRounds
from longtake.pipeline.loop.generations import SnapshotError, newest
from longtake.pipeline.loop.render import Renderer
from safetensors.torch import load_file

from same import assert_same
from takes import tiny_take

STEPS = 12
TAKE = {"name": "one", "prompt": "a red circle moves left", "seed": 1, "num_frames": 33}
WINDOWS = {"name": "windows", "window": 17, "overlap": 8}
ROLLOUT = {"name": "rollout", "window": 17, "overlap": 8, "anchors": 1}
KEEPS: dict[str, Any] = {"recipe": "fbcache", "trigger": {"threshold": 0.2}}


def _job(model: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """With snapshots as often as they may be."""
    job = {
        "model": str(model),
        "output": str(output),
        "num_inference_steps": STEPS,
        "guidance_scale": 4.0,
        "timeline": WINDOWS,
        "cache": KEEPS,
        "parallel": {"ulysses_degree": 2, "threads": 1},
        "save_latents": True,
        "snapshot_every": 1e-6,
        "takes": [TAKE],
    }
    return {**job, **changes}


def _latents(output: Path) -> torch.Tensor:
    return load_file(output / "one" / "latents.safetensors")["latents"]


def _ranks() -> list[psutil.Process]:
    """On clusters that this session has started."""
    return [process for process in psutil.Process().children(recursive=True) if "ray::Rank" in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _after(step: int, act: Callable[[], object], job: dict[str, Any]) -> list[Event]:
    """All events of the job, whether it fails or not; `act` is called once, after that step."""
    events: list[Event] = []
    with suppress(JobFailed):
        for event in Rendering(job):
            if isinstance(event, Stepped) and event.step == step and not any(isinstance(one, Stepped) and one.step == step for one in events):
                act()
            events.append(event)
    return events


def _kill_one() -> None:
    os.kill(max(_ranks(), key=lambda process: process.pid).pid, signal.SIGKILL)


def _states(events: list[Event]) -> list[TakeState]:
    return [event.state for event in events if isinstance(event, TakeChanged)]


@pytest.mark.ray
@pytest.mark.parametrize("timeline", [WINDOWS, ROLLOUT], ids=["windows", "rollout"])
def test_a_take_goes_on_after_a_rank_was_killed(ray_cluster: str, tiny_wan: Path, tmp_path: Path, timeline: dict[str, Any]) -> None:
    """From its last snapshot, on the rank that lives and a new one: to the bit the film of a job that nothing happened to."""
    undisturbed = list(Rendering(_job(tiny_wan, tmp_path / "undisturbed", timeline=timeline)))
    half = max(event.step for event in undisturbed if isinstance(event, Stepped)) // 2 + 2
    events = _after(half, _kill_one, _job(tiny_wan, tmp_path / "out", timeline=timeline))
    assert _states(events) == [TakeState.WAITING, TakeState.RUNNING, TakeState.WAITING, TakeState.RUNNING, TakeState.DONE]
    [broken] = [event for event in events if isinstance(event, TakeChanged) and event.limit]
    assert (broken.count, broken.limit) == (1, 3)
    assert "(node " in broken.cause
    assert " died after step " in broken.cause
    [healed] = [event.text for event in events if isinstance(event, Note) and "whole again" in event.text]
    assert "2 rank(s), 1 of them new" in healed
    [back] = [(before.step, after.step) for before, after in pairwise(e for e in events if isinstance(e, Stepped)) if after.step <= before.step]
    assert 1 < back[1] <= back[0] + 1, "it goes on from a snapshot, not from its start"
    assert torch.equal(_latents(tmp_path / "out"), _latents(tmp_path / "undisturbed"))
    assert not (tmp_path / "out" / "one" / SNAPSHOTS).exists()


@pytest.mark.ray
def test_without_retries_the_next_take_is_rendered_by_a_whole_gang(ray_cluster: str, tiny_wan: Path, tmp_path: Path) -> None:
    takes = [TAKE, {**TAKE, "name": "two"}]
    events = _after(4, _kill_one, _job(tiny_wan, tmp_path, takes=takes, retries={"take": 0}))
    [failed] = [event for event in events if isinstance(event, TakeChanged) and event.state is TakeState.FAILED]
    assert failed.take == "one"
    assert failed.cause.endswith("(retries.take is 0)")
    assert isinstance(events[-1], JobEnded)
    assert events[-1].state is JobState.FAILED
    assert (tmp_path / "two" / "manifest.json").exists()


@pytest.mark.ray
def test_the_same_command_goes_on_after_the_driver_was_killed(ray_cluster: str, tiny_wan: Path, tmp_path: Path) -> None:
    changes = {"num_inference_steps": 200}
    list(Rendering(_job(tiny_wan, tmp_path / "undisturbed", **changes)))
    job = _job(tiny_wan, tmp_path / "out", **changes)
    program = f"from longtake import render; render({job!r})"
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder, deadline = tmp_path / "out" / "one" / SNAPSHOTS, time.monotonic() + 240
    while (found := newest(folder)) is None or found.step < 3:
        assert driver.poll() is None
        assert time.monotonic() < deadline, "no snapshot within 240 s"
        time.sleep(0.02)
    ranks = _ranks()
    driver.kill()
    driver.wait()
    assert not psutil.wait_procs(ranks, timeout=60)[1], "ranks outlive their driver"
    assert not (tmp_path / "out" / "one" / "film.mp4").exists(), "the take was done before it could be broken off"
    events = list(Rendering(job))
    first = next(event.step for event in events if isinstance(event, Stepped))
    assert first > 3
    assert f"take 'one' goes on after step {first - 1} of 200" in [event.text for event in events if isinstance(event, Note)]
    assert torch.equal(_latents(tmp_path / "out"), _latents(tmp_path / "undisturbed"))


@pytest.mark.ray
def test_a_gang_that_lost_a_node_for_good_goes_on_smaller(ray_driver: str, tiny_wan: Path, tmp_path: Path) -> None:
    """Two ranks on one node and one on another, which goes; the first has no room for a third rank."""
    node = subprocess.Popen(
        [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={ray_driver}", "--num-cpus=1", "--block"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    here = ray.get_runtime_context().get_node_id()
    other_work = ray.util.placement_group([{"CPU": 6}], strategy="STRICT_PACK", _soft_target_node_id=here)
    try:
        assert other_work.wait(60)
        while sum(one["Alive"] for one in ray.nodes()) < 2 or ray.available_resources().get("CPU") != 3:
            assert node.poll() is None
            time.sleep(0.1)
        job = _job(tiny_wan, tmp_path, parallel={"ulysses_degree": 3, "threads": 1, "placement_timeout": 30})
        events = _after(5, lambda: psutil.Process(node.pid).kill(), job)
    finally:
        ray.util.remove_placement_group(other_work)
        node.kill()
        node.wait(60)
        while sum(one["Alive"] for one in ray.nodes()) > 1:
            time.sleep(0.1)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert any("the gang goes on with 2 rank(s)" in text for text in notes), notes
    assert any("goes on after step" in text for text in notes), notes
    plan = plan_job(load_job(job))
    assert_same(_latents(tmp_path), Renderer(plan.card).render(plan.takes[0].take, plan.recipe).latents)


def _planned(name: str, priority: int = 50) -> PlannedTake:
    return PlannedTake(tiny_take(name=name), Path(name), "", Todo.RENDER, priority=priority)


def test_takes_are_begun_by_priority_and_then_as_they_are_written() -> None:
    takes = [_planned("a"), _planned("b", 70), _planned("c"), _planned("d", 70), _planned("e", 0)]
    queue, names = TakeQueue(takes), list[str]()
    while (planned := queue.next()) is not None:
        names.append(planned.take.name)
        if names == ["b", "d", "a"]:
            queue.put_back(planned)
        else:
            queue.done()
    assert names == ["b", "d", "a", "a", "c", "e"], "what is put back is begun at its place"
    assert len(queue) == 0


def test_a_gang_waits_while_a_take_may_come_back() -> None:
    queue = TakeQueue([_planned("a")])
    first, found = queue.next(), list[PlannedTake | None]()
    assert first is not None
    for come_back, wanted in ((lambda: queue.put_back(first), first), (queue.done, None)):
        other = Thread(target=lambda: found.append(queue.next()))
        other.start()
        other.join(0.2)
        assert other.is_alive(), "it was told that there is nothing left, or got a take that is another's"
        come_back()
        other.join(10)
        assert found.pop() is wanted
    queue.put_back(first)
    queue.close()
    assert queue.next() is None


@pytest.mark.ray
def test_two_gangs_share_the_takes(ray_cluster: str, tiny_wan: Path, tmp_path: Path) -> None:
    """One of them loses its rank on the way, and the other goes on meanwhile; each film is that of a gang alone."""
    priorities = {"a": 0, "b": 10, "c": 90, "d": 50}
    takes = [{**TAKE, "name": name, "seed": number, "priority": priorities[name]} for number, name in enumerate(priorities)]
    one_rank = {"num_ranks": 1, "threads": 1}
    list(Rendering(_job(tiny_wan, tmp_path / "alone", takes=takes, parallel=one_rank)))
    events = _after(5, _kill_one, _job(tiny_wan, tmp_path / "out", takes=takes, parallel={**one_rank, "num_gangs": 2}))
    begun = [(event.take, event.gang) for event in events if isinstance(event, TakeChanged) and event.state is TakeState.RUNNING]
    assert {take for take, _ in begun[:2]} == {"c", "d"}
    assert {gang for _, gang in begun[:2]} == {1, 2}
    assert len(begun) == 5, "one of them twice"
    assert [event.gang for event in events if isinstance(event, GangFormed)].count(1) == 1
    for name in "abcd":
        ours, theirs = ((tmp_path / run / name / "latents.safetensors").read_bytes() for run in ("out", "alone"))
        assert ours == theirs, name


def test_causes_are_told_by_the_error() -> None:
    for error, cause in (
        (CollectiveError("sum"), Cause.LOST_EXCHANGE),
        (MemoryError(), Cause.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), Cause.OUT_OF_MEMORY),
        (OSError(errno.ENOSPC, "No space left on device"), Cause.DISK_FULL),
        (EncodingError("ffmpeg ended. Its last lines: No space left on device"), Cause.DISK_FULL),
        (OSError(errno.ESTALE, "Stale file handle"), Cause.STORE_AWAY),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), Cause.RAISED),
        (SnapshotError("damaged"), Cause.BAD_SNAPSHOT),
        (ValueError("height"), Cause.BAD_INPUT),
        (FloatingPointError("not finite"), Cause.BAD_INPUT),
        (ZeroDivisionError(), Cause.RAISED),
    ):
        assert cause_of(error) is cause


def _answers(policy: Policy, *causes: tuple[str, Cause]) -> list[Answer]:
    return [policy.decide(take, cause).answer for take, cause in causes]


def test_retries_are_counted_by_take_and_by_job() -> None:
    policy = Policy(RetryConfig(take=2, job=3), can_offload=False)
    died = [(take, Cause.DIED) for take in ("one", "one", "one", "two", "two")]
    assert _answers(policy, *died) == [Answer.RETRY, Answer.RETRY, Answer.FAIL, Answer.RETRY, Answer.FAIL]
    assert policy.decide("three", Cause.HUNG).why == "the job's 3 retries are used up"
    assert policy.decide("three", Cause.PREEMPTED).answer is Answer.RETRY, "preemptions have a budget of their own"


def test_what_cannot_help_is_not_tried() -> None:
    policy = Policy(RetryConfig(preemptions=1), can_offload=True)
    assert policy.decide("one", Cause.BAD_INPUT).answer is Answer.FAIL
    for cause, answers in (
        (Cause.OUT_OF_MEMORY, [Answer.OFFLOAD, Answer.FAIL]),
        (Cause.BAD_SNAPSHOT, [Answer.AFRESH, Answer.RETRY]),
        (Cause.PREEMPTED, [Answer.RETRY, Answer.FAIL]),
    ):
        assert _answers(policy, ("one", cause), ("one", cause)) == answers
    assert policy.decide("two", Cause.BAD_SNAPSHOT).answer is Answer.AFRESH
    assert Policy(RetryConfig(), can_offload=False).decide("one", Cause.OUT_OF_MEMORY).answer is Answer.FAIL


@pytest.mark.parametrize("cause", [Cause.DISK_FULL, Cause.STORE_AWAY])
def test_storage_is_waited_for_so_long(cause: Cause) -> None:
    policy, waited = Policy(RetryConfig(wait_minutes=3), can_offload=False), list[float]()
    while (verdict := policy.decide("one", cause)).answer is Answer.WAIT:
        waited.append(verdict.seconds)
    assert waited[0] < 10, "a short outage costs little"
    assert (verdict.answer, sum(waited), max(waited)) == (Answer.FAIL, 180, 60)
    again = Policy(RetryConfig(wait_minutes=3), can_offload=False)
    again.decide("one", cause)
    again.succeeded("one")
    assert again.decide("one", cause).seconds == waited[0]


def test_a_take_goes_on_from_what_is_its_own_alone(tiny_wan: Path, tmp_path: Path) -> None:
    """A snapshot that is older than a finished round is removed; what is of another film is not gone on from."""
    job = load_job(_job(tiny_wan, tmp_path, timeline=ROLLOUT, cache="none"))
    plan = plan_job(job)
    [planned] = plan.takes
    folder, renderer = planned.folder / SNAPSHOTS, Renderer(plan.card)
    planned.folder.mkdir()

    def interrupt(num_steps: int, **rounds: Any) -> None:
        steps = renderer.steps(planned.take, None, film_key=planned.film_key, **rounds)
        for _ in range(num_steps):
            next(steps)
        renderer.save(folder)
        steps.close()

    kept = KeptRounds(planned.folder / ROUNDS, planned.rounds)
    interrupt(STEPS + 4, kept=kept)  # one of what comes is the finished round
    assert is_own(plan, planned)
    found = goes_on(plan, planned, None)
    assert (found.has_snapshot, found.text) == (True, f"take 'one' goes on after step {STEPS + 3} of {planned.take.num_steps(plan.card)}")
    other = plan_job(load_job(_job(tiny_wan, tmp_path, timeline=ROLLOUT, cache="none", takes=[{**TAKE, "seed": 4}])))
    assert kept.count() == 1
    interrupt(3)
    found = goes_on(plan, planned, None)
    assert (found.has_snapshot, folder.exists()) == (False, False), "the round behind it is done"
    assert "1 of " in found.text
    assert not is_own(other, other.takes[0]), "its first round is another one"
    remove(planned.folder / ROUNDS)
    assert is_own(other, other.takes[0])
    interrupt(3)
    assert not is_own(other, other.takes[0])
