"""A file is whole under its name, whatever writes it and whenever that is killed; what is left of it then is found by its name."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from longtake.cache import Cached, enable_cache
from longtake.files import partial_files, write_atomic, written_whole
from longtake.pipeline.film.stills import ContactSheet

from stock import tiny_transformer

OLD = b"what was there"
Writer = Callable[[Cached, Path], None]


def _sheet(_: Cached, path: Path) -> None:
    sheet = ContactSheet(1)
    sheet.add(torch.arange(64 * 64 * 3).remainder(251).byte().view(1, 64, 64, 3).numpy())
    sheet.save(path)


WRITERS: dict[str, Writer] = {
    "text.json": lambda _, path: write_atomic(path, "x" * 1000),
    "sheet.png": _sheet,
    "cache.safetensors": lambda cached, path: cached.save(path),
    "trace.json": lambda cached, path: cached.trace.save(path),
    "trace.png": lambda cached, path: cached.trace.plot(path),
}


@pytest.fixture(scope="module")
def cached() -> Cached:
    """With something to write."""
    transformer, inputs = tiny_transformer("wan")
    cached = enable_cache(transformer, "fbcache", num_inference_steps=4)
    with torch.no_grad():
        for step in range(3):
            with cached.step(step, 1000.0 - 250 * step):
                transformer(**inputs)
    return cached


def _killed_while_writing(work: Callable[[], None]) -> bool:
    """In a process that ends at the 64th byte of a file."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGXFSZ
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
        work()
    finally:
        os._exit(0)


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_that_is_killed_leaves_the_file_that_was_there(name: str, cached: Cached, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(OLD)
    assert _killed_while_writing(lambda: WRITERS[name](cached, path))
    assert path.read_bytes() == OLD
    left = {one for one in tmp_path.iterdir() if one != path}
    assert left == set(partial_files(tmp_path)), "a sweep finds what was left"
    WRITERS[name](cached, path)
    assert path.read_bytes() != OLD
    assert {one for one in tmp_path.iterdir() if one != path} == left


def test_a_writer_that_raises_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(OLD)
    with pytest.raises(OSError, match="full"), written_whole(tmp_path / "a.txt") as temporary:
        temporary.write_bytes(b"half")
        raise OSError("the disk is full")
    assert os.listdir(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == OLD
