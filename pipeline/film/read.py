"""Reading film files back: their properties and their frames. Knows containers and colour matrices; knows nothing of how films are written."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

# Without the last two flags swscale rounds down on the way to RGB: pictures come back one level darker.
_TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclass(frozen=True)
class FilmInfo:
    """What a film file says of itself. Sizes in pixels, fps in frames a second; num_frames is counted, not read from the header.

    The colour fields are the code points of ITU-T H.273 (1 is BT.709, 2 is unspecified); color_range is 1 for tv, 2 for full, 0 for untagged.
    """

    width: int
    height: int
    num_frames: int
    fps: float
    codec: str
    pixel_format: str
    color_space: int
    color_primaries: int
    color_trc: int
    color_range: int
    metadata: dict[str, str]


def probe(path: Path) -> FilmInfo:
    """Reads a film's properties; decodes all of it, so that the count is exact and a damaged film is found.

    Raises ValueError with the path for a missing or unreadable file.
    """
    with open_film(path) as (container, stream):
        num_frames = sum(1 for _ in container.decode(stream))
        context = stream.codec_context
        return FilmInfo(
            width=context.width,
            height=context.height,
            num_frames=num_frames,
            fps=float(stream.average_rate or 0),
            codec=context.name,
            pixel_format=context.pix_fmt or "",
            color_space=int(context.colorspace),
            color_primaries=int(context.color_primaries),
            color_trc=int(context.color_trc),
            color_range=int(context.color_range),
            metadata=dict(container.metadata),
        )


def read_frames(path: Path, chunk: int = 16) -> Generator[NDArray[np.uint8], None, None]:
    """Yields a film's frames in order, RGB [n, height, width, 3] with n = chunk, or fewer in the last; read with the BT.709 matrix.

    Raises ValueError, with the first chunk, for a missing or unreadable file and for chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: give the frames to a chunk, at least 1")
    reformatter = VideoReformatter()
    pending: list[NDArray[np.uint8]] = []
    with open_film(path) as (container, stream):
        for frame in container.decode(stream):
            pending.append(_to_rgb(reformatter, frame))
            if len(pending) == chunk:
                yield np.stack(pending)
                pending.clear()
        if pending:
            yield np.stack(pending)


def read_last(path: Path, count: int) -> NDArray[np.uint8]:
    """A film's last frames, as `read_frames` yields them; all of a film that has fewer. Decodes little else: from the last key frame before them.

    Raises ValueError for a missing or unreadable file.
    """
    with open_film(path) as (container, stream):
        rate, duration = stream.average_rate, stream.duration
        if rate and duration and stream.time_base:
            begin = (stream.start_time or 0) + duration - round((count + 1) / rate / stream.time_base)
            container.seek(max(begin, 0), stream=stream)
        frames = deque(container.decode(stream), count)
        if len(frames) < count:  # a file whose times are not to be trusted, or a short one
            container.seek(0, stream=stream)
            frames = deque(container.decode(stream), count)
        reformatter = VideoReformatter()
        rgb = [_to_rgb(reformatter, frame) for frame in frames]
        return np.stack(rgb) if rgb else np.zeros((0, stream.codec_context.height, stream.codec_context.width, 3), np.uint8)


def _to_rgb(reformatter: VideoReformatter, frame: VideoFrame) -> NDArray[np.uint8]:
    rgb = reformatter.reformat(frame, format="rgb24", src_colorspace=Colorspace.ITU709, dst_colorspace=Colorspace.ITU709, interpolation=_TO_RGB)
    return np.asarray(rgb.to_ndarray(), np.uint8)


def rate_and_size(path: Path) -> tuple[Fraction, int, int]:
    """A film's frames a second, width and height, as its header says. Raises ValueError as `probe` does."""
    with open_film(path) as (_, stream):
        return Fraction(stream.average_rate or 0), stream.codec_context.width, stream.codec_context.height


@contextmanager
def open_film(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream; what PyAV raises inside the block becomes a ValueError with the path."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: holds no video; give a film file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except av.error.FFmpegError as error:
        raise ValueError(f"{path}: cannot be read as a film ({error.strerror}); check the path, or render it again") from error
