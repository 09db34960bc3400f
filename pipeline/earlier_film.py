"""A film that a take goes on from: found and checked when the job is planned, read and encoded when it is rendered."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..later import np, torch
from .take import EarlierFilm, Take

if TYPE_CHECKING:
    from torch import Tensor

    from ..parallel.groups.mesh import Mesh
    from .checkpoint.card import ModelCard
    from .families import Family

# Latent frames that are encoded before the context: the first of an encoding is special, and the next ones are made from it. With the demo model
# the context's first frame then lies 0.02 (rms, of latents with a spread of 0.9) from what an encoding of the whole film has; with two, 0.2.
_DROPPED = 4
_AT_ONCE = 4  # frames that AutoencoderKLWan encodes together, whatever its stride; what remains of them it would leave out
_CLOSE = Fraction(1, 5000)  # of a frame rate; 23.976 and 24 differ by five times that


@dataclass(frozen=True)
class Encoded:
    """An earlier film's latents, normalised, [1, channels, latent frames, height, width], fp32, on every rank alike.

    end: of its last frames, encoded as a clip of their own, so that a decoder which goes through them goes on with the take's frames without a
    joint. context: of one latent frame each, by the numbers that the take's timeline has for them.
    """

    end: Tensor
    context: dict[int, Tensor]


def find_film(take: str, path: str) -> EarlierFilm:
    """take: its name. Raises ValueError, with the mend, where there is no such file."""
    file = Path(path).absolute()  # ranks have other working folders
    if not file.is_file():
        what = "that is a folder" if file.is_dir() else "there is no such file"
        raise ValueError(f"Take '{take}': continue_from is '{path}', and {what}; give the path of a film.")
    return EarlierFilm(str(file), _sha256(file))


def check_film(take: Take, card: ModelCard, fps: Fraction) -> None:
    """Raise ValueError, with the mend, unless the take can go on from its earlier film. fps: of the take's own film."""
    film = take.continue_from
    if film is None:
        return
    from .film.read import rate_and_size  # PyAV, which other takes need not wait for

    where = f"Take '{take.name}': continue_from"
    try:
        rate, width, height = rate_and_size(Path(film.path))
        if (width, height) != (take.width, take.height):
            can_have = not (width % card.size_multiple or height % card.size_multiple)
            mend = f"set width={width} height={height}" if can_have else f"scale the film, to multiples of {card.size_multiple}"
            raise ValueError(f"'{film.path}' has {width}x{height} pixels, and the take {take.width}x{take.height}; {mend}")
        if not rate:
            raise ValueError(f"'{film.path}' holds no frames; give a film")
        if abs(rate - fps) > fps * _CLOSE:
            raise ValueError(
                f"'{film.path}' has {float(rate):.5g} frames a second, and the take {float(fps):.5g}; set fps={rate}, or convert the film"
            )
        _read_ends(take, card)
    except ValueError as error:
        raise ValueError(f"{where}: {error}.") from None


def encode_film(family: Family, take: Take, mesh: Mesh) -> Encoded:
    """Called on every rank of a gang: rank 0 reads, all encode, so that none waits long for another, and rank 0's latents count. Raises ValueError
    if the film is not what it was when the job was planned.
    """
    film, card = take.continue_from, family.card
    assert film is not None, "it goes on from nothing"
    first, last = _num_read(take, card)
    frames = torch.zeros((first + last, take.height, take.width, 3), dtype=torch.uint8)
    if mesh.rank == 0:
        if _sha256(Path(film.path)) != film.sha256:
            raise ValueError(f"'{film.path}' has changed since the job was planned; run it again.")
        frames = torch.from_numpy(_read_ends(take, card))
    frames = mesh.gang.sum(frames.to(family.device)).float() / 255
    anchors, overlap = take.timeline.anchors, take.timeline.overlap
    end = _from_first_rank(family.encode(frames[first:]), mesh)
    shown = [end[:, :, -overlap:]]
    if anchors:
        shown.insert(0, _from_first_rank(family.encode(frames[:first]), mesh)[:, :, :anchors])
    numbered = enumerate(torch.cat(shown, dim=2).split(1, dim=2), start=-anchors - overlap)
    return Encoded(end, {number: latent.contiguous() for number, latent in numbered})


def _from_first_rank(latents: Tensor, mesh: Mesh) -> Tensor:
    return mesh.gang.sum(latents if mesh.rank == 0 else torch.zeros_like(latents))


def _num_read(take: Take, card: ModelCard) -> tuple[int, int]:
    """How many of the film's first frames and of its last ones are encoded."""
    settings = take.timeline
    return _whole(settings.anchors, card) if settings.anchors else 0, _whole(settings.overlap + _DROPPED, card)


def _whole(latent_frames: int, card: ModelCard) -> int:
    """The fewest frames that are encoded to so many latent frames, and to whole ones."""
    after_first = (latent_frames - 1) * card.temporal_stride
    return 1 + -(-after_first // _AT_ONCE) * _AT_ONCE


def _read_ends(take: Take, card: ModelCard) -> np.ndarray:
    """The film's first and last frames that are encoded, uint8 RGB [frames, height, width, 3]. Raises ValueError for a shorter film."""
    from .film.read import read_frames, read_last

    assert take.continue_from is not None, "it goes on from nothing"
    path, (first, last) = Path(take.continue_from.path), _num_read(take, card)
    ends = [read_last(path, last)]
    if first:
        ends.insert(0, next(read_frames(path, first)))
    for found, wanted in zip(ends[::-1], (last, first), strict=False):
        if len(found) < wanted:
            raise ValueError(
                f"'{path}' has {len(found)} frame(s), and with this timeline.overlap and timeline.anchors {wanted} are encoded; give a longer film, "
                f"or lower them"
            )
    return np.concatenate(ends)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
