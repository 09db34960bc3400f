"""A take's folder: nobody else writes there, nothing is overwritten, and at whatever line a job is killed no manifest tells of another film."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from longtake.files import partial_files, write_atomic
from longtake.jobs.folder.access import JobRefused, locked
from longtake.jobs.folder.folder import FILM, GROWING, ROUNDS, SNAPSHOTS, Todo, deliver_again, look, make_room, publish, stage, sweep
from longtake.jobs.folder.manifest import Manifest, read_manifest
from longtake.pipeline.film.read import probe
from longtake.pipeline.film.write import FilmWriter
from longtake.pipeline.film_key import delivery_key
from pydantic import ValidationError

FPS = Fraction(16)


def manifest(key: str, fps: Fraction = FPS, state: Literal["done", "stopped"] = "done") -> Manifest:
    return Manifest(
        take="a",
        state=state,
        film_key=key,
        delivery_key=delivery_key(fps),
        seed=1,
        config={"fps": str(fps)},
        recipe=None,
        ranks=1,
        threads=1,
        device="cpu",
        versions={},
        seconds={},
        decisions={},
        cache_bytes=0,
        peak_memory_bytes=0,
        finished="2026-11-26T00:00:00+00:00",
    )


def render(folder: Path, key: str) -> None:
    """As the driver and rank 0 do it, with the key for a film."""
    make_room(folder, goes_on=False)
    write_atomic(folder / "preview.jpg", "a preview")
    staging = stage(folder)
    for name in ("latents.safetensors", "trace.json", FILM, "thumbnail.jpg"):
        write_atomic(staging / name, key)
    publish(staging, folder, manifest(key))


_CHANGES = ("mkdir", "open", "rename", "replace", "rmdir", "unlink")


def killed_at(point: int, work: Callable[[], None]) -> bool:
    """Do it in a process that is killed at its `point`-th change of a file or folder; whether it came that far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = point

    def fatal(change: Callable[..., object]) -> Callable[..., object]:
        def changed(*args: object, **kwargs: object) -> object:
            nonlocal left
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return change(*args, **kwargs)

        return changed

    for name in _CHANGES:
        setattr(os, name, fatal(getattr(os, name)))
    try:
        work()
    finally:
        os._exit(0)


def test_a_manifest_lies_beside_its_film_wherever_a_job_is_killed(tmp_path: Path) -> None:
    for point in range(100):
        folder = tmp_path / str(point) / "a"
        render(folder, "first" * 8)
        was_killed = killed_at(point, partial(render, folder, "second" * 8))
        beside = [path for path in folder.parent.iterdir() if path.is_dir()]
        for one in beside:
            told = read_manifest(one)
            if told is not None:
                assert (one / FILM).read_text() == told.film_key, f"killed at change {point}"
        assert "first" * 8 in {(one / FILM).read_text() for one in beside if (one / FILM).exists()}, f"lost at change {point}"
        render(folder, "second" * 8)
        assert look(folder, "second" * 8, delivery_key(FPS), True, False) is Todo.NOTHING
        assert not partial_files(folder)
        if not was_killed:
            break
    assert point > 8, "nothing was killed"
    assert not was_killed


def film(folder: Path, num_frames: int = 5) -> None:
    make_room(folder, goes_on=False)
    staging = stage(folder)
    frames = np.broadcast_to(np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * 20, (num_frames, 32, 32, 3))
    with FilmWriter(staging / FILM, width=32, height=32, fps=FPS) as written:
        written.write(frames)
    publish(staging, folder, manifest("key"))


def test_a_manifest_claims_no_frame_rate_that_its_film_has_not(tmp_path: Path) -> None:
    new = Fraction(24000, 1001)
    for point in range(100):
        folder = tmp_path / str(point) / "a"
        film(folder)
        was_killed = killed_at(point, partial(deliver_again, folder, new, delivery_key(new)))
        told = read_manifest(folder)
        assert told is not None
        claimed = {delivery_key(fps): float(fps) for fps in (FPS, new)}.get(told.delivery_key)
        assert claimed in (None, probe(folder / FILM).fps), f"killed at change {point}"
        assert (look(folder, "key", delivery_key(new), False, False) is Todo.NOTHING) == (claimed == float(new))
        deliver_again(folder, new, delivery_key(new))
        assert look(folder, "key", delivery_key(new), False, False) is Todo.NOTHING
        assert probe(folder / FILM).fps == pytest.approx(float(new))
        assert probe(folder / FILM).num_frames == 5
        assert not partial_files(folder)
        if not was_killed:
            break
    assert point > 3, "nothing was killed"
    assert not was_killed


def test_what_lay_in_a_folder_is_kept_under_a_free_name(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    render(folder, "k" * 40)
    names = []
    for _ in range(3):
        render(folder, "k" * 40)
        names.append({path.name for path in tmp_path.iterdir()})
    assert names[-1] == {"a", "a@kkkkkkkk", "a@kkkkkkkk-2", "a@kkkkkkkk-3"}
    (folder / "manifest.json").unlink()
    aside = make_room(folder, goes_on=True)
    assert aside == tmp_path / "a@unfinished"
    assert (aside / FILM).read_text() == "k" * 40
    for name in ("preview.jpg", GROWING):
        (folder / name).write_text("of a take that was stopped")
    for name in (ROUNDS, SNAPSHOTS):
        (folder / name).mkdir()
    assert make_room(folder, goes_on=True) is None
    assert sorted(path.name for path in folder.iterdir()) == ["preview.jpg", ROUNDS, SNAPSHOTS]
    assert make_room(folder, goes_on=False) == tmp_path / "a@unfinished-2"
    assert not list(folder.iterdir())


def test_a_folder_tells_what_is_left_to_do(tmp_path: Path) -> None:
    folder, delivery = tmp_path / "a", delivery_key(FPS)
    assert look(folder, "key", delivery, False, False) is Todo.RENDER
    film(folder)
    assert look(folder, "key", delivery, False, False) is Todo.NOTHING
    assert look(folder, "key", delivery_key(Fraction(24)), False, False) is Todo.DELIVER
    assert look(folder, "key", delivery_key(Fraction(24)), True, False) is Todo.KEEP_LATENTS
    assert look(folder, "other", delivery, False, False) is Todo.RENDER
    assert look(folder, "key", delivery, False, True) is Todo.RENDER
    manifest("key", state="stopped").write(folder)
    assert look(folder, "key", delivery, False, False, stops_on_drift=True) is Todo.STOPPED
    assert look(folder, "key", delivery, False, False) is Todo.RENDER, "on_drift=mark goes on"
    assert look(folder, "key", delivery, False, True, stops_on_drift=True) is Todo.RENDER
    assert look(folder, "key", delivery_key(Fraction(24)), False, False, stops_on_drift=True) is Todo.RENDER, "limits count in seconds"
    (folder / FILM).unlink()
    assert look(folder, "key", delivery, False, False) is Todo.RENDER
    (folder / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="no manifest that this version can read"):
        look(folder, "key", delivery, False, False)
    with pytest.raises(ValidationError):
        Manifest.model_validate({})


def test_two_jobs_do_not_write_the_same_take(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    with locked([a, b]):
        with pytest.raises(JobRefused, match=f"'{b}' is being written by another job .process {os.getpid()} on .*, since 20"), locked([c, b]):
            pass
        with locked([c]):
            pass
    with locked([a, b, c]):
        pass
    assert not list(tmp_path.iterdir()), "locks leave nothing"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            with locked([tmp_path / "a"]):
                os.write(write, b"locked")
                time.sleep(100)
        finally:
            os._exit(1)
    assert os.read(read, 6) == b"locked"
    with pytest.raises(JobRefused, match=f"process {child} "), locked([tmp_path / "a"]):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked([tmp_path / "a"]):
        pass


def test_sweeping_removes_what_writers_left_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    film(folder)
    kept = sorted(folder.iterdir())
    (stage(folder) / "film.mp4").write_text("half")
    (folder / ".film.0a1b2c3d.partial.mp4").write_text("half")
    (folder / ".film.partial.mp4").write_text("of an earlier version")
    sweep(folder)
    assert sorted(folder.iterdir()) == kept
