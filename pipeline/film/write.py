"""Writing H.264 films. Knows codecs, colour tags and temporary names; knows nothing of models or jobs.

A film under its final name is always whole: it is written under a hidden temporary name beside that, looked at, and only then renamed. Frames
are RGB bytes, [num_frames, height, width, 3], and stream: memory does not grow with a film's length.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Self

import numpy as np
from imageio_ffmpeg import write_frames
from numpy.typing import NDArray

from ...files import partial_name
from .encoder import CRF, ENCODER, MOVFLAGS
from .read import probe

logger = logging.getLogger(__name__)

_BT709 = "color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv"
# The -color_* options alone would leave primaries and transfer unknown, and the default matrix is BT.601, untagged. Chroma sits at the left, as
# players read untagged H.264: swscale's default is the middle, a shift of half a pixel.
_SCALE = "out_color_matrix=bt709:out_range=tv:out_chroma_loc=left:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_TO_BT709 = f"scale={_SCALE},setparams={_BT709}"
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

    _encoding: ClassVar[tuple[str, ...]] = ("-movflags", MOVFLAGS)

    def __init__(self, path: Path, *, width: int, height: int, fps: float | Fraction, metadata: Mapping[str, str] | None = None) -> None:
        """width, height: pixels, even. fps: frames a second. metadata: short texts for the container; keys are free, without "=".

        Raises ValueError for values that no film can have.
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
        self.width, self.height, self.fps = int(width), int(height), Fraction(fps).limit_denominator()  # write_frames knows no numpy numbers
        self.metadata = dict(metadata or {})
        self.num_frames = 0
        self._ffmpeg: Generator[None, NDArray[np.uint8] | None, None] | None = None

    def __enter__(self) -> Self:
        self.num_frames = 0
        self._partial = self._name_while_written()
        options = ["-crf", str(CRF), "-vf", _TO_BT709, *self._encoding]
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
                f"frames are {frames.dtype} {list(frames.shape)}; {self.path.name} needs uint8 [num_frames, {self.height}, {self.width}, 3]"
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

    def _name_while_written(self) -> Path:
        return partial_name(self.path)

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


class GrowingFilm(FilmWriter):
    """A film that can be played while it is written, and after its writer was killed: all frames but those of the last moment are in the
    file.

    It is larger than a FilmWriter's, as each frame is encoded at once, into a fragment of its own, which is written when the next one comes.
    Leaving the block keeps it, by an exception too.
    """

    _encoding: ClassVar[tuple[str, ...]] = (
        *("-preset", "veryfast", "-tune", "zerolatency", "-g", "48", "-flush_packets", "1"),
        *("-movflags", "+frag_every_frame+empty_moov+default_base_moof+use_metadata_tags"),
    )

    def _name_while_written(self) -> Path:
        return self.path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._ffmpeg is not None
        try:
            self._ffmpeg.close()
        finally:
            self._ffmpeg = None
            self._log.close()


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
