"""What needs a GPU: `python -m longtake.bench.gpu parallel`. Random weights; times are medians of interleaved rounds.

parallel: attention at the shapes of Wan 2.1 1.3B (480p) and 14B (720p), 81 frames, bf16: diffusers' backends, torch's flash kernel with
its log-sum-exp, as a ring uses it, and xfuser's kernel where it is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from ..parallel.attention.kernels import Kernel, NativeKernel, XfuserKernel
from .results import write_results

_SHAPES = {"Wan 1.3B, 480x832": (21 * 30 * 52, 12, 128), "Wan 14B, 720x1280": (21 * 45 * 80, 40, 128)}
_ROUNDS = 7


def parallel() -> None:
    seconds: dict[str, dict[str, float]] = {}
    for shape, (tokens, heads, head_dim) in _SHAPES.items():
        query, key, value = (torch.randn(1, tokens, heads, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(3))
        inputs = (query, key, value, None, None)
        kernels: dict[str, Kernel] = {"native": NativeKernel()}
        try:
            kernels["xfuser"] = XfuserKernel()
        except ValueError as error:
            print(error)
        ways: dict[str, Callable[[], object]] = {f"{name} with lse": partial(kernel.with_lse, *inputs) for name, kernel in kernels.items()}
        ways["native"] = partial(kernels["native"], *inputs)
        seconds[shape] = _time(ways)
        print(shape, {name: f"{spent * 1e3:.2f} ms" for name, spent in seconds[shape].items()})
    write_results("gpu_parallel", {}, {"seconds": seconds})


def _time(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + _ROUNDS):
        for name, call in ways.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: median(rounds[1:]) for name, rounds in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("parallel",))
    parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    with torch.no_grad():
        parallel()


if __name__ == "__main__":
    main()
