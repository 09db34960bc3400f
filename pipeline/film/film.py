"""Film files: writing H.264 films and reading them back, contact sheets and thumbnails.

Knows containers, codecs, colour tags and temporary names. Knows nothing of models or jobs.
A file under its final name is always whole: whatever is written here goes to a hidden temporary name beside it, is looked at, and only then
takes the final name. Frames are RGB bytes, [num_frames, height, width, 3], and stream: memory does not grow with a film's length.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from imageio_ffmpeg import write_frames
from numpy.typing import NDArray
from PIL import Image

from ..files import partial_name
from .encoder import CRF, ENCODER, MOVFLAGS

logger = logging.getLogger(__name__)

SHORT_SIDE = 160  # pixels; stills of smaller films are scaled up to it
LONG_SIDE = 480  # pixels; stills of larger films are scaled down to it, unless their short side would fall below SHORT_SIDE

_BT709 = "color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
# The -color_* options alone would leave primaries and transfer unknown, and the default matrix is BT.601, untagged. Chroma sits at the left, as
# players take untagged H.264 to mean: swscale's default is the middle, a shift of half a pixel.
_SCALE = "out_color_matrix=bt709:out_range=tv:out_chroma_loc=left:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_TO_BT709 = f"scale={_SCALE},setparams={_BT709}"
# Without these two flags swscale rounds down on the way to RGB: pictures come back one level darker.
_TO_RGB = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_GAP = 8  # pixels between the stills of a sheet, an even number
_SHEET_BACKGROUND = (24, 24, 24)
_LAST_LINES = 12  # of ffmpeg's log, in an error
_stderr_lock = threading.Lock()


class EncodingError(RuntimeError):
    """ffmpeg failed, or left a file that is not the film it was given. The message ends with ffmpeg's own last lines."""


class FilmWriter:
    """Streams frames into an H.264 film (MP4, yuv420p, tagged BT.709, index first); a context manager.

    Leaving the block by its end checks the file's size and frame count and gives it its final name. Leaving it by an exception, an interrupt
    too, ends ffmpeg and removes the temporary file; an earlier film under `path` stays as it was. Ending ffmpeg means waiting until it has
    encoded what it holds (seconds); a second interrupt kills it. ffmpeg runs in a process group of its own, so a Ctrl-C reaches only us.

        with FilmWriter(path, width=832, height=480, fps=16) as film:
            for frames in decoded:
                film.write(frames)
    """

    def __init__(self, path: Path, *, width: int, height: int, fps: float | Fraction, metadata: Mapping[str, str] | None = None) -> None:
        """width, height: pixels, even. fps: frames a second. metadata: short texts for the container; keys are free, without "=".

        Raises ValueError where one of these cannot be.
        """
        if path.suffix.lower() != ".mp4":
            raise ValueError(f"{path}: films are written as MP4; give a name that ends in .mp4")
        for name, length in (("width", width), ("height", height)):
            if length < 2 or length % 2:
                raise ValueError(f"{name}={length}: H.264 in yuv420p needs even sides; render or crop to {max(2, length - length % 2)}")
        if not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps={fps}: give a positive number of frames a second")
        for key in metadata or {}:
            if not key or "=" in key:
                raise ValueError(f"metadata key {key!r}: give a name without '='")
        self.path = path
        self.width, self.height, self.fps = int(width), int(height), Fraction(fps).limit_denominator()  # write_frames takes no numpy numbers
        self.metadata = dict(metadata or {})
        self.num_frames = 0
        self._ffmpeg: Generator[None, NDArray[np.uint8] | None, None] | None = None

    def __enter__(self) -> Self:
        self.num_frames = 0
        self._partial = partial_name(self.path)
        options = ["-crf", str(CRF), "-vf", _TO_BT709, "-movflags", MOVFLAGS]
        for key, value in self.metadata.items():
            options += ["-metadata", f"{key}={value}"]
        self._log = tempfile.TemporaryFile()
        self._ffmpeg = write_frames(
            self._partial,
            (self.width, self.height),
            fps=self.fps,
            codec=ENCODER,
            quality=None,
            macro_block_size=2,
            output_params=options,
        )
        try:
            with _stderr_of_children(self._log):
                self._ffmpeg.send(None)
        except BaseException:
            self._log.close()
            raise
        return self

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Appends frames, uint8 RGB [num_frames, height, width, 3]; blocks while ffmpeg is behind.

        Raises ValueError for another shape or dtype, EncodingError where ffmpeg has ended.
        """
        assert self._ffmpeg is not None, "write() belongs inside the with block"
        expected = (self.height, self.width, 3)
        if frames.ndim != 4 or frames.shape[1:] != expected or frames.dtype != np.uint8:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}; {self.path.name} takes uint8 [num_frames, {self.height}, {self.width}, 3]"
            )
        try:
            self._ffmpeg.send(np.ascontiguousarray(frames))
        except (OSError, StopIteration) as error:
            raise self._failure(f"ffmpeg ended after {self.num_frames} frames") from error
        self.num_frames += len(frames)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._ffmpeg is not None
        try:
            self._ffmpeg.close()
            if kind is None:
                self._verify()
                self._partial.replace(self.path)
                if said := self._last_lines():
                    logger.warning("%s: ffmpeg said:\n%s", self.path, said)
        finally:
            self._ffmpeg = None
            self._partial.unlink(missing_ok=True)
            self._log.close()

    def _verify(self) -> None:
        # imageio-ffmpeg does not tell ffmpeg's exit status: the file itself is the evidence.
        if self.num_frames == 0:
            raise ValueError(f"{self.path}: no frame was written; a film has at least one")
        try:
            info = probe(self._partial)
        except ValueError as error:
            raise self._failure("ffmpeg left no readable film") from error
        found, expected = (info.width, info.height, info.num_frames), (self.width, self.height, self.num_frames)
        if found != expected:
            raise self._failure(f"ffmpeg wrote (width, height, frames) = {found} where {expected} was given")

    def _failure(self, what: str) -> EncodingError:
        return EncodingError(f"{self.path}: {what}. ffmpeg's last lines:\n{self._last_lines() or '(none)'}")

    def _last_lines(self) -> str:
        # pread, because ffmpeg and we share one file offset.
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-_LAST_LINES:])


@contextmanager
def _stderr_of_children(log: IO[bytes]) -> Iterator[None]:
    """Child processes started inside the block write their stderr to `log`.

    write_frames hands its own stderr to ffmpeg and offers no other way to what ffmpeg says. Descriptor 2 belongs to the whole process: hence
    the lock, and a block that holds nothing but the start. A line that another thread prints meanwhile lands in `log`, and is shown with it.
    """
    with _stderr_lock:
        own = os.dup(2)
        try:
            os.dup2(log.fileno(), 2)
            yield
        finally:
            os.dup2(own, 2)
            os.close(own)


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
    with _open(path) as (container, stream):
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


def retime(source: Path, target: Path, fps: Fraction) -> None:
    """Writes a film's very packets as a film of another frame rate: the same pictures, tags and metadata, nothing decoded.

    Raises ValueError for an unreadable film, and for one whose frames do not follow each other at one rate.
    """
    partial = partial_name(target)
    try:
        with _open(source) as (container, stream), av.open(str(partial), "w", options={"movflags": MOVFLAGS}) as output:
            output.metadata.update(container.metadata)
            copied = output.add_stream_from_template(stream)
            copied.time_base = 1 / fps
            rate = stream.average_rate or Fraction(0)
            for packet in container.demux(stream):
                if packet.dts is None:  # the demuxer's last word
                    continue
                packet.pts, packet.dts = (_frame_index(source, time, packet.time_base * rate) for time in (packet.pts, packet.dts))
                packet.duration, packet.time_base, packet.stream = 1, 1 / fps, copied
                output.mux(packet)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _frame_index(source: Path, time: int | None, scale: Fraction) -> int:
    index = None if time is None else time * scale
    if index is None or index.denominator != 1:
        raise ValueError(f"{source}: its frames do not follow each other at one rate; render it again")
    return index.numerator


def read_frames(path: Path, chunk: int = 16) -> Generator[NDArray[np.uint8], None, None]:
    """Yields a film's frames in order, RGB [n, height, width, 3] with n = chunk, or fewer in the last; read with the BT.709 matrix.

    Raises ValueError, with the first chunk, for a missing or unreadable file and for chunk < 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: give the frames to a chunk, at least 1")
    reformatter = VideoReformatter()
    pending: list[NDArray[np.uint8]] = []
    with _open(path) as (container, stream):
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
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
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


class ContactSheet:
    """Keeps evenly spaced stills, the first and the last frame among them, while a film streams by; at most columns * rows + 1 of them.

    Stills are scaled as they come (SHORT_SIDE, LONG_SIDE), so memory depends on neither the film's length nor its size. Both pictures can be
    saved before the film is complete: they then show what has come.
    """

    def __init__(self, num_frames: int, columns: int = 6, rows: int = 4) -> None:
        """num_frames: the film's length. A film with fewer frames than columns * rows gets a smaller sheet. Raises ValueError below 1."""
        for name, value in (("num_frames", num_frames), ("columns", columns), ("rows", rows)):
            if value < 1:
                raise ValueError(f"{name}={value}: give at least 1")
        self.num_frames = num_frames
        count = min(num_frames, columns * rows)
        self.indices = [round(index) for index in np.linspace(0, num_frames - 1, count)]
        self._columns = min(columns, count)
        self._third = round((num_frames - 1) / 3)
        self._wanted = {*self.indices, self._third}
        self._stills: dict[int, Image.Image] = {}
        self._next = 0

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Takes the film's next frames, uint8 RGB [n, height, width, 3]. Raises ValueError for more frames than announced."""
        if self._next + len(frames) > self.num_frames:
            raise ValueError(f"{self._next + len(frames)} frames came for a film of num_frames={self.num_frames}; announce its true length")
        for index, frame in enumerate(frames, start=self._next):
            if index in self._wanted:
                self._stills[index] = _still(frame)
        self._next += len(frames)

    def save(self, path: Path) -> None:
        """Writes the sheet, read row by row, as JPEG or PNG by suffix. Raises ValueError before the first frame and for other suffixes."""
        self._require_stills(path)
        shown = [self._stills[index] for index in self.indices if index in self._stills]
        width, height = shown[0].width + _GAP, shown[0].height + _GAP
        rows = math.ceil(len(self.indices) / self._columns)
        sheet = Image.new("RGB", (self._columns * width, rows * height), _SHEET_BACKGROUND)
        for place, still in enumerate(shown):
            row, column = divmod(place, self._columns)
            sheet.paste(still, (column * width + _GAP // 2, row * height + _GAP // 2))
        _save_image(sheet, path)

    def thumbnail(self, path: Path) -> None:
        """Writes the still nearest to a third of the film as JPEG or PNG by suffix. Raises ValueError as `save` does."""
        self._require_stills(path)
        nearest = min(self._stills, key=lambda index: abs(index - self._third))
        _save_image(self._stills[nearest], path)

    def _require_stills(self, path: Path) -> None:
        if not self._stills:
            raise ValueError(f"{path}: no frame has come yet; add frames before saving")


def _still(frame: NDArray[np.uint8]) -> Image.Image:
    """frame: [height, width, 3]. The picture, scaled between SHORT_SIDE and LONG_SIDE with its proportions kept."""
    height, width = frame.shape[:2]
    scale = max(SHORT_SIDE / min(height, width), min(1.0, LONG_SIDE / max(height, width)))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # A copy in either case: the caller may fill the frame's memory anew.
    return Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.LANCZOS)


def _save_image(image: Image.Image, path: Path) -> None:
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise ValueError(f"{path}: pictures are written as JPEG or PNG; give a name that ends in .jpg or .png")
    partial = partial_name(path)
    try:
        image.save(partial, quality=90)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
