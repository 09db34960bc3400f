"""Stills of a film as it streams by: a contact sheet and a thumbnail. Knows frames and picture files; knows nothing of films as files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...files import written_whole

SHORT_SIDE = 160  # pixels; stills of smaller films are scaled up to it
LONG_SIDE = 480  # pixels; stills of larger films are scaled down to it, unless their short side would fall below SHORT_SIDE
_GAP = 8  # pixels between the stills of a sheet, an even number
_SHEET_BACKGROUND = (24, 24, 24)


class ContactSheet:
    """Keeps evenly spaced stills, the first and the last frame among them, while a film streams by; at most columns * rows + 1 of them.

    Stills are scaled as they come (SHORT_SIDE, LONG_SIDE), so memory depends on neither the film's length nor its size. Both pictures can be
    saved before the film is complete: they then show the frames so far.
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
        """Take the film's next frames, uint8 RGB [n, height, width, 3]. Raises ValueError for more frames than announced."""
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
        for number, still in enumerate(shown):
            row, column = divmod(number, self._columns)
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
    with written_whole(path) as partial:
        image.save(partial, quality=90)
