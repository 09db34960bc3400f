"""How far two films are apart, in PSNR and SSIM. Knows frames and film files; knows nothing of models or jobs.

Streams: two frames are in memory at a time, besides the chunks in which they come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.image import structural_similarity_index_measure

from .read import read_frames

MIN_SIDE = 11  # pixels: SSIM's Gaussian window


@dataclass(frozen=True)
class Comparison:
    """psnr: dB, from the mean squared error over all frames (inf where equal). ssim: mean over the frames. worst_*: the frame of least PSNR."""

    num_frames: int
    psnr: float
    ssim: float
    worst_psnr: float
    worst_frame: int


def compare_films(a: Path, b: Path) -> Comparison:
    """Compares two film files frame by frame, in RGB.

    Raises ValueError with the path for a missing or unreadable file, and with both where sizes or lengths differ.
    """
    with closing(read_frames(a)) as frames_a, closing(read_frames(b)) as frames_b:
        return _compare(frames_a, frames_b, names=(str(a), str(b)))


def compare_frames(a: Iterable[NDArray[np.uint8]], b: Iterable[NDArray[np.uint8]]) -> Comparison:
    """Compares two streams of chunks, uint8 RGB [n, height, width, 3]; n may differ from chunk to chunk and between both sides.

    Raises ValueError naming both where sizes or lengths differ, for no frames at all, and for sides below MIN_SIDE.
    """
    return _compare(a, b, names=("a", "b"))


def _compare(a: Iterable[NDArray[np.uint8]], b: Iterable[NDArray[np.uint8]], names: tuple[str, str]) -> Comparison:
    errors: list[float] = []
    similarity = 0.0
    lengths = [0, 0]
    for pair in zip_longest(_single(a, names[0]), _single(b, names[1])):
        lengths = [length + (frame is not None) for length, frame in zip(lengths, pair, strict=True)]
        if pair[0] is None or pair[1] is None:
            continue  # the rest of the longer one is only counted
        _check_sizes(pair[0], pair[1], names)
        errors.append(_mean_squared_error(*pair))
        similarity += _ssim(*pair)
    if lengths[0] != lengths[1]:
        raise ValueError(f"{names[0]} has {lengths[0]} frames, {names[1]} has {lengths[1]}; compare films of one length")
    if not errors:
        raise ValueError(f"{names[0]} and {names[1]} have no frames; there is nothing to compare")
    worst = max(range(len(errors)), key=errors.__getitem__)
    return Comparison(
        num_frames=len(errors),
        psnr=_decibels(math.fsum(errors) / len(errors)),
        ssim=similarity / len(errors),
        worst_psnr=_decibels(errors[worst]),
        worst_frame=worst,
    )


def _single(chunks: Iterable[NDArray[np.uint8]], name: str) -> Iterator[NDArray[np.uint8]]:
    """Yields the frames, [height, width, 3], of chunks of any length."""
    for chunk in chunks:
        if chunk.ndim != 4 or chunk.shape[-1] != 3 or chunk.dtype != np.uint8:
            raise ValueError(f"{name}: a chunk is {chunk.dtype} {list(chunk.shape)}; give uint8 [n, height, width, 3]")
        yield from chunk


def _check_sizes(a: NDArray[np.uint8], b: NDArray[np.uint8], names: tuple[str, str]) -> None:
    if a.shape != b.shape:
        sizes = [f"{frame.shape[1]}x{frame.shape[0]}" for frame in (a, b)]
        raise ValueError(f"{names[0]} is {sizes[0]}, {names[1]} is {sizes[1]}; compare films of one size")
    if min(a.shape[:2]) < MIN_SIDE:
        raise ValueError(f"frames are {a.shape[1]}x{a.shape[0]}: SSIM needs sides of at least {MIN_SIDE} pixels")


def _mean_squared_error(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    difference = a.astype(np.int32) - b
    return float(np.square(difference).sum(dtype=np.int64) / difference.size)


def _ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    # float32 may be off by 2e-4 on flat areas (variances are small differences of large squares); float64 takes ten times as long.
    first, second = (torch.from_numpy(frame.astype(np.float32)).permute(2, 0, 1)[None] for frame in (a, b))
    value = structural_similarity_index_measure(first, second, data_range=255.0)
    assert isinstance(value, torch.Tensor)
    return float(value)


def _decibels(mean_squared_error: float) -> float:
    """PSNR of 8-bit values."""
    return 10 * math.log10(255**2 / mean_squared_error) if mean_squared_error else math.inf
