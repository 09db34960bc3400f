"""Who may write into a job's folder: tried before anything is loaded, and locked while a take is written."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path


class JobRefused(ValueError):
    """A check failed that could be made only once the job was begun: it needs the cluster, or locks on the takes' folders."""


def check_writable(output: Path, folders: Sequence[Path]) -> None:
    """Make the output folder, and try to write into it and into the takes' folders that exist. Raises ValueError if that fails."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for folder in (output, *(folder for folder in folders if os.path.lexists(folder))):  # a link may lead nowhere
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".partial"):
                pass
    except OSError as error:
        where = Path(error.filename).parent if error.filename and str(error.filename).endswith(".partial") else output
        raise ValueError(f"Cannot write to the output folder '{where}' ({os.strerror(error.errno or 0)}); choose another `output`.") from None


@contextmanager
def locked(folders: Sequence[Path]) -> Iterator[None]:
    """Inside the block no other job writes into these takes' folders. Raises JobRefused, naming the other job, if one does already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # a lock is an open file, and a job may have thousands of takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(_lock(folder))
        yield


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """A lock on an open file: it ends with the process, however that ends."""
    path = folder.with_name(f".{folder.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise JobRefused(f"'{folder}' is being written by another job ({other}); wait until it has ended, or set another output.") from None
        except OSError as error:
            os.close(descriptor)
            raise JobRefused(f"Cannot lock '{folder}' ({error.strerror}); choose an `output` on a file system that has locks.") from None
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            break
        os.close(descriptor)  # its last holder removed the file before we had the lock
    try:
        os.ftruncate(descriptor, 0)
        began = datetime.now(UTC).isoformat(timespec="seconds")
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {began}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
