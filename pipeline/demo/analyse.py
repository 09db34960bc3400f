"""What a clip of the demo world shows, read from its pixels alone, and whether that is what a scene asked for.

Knows the palette, the outlines and the motions of `scene.py`. Does not know the scene that a clip was made from, nor the
model that made it: drawn and rendered clips are read alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import scene as world
from .scene import SIZE, Scene

Mask = NDArray[np.bool_]
Floats = NDArray[np.floating]
Spectra = NDArray[np.complexfloating]

MIN_FRAMES = 17  # half the usual clip: below it a circling thing turns too little to be told from a straight one
_MIN_SATURATION = 0.55  # of the object colour's own; the most colourful background, sand, has 0.3 of yellow's
_MIN_CORE, _MAX_AREA = 60, 1900  # pixels; whole things cover 770 to 1280
_RADII = np.arange(15.5, 22.0, 1.5)
_MIN_VISIBLE = 0.3  # of a thing's usual area, for its place to be trusted
_SHAPE_FRAMES = 7  # compared with all templates; at most half of MIN_FRAMES, as a thing may be seen in no more
_MIN_TRAVEL = 8.0  # pixels; the shortest excursion of a moving thing in MIN_FRAMES is 12 (the height of a circling thing's arc)
_MIN_RETURN = 4.0  # pixels; a thing that bounces in 33 frames comes back by at least 40
_MIN_SWEEP, _MAX_RETURN_SWEEP = 1.2, 0.4  # radians; the slowest circling thing sweeps 2.4 in MIN_FRAMES
_BACKGROUND_STEP = 4  # frames; textures drift by at most half a pixel a frame
_MIN_CONTRAST = 15.0  # grey levels; the textures have 26 and 30, noise on a plain background well under 10


@dataclass(frozen=True)
class Sighting:
    """What one thing looks like and does: the nearest of `scene.SHAPES` and the nearest of `scene.MOTIONS`."""

    shape: str
    motion: str


@dataclass(frozen=True)
class Findings:
    """What a clip shows; `things` by colour, empty if there is none. background: None where the things leave nothing of it to see."""

    background: str | None
    things: dict[str, Sighting]


@dataclass(frozen=True)
class Verdict:
    """Which attributes of a clip are as asked."""

    colour: bool
    shape: bool
    motion: bool
    background: bool


def judge(frames: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare a clip, [num_frames, SIZE, SIZE, 3] uint8 RGB, with the scene it should show.

    The shape and the motion of an asked thing whose colour is not found are wrong, too.
    """
    findings = analyse(frames)
    pairs = [(thing, findings.things.get(thing.colour)) for thing in scene.things]
    return Verdict(
        colour=set(findings.things) == {thing.colour for thing in scene.things},
        shape=all(seen is not None and seen.shape == thing.shape for thing, seen in pairs),
        motion=all(seen is not None and seen.motion == thing.motion for thing, seen in pairs),
        background=findings.background == scene.background,
    )


def analyse(frames: NDArray[np.uint8]) -> Findings:
    """Find the things and the background of a clip, [num_frames, SIZE, SIZE, 3] uint8 RGB.

    Raises `ValueError` for another layout and for less than `MIN_FRAMES` frames.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (SIZE, SIZE, 3) or len(frames) < MIN_FRAMES:
        raise ValueError(f"cannot analyse frames {list(frames.shape)} of {frames.dtype}: pass [at least {MIN_FRAMES}, {SIZE}, {SIZE}, 3] of uint8")
    masks = {colour: mask for colour, mask in _colour_masks(frames).items() if _is_thing(mask)}
    things: dict[str, Sighting] = {}
    covered = np.zeros(frames.shape[:3], bool)
    for colour, mask in masks.items():
        hidden = np.zeros_like(mask)
        for other, others in masks.items():
            if other != colour:
                hidden |= _dilate(others, 2)  # with the mixed colours along the outline
        things[colour] = _look_at(mask, hidden & ~mask)
        covered |= _dilate(mask, 3)
    return Findings(background=_name_background(frames[::_BACKGROUND_STEP], ~covered[::_BACKGROUND_STEP]), things=things)


def _colour_masks(frames: NDArray[np.uint8]) -> dict[str, Mask]:
    """For each object colour the pixels that have its hue and most of its saturation, [frames, SIZE, SIZE] each."""
    palette = np.array(list(world.COLOURS.values()), np.float32)
    chroma = palette - palette.mean(axis=1, keepdims=True)
    strength = np.linalg.norm(chroma, axis=1, keepdims=True)
    # Directions orthogonal to grey: the dot product ignores brightness, the largest one names the nearest hue.
    along = (chroma / strength) @ frames.reshape(-1, 3).T.astype(np.float32)
    alike = (along == along.max(axis=0)) & (along >= _MIN_SATURATION * strength)
    return dict(zip(world.COLOURS, alike.reshape(-1, *frames.shape[:3]), strict=True))


def _is_thing(mask: Mask) -> bool:
    """Whether a colour has the area of a thing in most frames. Eroded, because the fringes of another thing are thin."""
    area = mask.sum(axis=(1, 2))
    core = (~_dilate(~mask, 1)).sum(axis=(1, 2))
    return bool(np.mean((core >= _MIN_CORE) & (area <= _MAX_AREA)) > 0.5)


def _dilate(mask: Mask, by: int) -> Mask:
    """Grow a mask by `by` pixels in each direction, on the torus."""
    for axis in (1, 2):
        for _ in range(by):
            mask = mask | np.roll(mask, 1, axis) | np.roll(mask, -1, axis)
    return mask


def _look_at(mask: Mask, hidden: Mask) -> Sighting:
    """Name a thing's shape and motion. mask, hidden: [frames, SIZE, SIZE], its pixels and those where others may hide it."""
    area = mask.sum(axis=(1, 2))
    contact = (_dilate(mask, 2) & hidden).sum(axis=(1, 2)) / np.maximum(area, 1)
    seen = np.flatnonzero((area >= _MIN_CORE) & (area <= _MAX_AREA))
    clear = seen[contact[seen] <= np.sort(contact[seen])[_SHAPE_FRAMES - 1]]
    chosen = clear[np.linspace(0, len(clear) - 1, _SHAPE_FRAMES).round().astype(int)]

    best = [_fits(mask[frame], hidden[frame]).max(axis=(1, 2)) for frame in chosen]
    fits = np.reshape(best, (len(chosen), len(world.SHAPES), len(_RADII)))
    shape = int(fits.max(axis=2).sum(axis=0).argmax())
    radius = int(fits[:, shape].sum(axis=0).argmax())

    # A sliver says little about the centre, unless slivers are what the clip mostly shows.
    tracked = seen[area[seen] >= _MIN_VISIBLE * np.median(area[seen])]
    template = shape * len(_RADII) + radius
    return Sighting(world.SHAPES[shape], _name_motion(_track(mask[tracked], hidden[tracked], template)))


@lru_cache(maxsize=1)
def _templates() -> tuple[Floats, Spectra]:
    """All shapes at all radii: their areas in pixels, [templates, 1, 1], and their conjugate spectra, [templates, SIZE, SIZE // 2 + 1].

    Each is 1 inside and 0 outside, centred on pixel (0, 0) of the torus; the radius varies fastest.
    """
    offset = np.mod(np.arange(SIZE, dtype=np.float32) + SIZE / 2, SIZE) - SIZE / 2
    inside = [world.signed_distance(shape, offset[None, :], offset[:, None], float(r)) < 0 for shape in world.SHAPES for r in _RADII]
    templates = np.array(inside, np.float32)
    return templates.sum(axis=(1, 2), keepdims=True), np.fft.rfft2(templates).conj()


def _fits(mask: Mask, hidden: Mask, chosen: slice = slice(None)) -> Floats:
    """IoU of a mask with the chosen templates at each place, over the pixels that are not hidden: [templates, SIZE, SIZE].

    mask, hidden: [SIZE, SIZE]. All places at once by the correlation theorem, which wraps around the edges just as things do.
    """
    areas, spectra = _templates()
    areas, spectra = areas[chosen], spectra[chosen]

    def correlate(pixels: Mask) -> Floats:
        return np.fft.irfft2(np.fft.rfft2(pixels.astype(np.float32)) * spectra, s=(SIZE, SIZE))

    shared = correlate(mask)
    visible = areas - correlate(hidden) if hidden.any() else areas
    return shared / (np.float32(mask.sum()) + visible - shared)


def _track(mask: Mask, hidden: Mask, template: int) -> Floats:
    """Centre (x, y) in each frame, unwrapped so that steps over an edge are small, without lone outliers: [frames - 2, 2]."""
    best = [_fits(*pixels, slice(template, template + 1)).argmax() for pixels in zip(mask, hidden, strict=True)]
    y, x = np.unravel_index(best, (SIZE, SIZE))
    track = np.unwrap(np.stack([x, y], axis=1).astype(np.float32), period=SIZE, axis=0)
    return np.median(np.lib.stride_tricks.sliding_window_view(track, 3, axis=0), axis=-1)


def _name_motion(track: Floats) -> str:
    """The motion nearest to a track, [frames, 2] unwrapped pixels."""
    extent = np.ptp(track, axis=0)
    if extent.max() < _MIN_TRAVEL:
        return "still"
    if extent.min() >= _MIN_TRAVEL and _circles(track):
        return "circling"
    axis = int(extent.argmax())
    rise, fall = _climbs(track[:, axis])
    bounces = min(rise, fall) >= _MIN_RETURN
    sign = 1 if bounces or rise > fall else -1
    direction = (sign, 0) if axis == 0 else (0, sign)
    names = world.BOUNCING if bounces else world.WRAPPING
    return next(name for name, named in names.items() if named == direction)


def _circles(track: Floats) -> bool:
    """Whether a track turns around one centre without turning back. Centre by algebraic least squares (Kasa, 1976)."""
    track = track - track.mean(axis=0)
    terms = np.column_stack([2 * track, np.ones(len(track))])
    centre = np.linalg.lstsq(terms, (track**2).sum(axis=1), rcond=None)[0][:2]
    angle = np.unwrap(np.arctan2(*(track - centre).T[::-1]))
    rise, fall = _climbs(angle)
    return max(rise, fall) >= _MIN_SWEEP and min(rise, fall) <= _MAX_RETURN_SWEEP


def _climbs(values: Floats) -> tuple[float, float]:
    """The largest rise from any value to a later one, and the largest fall."""
    rise = (values - np.minimum.accumulate(values)).max()
    fall = (np.maximum.accumulate(values) - values).max()
    return float(rise), float(fall)


def _name_background(frames: NDArray[np.uint8], free: Mask) -> str | None:
    """The background nearest to the free pixels; free: [frames, SIZE, SIZE]. Stripes are what the means of the rows explain."""
    if not free.any():
        return None
    grey = frames.astype(np.float32) @ np.full(3, 1 / 3, np.float32)
    in_frame, in_row = free.sum(axis=(1, 2)), free.sum(axis=2)
    mean = np.where(free, grey, 0).sum(axis=(1, 2)) / np.maximum(in_frame, 1)
    row_mean = np.where(free, grey, 0).sum(axis=2) / np.maximum(in_row, 1)
    variance = (np.where(free, grey - mean[:, None, None], 0) ** 2).sum() / in_frame.sum()
    explained = (in_row * (row_mean - mean[:, None]) ** 2).sum() / in_frame.sum()
    if variance >= _MIN_CONTRAST**2:
        return "striped" if explained > 0.5 * variance else "checkered"
    colour = frames[free].mean(axis=0)
    return min(world.PLAIN_BACKGROUNDS, key=lambda name: float(np.linalg.norm(colour - world.PLAIN_BACKGROUNDS[name])))
