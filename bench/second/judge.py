"""What a clip of the second model's world shows, read from its pixels alone, and whether that is what a scene asked for.

Knows the palette, the outlines and the kinds of motion of `scene.py`. Does not know the scene that a clip was made from, nor the model that made
it: drawn and rendered clips are read alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from . import scene as world
from .scene import NUM_FRAMES, SIZE, Scene

Floats = NDArray[np.floating]
Spectra = NDArray[np.complexfloating]

_DARKEST, _BRIGHTEST = 110.0, 200.0  # of a pixel's strongest channel: no ground reaches the first, the body of every shape the second
_MIN_MASS, _MIN_FRAME_MASS = 40.0, 4.0  # pixels of full light, in the largest frame and in the smallest; drawn shapes have 145 and 36
_MIN_DIMMING = 0.4  # of the brightest frame's light, lost and regained: a blinking shape loses 0.6, a small one is dim only at one end of the clip
_MIN_TURN, _MAX_STEP = 0.9, 0.5  # radians: a turning shape turns by 2.1 at least, by 0.25 a frame at most
_MIN_SLIDE = 6.0  # pixels; a sliding shape covers 11 at least
_MIN_GROWTH = 0.2  # of the logarithm of a shape's extent: growing and shrinking change it by 0.8, pulsing by 0.6
_ANGLES, _RINGS = 72, 18  # of the polar picture that a turn is read from
_SHAPE_FRAMES = 2  # those with most light, compared with all templates
_TEMPLATE_ANGLES, _TEMPLATE_RADII = 20, np.arange(8.0, 15.0, 1.5)  # pixels; in its largest frames a shape has 9.5 to 14.4


@dataclass(frozen=True)
class Findings:
    """What a clip shows: None for what cannot be told, for a motion also where there is none or more than one."""

    colour: str | None
    shape: str | None
    motion: str | None
    ground: str | None


@dataclass(frozen=True)
class Verdict:
    """Which attributes of a clip are as asked."""

    colour: bool
    shape: bool
    motion: bool
    ground: bool


def judge(frames: NDArray[np.uint8], scene: Scene) -> Verdict:
    """Compare a clip, [NUM_FRAMES, SIZE, SIZE, 3] uint8 RGB, with the scene it should show."""
    findings = analyse(frames)
    return Verdict(*(getattr(findings, name) == getattr(scene, name) for name in ("colour", "shape", "motion", "ground")))


def analyse(frames: NDArray[np.uint8]) -> Findings:
    """Find the shape and the ground of a clip, [NUM_FRAMES, SIZE, SIZE, 3] uint8 RGB. Raises `ValueError` for another layout."""
    if frames.dtype != np.uint8 or frames.shape != (NUM_FRAMES, SIZE, SIZE, 3):
        raise ValueError(f"cannot analyse frames {list(frames.shape)} of {frames.dtype}: pass {[NUM_FRAMES, SIZE, SIZE, 3]} of uint8")
    pixels = frames.astype(np.float32)
    light = pixels.max(axis=3)
    glow = np.clip((light - _DARKEST) / (_BRIGHTEST - _DARKEST), 0, 1)
    ground = _name_ground(pixels, light)
    if glow.sum(axis=(1, 2)).max() < _MIN_MASS:
        return Findings(None, None, None, ground)
    return Findings(_name_colour(pixels, glow), _name_shape(glow), _name_motion(light, glow), ground)


def _name_colour(pixels: Floats, glow: Floats) -> str:
    """The colour whose ratio of channels is nearest to that of the light."""
    seen = (pixels * glow[..., None]).sum(axis=(0, 1, 2))
    palette = np.array(list(world.COLOURS.values()), np.float32)
    alike = palette @ seen / np.linalg.norm(palette, axis=1)
    return list(world.COLOURS)[int(alike.argmax())]


def _name_ground(pixels: Floats, light: Floats) -> str | None:
    """The ground that is nearest to the dark pixels, if there are any. pixels: [frames, SIZE, SIZE, 3]; light: the strongest channel of each."""
    grounds = {name: world.draw_ground(Scene("white", "bar", "blink", name)) for name in world.GROUNDS}
    dark = light < _DARKEST
    return min(grounds, key=lambda name: float(np.abs(pixels - grounds[name])[dark].mean())) if dark.any() else None


def _name_motion(light: Floats, glow: Floats) -> str | None:
    """The one motion that a clip has; no second one is looked for in one that blinks. light, glow: [frames, SIZE, SIZE]."""
    brightest = np.sort(light.reshape(len(light), -1), axis=1)[:, -10:].mean(axis=1)
    if min(_climbs(brightest)) >= _MIN_DIMMING * brightest.max():
        return "blink"
    mass = glow.sum(axis=(1, 2))
    if mass.min() < _MIN_FRAME_MASS:
        return None
    grid = np.arange(SIZE) + 0.5
    x, y = glow.sum(axis=1) @ grid / mass, glow.sum(axis=2) @ grid / mass
    found = [_name_growth(0.5 * np.log(mass)), _name_slide(x, y), _name_turn(glow, x, y)]
    named = [name for name in found if name is not None]
    return named[0] if len(named) == 1 and named[0] in world.MOTIONS else None


def _name_growth(extent: Floats) -> str | None:
    """extent: [frames], the logarithm of the shape's size."""
    rise, fall = _climbs(extent)
    if min(rise, fall) >= _MIN_GROWTH:
        return "pulse"
    if max(rise, fall) < _MIN_GROWTH:
        return None
    return "grow" if rise > fall else "shrink"


def _name_slide(x: Floats, y: Floats) -> str | None:
    """The direction in which the centre (x, y), [frames] pixels, leaves its place; "drift" for one that no scene has."""
    rise, fall = _climbs(x)
    if np.ptp(y) >= _MIN_SLIDE or min(rise, fall) >= _MIN_SLIDE:
        return "drift"
    if max(rise, fall) < _MIN_SLIDE:
        return None
    return "right" if rise > fall else "left"


def _name_turn(glow: Floats, x: Floats, y: Floats) -> str | None:
    """Which way the shape turns about its centre (x, y): the polar pictures of neighbouring frames are shifted until they match best."""
    spectra = np.fft.rfft([_unroll(*frame) for frame in zip(glow, x, y, strict=True)], axis=1)
    likeness = np.fft.irfft((spectra[1:] * spectra[:-1].conj()).sum(axis=2), n=_ANGLES, axis=1)
    reach = int(_MAX_STEP / (2 * np.pi) * _ANGLES)
    shifts = np.arange(-reach, reach + 1)
    turned = shifts[likeness[:, shifts].argmax(axis=1)].sum() * 2 * np.pi / _ANGLES
    if abs(turned) < _MIN_TURN:
        return None
    return "clockwise" if turned > 0 else "anticlockwise"


def _unroll(glow: Floats, x: float, y: float) -> Floats:
    """A frame as seen from its centre: [angles, rings], the outer rings weighing more as they are longer."""
    angle = np.arange(_ANGLES) * 2 * np.pi / _ANGLES
    rings = np.arange(1, _RINGS + 1)
    column = np.clip(np.rint(x - 0.5 + np.cos(angle)[:, None] * rings), 0, SIZE - 1).astype(int)
    row = np.clip(np.rint(y - 0.5 + np.sin(angle)[:, None] * rings), 0, SIZE - 1).astype(int)
    return glow[row, column] * rings


def _climbs(values: Floats) -> tuple[float, float]:
    """The largest rise from any value to a later one, and the largest fall."""
    rise = (values - np.minimum.accumulate(values)).max()
    fall = (np.maximum.accumulate(values) - values).max()
    return float(rise), float(fall)


@lru_cache(maxsize=1)
def _templates() -> tuple[Floats, Spectra]:
    """All shapes at all radii and angles, centred: areas, [shapes, poses], and conjugate spectra, [shapes, poses, SIZE, SIZE // 2 + 1]."""
    grid = np.arange(SIZE, dtype=np.float32) - SIZE // 2
    angle, radius = (each.reshape(-1, 1, 1) for each in np.meshgrid(np.arange(_TEMPLATE_ANGLES) * 2 * np.pi / _TEMPLATE_ANGLES, _TEMPLATE_RADII))
    dx, dy = np.cos(angle) * grid + np.sin(angle) * grid[:, None], np.cos(angle) * grid[:, None] - np.sin(angle) * grid
    inside = np.array([world.signed_distance(shape, dx, dy, radius) < 0 for shape in world.SHAPES], np.float32)
    return inside.sum(axis=(2, 3)), np.fft.rfft2(np.fft.ifftshift(inside, axes=(2, 3))).conj()


def _name_shape(glow: Floats) -> str:
    """The shape whose outline, wherever it lies, has most in common (intersection over union) with the largest frames."""
    areas, spectra = _templates()
    fits = np.zeros(len(world.SHAPES))
    for frame in np.argsort(glow.sum(axis=(1, 2)))[-_SHAPE_FRAMES:]:
        mask = (glow[frame] > 0.5).astype(np.float32)
        shared = np.fft.irfft2(np.fft.rfft2(mask) * spectra, s=(SIZE, SIZE)).max(axis=(2, 3))
        fits += (shared / (areas + mask.sum() - shared)).max(axis=1)
    return world.SHAPES[int(fits.argmax())]
