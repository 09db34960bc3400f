"""The second model's world: one glowing shape that grows, turns, slides, pulses or blinks before a dark ground of two colours.

Knows attributes, wording and drawing. Knows nothing of models: training and scoring both read from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

SIZE = 48  # pixels
FPS = 8
NUM_FRAMES = 13

Floats = NDArray[np.floating]

COLOURS: dict[str, tuple[int, int, int]] = {
    "crimson": (235, 45, 60),
    "amber": (250, 185, 30),
    "lime": (90, 230, 50),
    "azure": (40, 120, 255),
    "violet": (180, 60, 250),
    "white": (240, 240, 240),
}
SHAPES = ("bar", "cross", "wedge", "bow")
MOTIONS = ("grow", "shrink", "clockwise", "anticlockwise", "left", "right", "pulse", "blink")
GROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {  # the colours at its two ends
    "dusk": ((20, 15, 60), (80, 30, 35)),
    "sea": ((5, 25, 40), (10, 75, 80)),
    "forest": ((10, 20, 10), (35, 75, 25)),
    "cave": ((12, 10, 8), (70, 60, 50)),
}

_VERBS = {
    "grow": ("grows", "is growing", "becomes larger"),
    "shrink": ("shrinks", "is shrinking", "becomes smaller"),
    "clockwise": ("turns clockwise", "is turning clockwise", "rotates clockwise"),
    "anticlockwise": ("turns anticlockwise", "is turning anticlockwise", "rotates anticlockwise"),
    "left": ("slides left", "is sliding left", "glides to the left"),
    "right": ("slides right", "is sliding right", "glides to the right"),
    "pulse": ("pulses", "is pulsing", "swells and shrinks"),
    "blink": ("blinks", "is blinking", "goes on and off"),
}
_PLACES = ("before a {} background", "above a {} background", "in front of a {} background")
_SLOPES = {"dusk": (0.0, 1.0), "sea": (0.0, 1.0), "forest": (1.0, 0.0), "cave": (0.71, 0.71)}  # where a ground's gradient points, (x, y)
_OUTLINE = 2.5  # pixels from full glow to none
_HALO, _HALO_REACH = 0.3, 4.0  # strength at the outline, and pixels until it has fallen to 1/e of that
_JITTER, _TILT = 4.0, 0.3  # pixels and radians around the usual place and angle
_SLIDE = 6.5  # pixels from the middle to where a sliding shape starts
_PERIOD = 8.0  # frames of one pulse or blink
_SMALLEST, _LARGEST = 0.5, 1.25  # of a shape's radius: the ends of growing and shrinking
_BOW_SHIFT = 0.5  # of the radius: puts the centre of a bow's glow at the place it turns about


@dataclass(frozen=True)
class Scene:
    """One glowing shape before a ground. x, y, radius in pixels; angle and phase in radians; speed as a share of the motion's usual one."""

    colour: str
    shape: str
    motion: str
    ground: str
    x: float = SIZE / 2
    y: float = SIZE / 2
    radius: float = 10.5
    angle: float = 0.0
    speed: float = 1.0
    phase: float = 0.0
    tilt: float = 0.0  # radians by which the ground's gradient is turned

    def combination(self) -> tuple[str, str, str, str]:
        return self.colour, self.shape, self.motion, self.ground


def is_held_out(colour: str, shape: str, motion: str, ground: str) -> bool:
    """A fifth of all combinations is kept from training; each pair of attributes is still seen together there."""
    ordinal = SHAPES.index(shape) + 2 * list(COLOURS).index(colour) + 3 * MOTIONS.index(motion) + 4 * list(GROUNDS).index(ground)
    return ordinal % 5 == 0


def all_held_out() -> list[tuple[str, str, str, str]]:
    return [one for one in product(COLOURS, SHAPES, MOTIONS, GROUNDS) if is_held_out(*one)]


def sample_scene(rng: Generator, *, held_out: bool = False) -> Scene:
    """Draw a scene of a held-out combination, or of a trained one."""
    while True:
        combination = tuple(str(rng.choice(list(options))) for options in (COLOURS, SHAPES, MOTIONS, GROUNDS))
        if is_held_out(*combination) == held_out:
            break
    colour, shape, motion, ground = combination
    return Scene(
        colour,
        shape,
        motion,
        ground,
        x=float(SIZE / 2 + rng.uniform(-_JITTER, _JITTER)),
        y=float(SIZE / 2 + rng.uniform(-_JITTER, _JITTER)),
        radius=float(rng.uniform(9.5, 11.5)),
        angle=float(rng.uniform(-_TILT, _TILT)),
        speed=float(rng.uniform(0.9, 1.1)),
        phase=float(rng.uniform(-_TILT, _TILT)),
        tilt=float(rng.uniform(-_TILT, _TILT)),
    )


def sentence(scene: Scene, rng: Generator | None = None) -> str:
    """Say the whole scene; with `rng` the wording varies, without it is the plainest."""

    def pick(options: tuple[str, ...]) -> str:
        return str(rng.choice(options)) if rng is not None else options[0]

    return f"a glowing {scene.colour} {scene.shape} {pick(_VERBS[scene.motion])} {pick(_PLACES).format(scene.ground)}"


def vocabulary() -> list[str]:
    """Every word that `sentence` can use, sorted."""
    texts = ["a glowing", *COLOURS, *SHAPES, *GROUNDS, *_PLACES, *(verb for verbs in _VERBS.values() for verb in verbs)]
    return sorted({word for text in texts for word in text.replace("{}", "").split()})


def draw(scene: Scene, num_frames: int = NUM_FRAMES) -> NDArray[np.uint8]:
    """Frames of the scene from its start: [num_frames, SIZE, SIZE, 3], uint8 RGB."""
    times = np.arange(num_frames, dtype=np.float32)
    glow = _glow(scene, times)[..., None]
    return np.rint(draw_ground(scene) * (1 - glow) + np.array(COLOURS[scene.colour], np.float32) * glow).astype(np.uint8)


def signed_distance(shape: str, dx: Floats, dy: Floats, radius: Floats) -> Floats:
    """Distance in pixels to the shape's outline, negative inside; (dx, dy) from the place that the shape turns about."""
    if shape == "bar":
        return np.maximum(np.abs(dx) - 1.1 * radius, np.abs(dy) - 0.36 * radius)
    if shape == "cross":
        along = np.maximum(np.abs(dx) - 1.05 * radius, np.abs(dy) - 0.28 * radius)
        across = np.maximum(np.abs(dx) - 0.28 * radius, np.abs(dy) - 1.05 * radius)
        return np.minimum(along, across)
    if shape == "wedge":
        return np.maximum(np.abs(dx) * 0.866 - dy * 0.5, dy) - 0.55 * radius
    assert shape == "bow", shape
    dy = dy - _BOW_SHIFT * radius
    return np.maximum(np.abs(np.sqrt(dx**2 + dy**2) - 0.9 * radius) - 0.28 * radius, dy - 0.1 * radius)


def _glow(scene: Scene, times: Floats) -> Floats:
    """How much of each pixel's light is the shape's, [frames, SIZE, SIZE] in 0..1: its body and a halo around it."""
    x, scale, angle, light = _move(scene, times)
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    dx, dy = np.broadcast_arrays((grid - x[:, None])[:, None, :], (grid - scene.y)[None, :, None])
    cos, sin = (turn(angle)[:, None, None] for turn in (np.cos, np.sin))
    distance = signed_distance(scene.shape, cos * dx + sin * dy, cos * dy - sin * dx, (scene.radius * scale)[:, None, None])
    body = np.clip(0.5 - distance / _OUTLINE, 0, 1)
    halo = _HALO * np.exp(-np.maximum(distance, 0) / _HALO_REACH)
    return light[:, None, None] * (body + (1 - body) * halo)


def _move(scene: Scene, times: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """x in pixels, scale of the radius, angle in radians (clockwise on the screen) and brightness in 0..1, at each time."""
    share = times / (NUM_FRAMES - 1) * scene.speed
    wave = np.sin(2 * np.pi * times / _PERIOD * scene.speed + scene.phase)
    x, scale, angle, light = np.full_like(times, scene.x), np.ones_like(times), np.full_like(times, scene.angle), np.ones_like(times)
    if scene.motion in ("left", "right"):
        x += (1 if scene.motion == "right" else -1) * _SLIDE * (2 * share - 1)
    elif scene.motion in ("clockwise", "anticlockwise"):
        angle += (1 if scene.motion == "clockwise" else -1) * 2.4 * share
    elif scene.motion in ("grow", "shrink"):
        start, end = (_SMALLEST, _LARGEST) if scene.motion == "grow" else (_LARGEST, _SMALLEST)
        scale = start + (end - start) * np.minimum(share, 1)
    elif scene.motion == "pulse":
        scale = 0.95 + 0.32 * wave
    else:
        assert scene.motion == "blink", scene.motion
        light = 0.55 + 0.45 * wave
    return x, scale, angle, light


def draw_ground(scene: Scene) -> Floats:
    """[SIZE, SIZE, 3]: from one colour to the other along the ground's slope."""
    grid = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE - 0.5
    (x, y), cos, sin = _SLOPES[scene.ground], np.cos(scene.tilt), np.sin(scene.tilt)
    along = np.clip(0.5 + (x * cos - y * sin) * grid[None, :] + (x * sin + y * cos) * grid[:, None], 0, 1)[..., None]
    near, far = (np.array(colour, np.float32) for colour in GROUNDS[scene.ground])
    return near + (far - near) * along
