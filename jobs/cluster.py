"""The Ray cluster that a job runs on: the one that this process uses already, the one that RAY_ADDRESS names, or one that is started here and
ended afterwards.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import services, worker

from .errors import AddressError, ClusterError
from .signals import STOPPING, Stopped, deaf_threads, restore, uninterrupted

logger = logging.getLogger(__name__)

STARTED_HERE = "started here"
_ANSWER_SECONDS = 5.0
_MEND_MISFIT = "use the cluster's own versions of Ray and Python and its token (RAY_AUTH_TOKEN), correct RAY_ADDRESS, or unset it"
_print_to_stdstream = worker.print_to_stdstream
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def ray_cluster(num_ranks: int) -> Iterator[str]:
    """Use the cluster that this process has joined already, and leave it as it is; or join the one that RAY_ADDRESS names, or start one here
    with at least a CPU a rank, and leave or end it afterwards. Gives where it is, in words.

    Raises AddressError, within seconds, where nobody answers or we are turned away, and ClusterError where none can be started.
    """
    where, is_own = _enter(num_ranks)
    try:
        yield where
    finally:
        if is_own:
            _leave()


class _Own:
    """The Ray that this process has joined or started for its jobs: the first of them makes it, the last one to end leaves or ends it."""

    lock = threading.Lock()
    jobs = 0
    where = ""
    ended = threading.Event()  # set once it has ended, see `_in_lasting_thread`


def _enter(num_ranks: int) -> tuple[str, bool]:
    """Where the cluster is, and whether it is our own to leave."""
    with _Own.lock:
        if not _Own.jobs:
            if ray.is_initialized():
                return f"the one in use already, at {ray.get_runtime_context().gcs_address}", False
            _Own.where = _connect(num_ranks)
        _Own.jobs += 1
        return _Own.where, True


def _to_log(data: dict[str, Any], ignore_prefix: bool) -> None:
    """In the place of Ray's own printing: what it says of a rank that died, a paragraph to guess from, would drown what we say of it."""
    logger.info("Ray: %s", " ".join(" ".join(data["lines"]).split()))


def _leave() -> None:
    with uninterrupted(), _Own.lock:
        _Own.jobs -= 1
        if not _Own.jobs:
            _shut_down()


def _shut_down() -> None:
    ray.shutdown()
    worker.print_to_stdstream = _print_to_stdstream
    _Own.ended.set()


def _connect(num_ranks: int) -> str:
    named = os.environ.get("RAY_ADDRESS", "")
    address = _resolve(named)
    worker.print_to_stdstream = _to_log
    try:
        with _handlers_kept():
            _start(num_ranks) if address is None else _join(named, address)
    except BaseException:
        with uninterrupted():
            _shut_down()
        raise
    return STARTED_HERE if address is None else f"at {named}"


def usable_cores() -> int:
    """CPU cores that this process may use: fewer than the machine has where a scheduler (affinity) or a container (quota) says so."""
    cores = len(os.sched_getaffinity(0))
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, period = quota.read_text().split() if quota.is_file() else ("max", "0")
    return cores if limit == "max" else max(1, min(cores, int(limit) // int(period)))


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keeps our signal handlers in place, around ray.init. Ray sets handlers of its own for SIGTERM: first one that ends the process by
    SystemExit, then one that prints a stack trace and aborts three seconds later; and it does not put ours back. So they are set again at
    the end of the block. Until then signals are blocked, and in the threads that Ray starts they stay so. A signal that comes while the
    cluster's processes are started raises Stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    start_ray_process = services.start_ray_process

    def start_unblocked(*args: Any, **kwargs: Any) -> Any:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # the new process inherits the mask, and SIGTERM must be able to end it
        try:
            return start_ray_process(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)

    services.start_ray_process = start_unblocked
    try:
        yield
    except SystemExit:
        raise Stopped from None
    finally:
        services.start_ray_process = start_ray_process
        restore(before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start(num_ranks: int) -> None:
    start = partial(ray.init, address="local", num_cpus=max(usable_cores(), num_ranks), include_dashboard=False, **_QUIET)
    try:
        start() if threading.current_thread() is threading.main_thread() else _in_lasting_thread(start)
    except Exception as error:
        raise ClusterError(f"Ray cannot be started on this machine: {' '.join(str(error).split())}") from error


def _in_lasting_thread(start: Callable[[], object]) -> None:
    """Start Ray from a thread that lives as long as Ray does: Linux kills the cluster's processes as soon as the thread that started them ends
    (PR_SET_PDEATHSIG), and this thread's job may be done before those of others that share the cluster.
    """
    started, _Own.ended = Future[None](), threading.Event()

    def last(ended: threading.Event) -> None:
        try:
            start()
        except BaseException as error:
            started.set_exception(error)
        else:
            started.set_result(None)
            ended.wait()

    threading.Thread(target=last, args=(_Own.ended,), daemon=True, name="ray-cluster").start()
    started.result()


def _join(named: str, address: str) -> None:
    try:
        ray.init(address=address, **_QUIET)
    except Exception as error:
        reason = " ".join(str(error).split())  # Ray names versions that do not fit on lines of their own
        raise AddressError(f"RAY_ADDRESS is '{named}', but its cluster cannot be joined ({reason})", _MEND_MISFIT) from error


def _resolve(named: str) -> str | None:
    """host:port of the cluster that RAY_ADDRESS names, as ray.init would find it; None for a new one."""
    if "://" in named:
        raise AddressError(
            f"RAY_ADDRESS is '{named}', which is not a cluster's own address (http:// is its dashboard's, for `ray job submit`, "
            f"ray:// its client server's)"
        )
    if not named or named == "local":
        return None
    try:
        address = services.canonicalize_bootstrap_address(named)
        assert address is not None
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        reason = str(error).partition(". ")[0]
        raise AddressError(f"RAY_ADDRESS is '{named}', but no Ray cluster answers there ({reason})") from None
    if silence := _silence(address):
        raise AddressError(f"RAY_ADDRESS is '{named}', but what answers there is no Ray cluster ({silence})")
    return address


def _silence(address: str) -> str:
    """Why what listens at `address` is no Ray cluster; empty if it is one. Without this ray.init would go on asking for a quarter of an hour."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return ""  # only ray.init has the certificates to ask over TLS
    with deaf_threads(), grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=_ANSWER_SECONDS)
        except grpc.RpcError as error:
            return str(error.code().name).lower().replace("_", " ")
    return ""
