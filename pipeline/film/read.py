"""Reading film files back: their properties and their frames. Knows containers and colour matrices; knows nothing of how films are written."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
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
            rgb = reformatter.reformat(
                frame, format="rgb24", src_colorspace=Colorspace.ITU709, dst_colorspace=Colorspace.ITU709, interpolation=_TO_RGB
            )
            pending.append(np.asarray(rgb.to_ndarray(), np.uint8))
            if len(pending) == chunk:
                yield np.stack(pending)
                pending.clear()
        if pending:
            yield np.stack(pending)


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
