"""The demo model's world: scenes of one or two flat-shaded things over a background, their sentences and their pictures.

Knows attributes, wording and drawing. Knows nothing of models: training and scoring both read from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

SIZE = 96
FPS = 16

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 40),
    "purple": (170, 40, 210),
    "cyan": (40, 205, 220),
}
SHAPES = ("circle", "square", "triangle", "cross")
WRAPPING = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BOUNCING = {"sideways": (1, 0), "vertically": (0, 1)}
MOTIONS = (*WRAPPING, *BOUNCING, "circling", "still")
PLAIN_BACKGROUNDS = {"black": (30, 30, 30), "grey": (125, 125, 125), "white": (225, 225, 225), "sand": (195, 175, 130)}
TEXTURED_BACKGROUNDS = {"striped": ((80, 80, 90), (165, 165, 175)), "checkered": ((55, 50, 45), (165, 155, 145))}
BACKGROUNDS = (*PLAIN_BACKGROUNDS, *TEXTURED_BACKGROUNDS)

_VERBS = {
    "left": ("moves left", "is moving left", "drifts to the left"),
    "right": ("moves right", "is moving right", "drifts to the right"),
    "up": ("moves up", "is moving up", "drifts to the top"),
    "down": ("moves down", "is moving down", "drifts to the bottom"),
    "sideways": ("bounces left and right", "is bouncing left and right", "bounces sideways"),
    "vertically": ("bounces up and down", "is bouncing up and down", "bounces vertically"),
    "circling": ("moves in a circle", "is circling", "circles around"),
    "still": ("stands still", "is standing still", "does not move"),
}
_REACH = 1.3  # no shape reaches farther from its centre than this many radii to the sides
_OUTLINE = 3.0  # pixels from full cover to none: a harder edge takes most of what a small VAE can encode
_ORBIT = 20.0  # pixels, the radius of a circling thing's way
_JITTER, _APART, _HEADROOM = 10.0, 22.0, 30.0  # pixels, see _place
_PLACES = ("over a {} background", "on a {} background", "in front of a {} background")


@dataclass(frozen=True)
class Thing:
    """One object. Lengths in pixels, speed in pixels a frame, angle (circling only) in radians."""

    shape: str
    colour: str
    motion: str
    x: float
    y: float
    radius: float
    speed: float
    angle: float


@dataclass(frozen=True)
class Scene:
    """One or two things (the last is drawn on top), of one motion, over a background that is textured and drifting, or plain."""

    things: tuple[Thing, ...]
    background: str
    phase: tuple[float, float]
    drift: tuple[float, float]

    def combinations(self) -> Iterator[tuple[str, str, str, str]]:
        for thing in self.things:
            yield thing.shape, thing.colour, thing.motion, self.background


def is_held_out(shape: str, colour: str, motion: str, background: str) -> bool:
    """A fifth of all combinations, spread evenly: each pair of attributes is still seen together in training."""
    ordinal = SHAPES.index(shape) + 2 * list(COLOURS).index(colour) + 3 * MOTIONS.index(motion) + 4 * BACKGROUNDS.index(background)
    return ordinal % 5 == 0


def sample_scene(rng: Generator, *, held_out: bool = False, two_things: float = 0.3) -> Scene:
    """Draw a scene whose things are all held-out combinations, or all trained ones. `two_things`: share of scenes with two."""
    count = 2 if rng.random() < two_things else 1
    while True:
        background = str(rng.choice(BACKGROUNDS))
        colours = rng.choice(list(COLOURS), size=count, replace=False)
        motion = str(rng.choice(MOTIONS))
        sides = [0.0] if count == 1 else [-1.0, 1.0]
        things = tuple(_sample_thing(rng, str(colour), motion, side) for colour, side in zip(colours, sides, strict=True))
        scene = Scene(things, background, phase=tuple(rng.uniform(0, SIZE, 2)), drift=tuple(rng.uniform(-0.5, 0.5, 2)))
        if all(is_held_out(*combination) == held_out for combination in scene.combinations()):
            return scene


def all_held_out() -> list[tuple[str, str, str, str]]:
    return [c for c in product(SHAPES, COLOURS, MOTIONS, BACKGROUNDS) if is_held_out(*c)]


def _sample_thing(rng: Generator, colour: str, motion: str, side: float) -> Thing:
    x, y, angle = _place(rng, motion, side)
    slowest, fastest = {"circling": (3.0, 3.6), "still": (0.0, 0.0)}.get(motion, (2.6, 3.0) if motion in BOUNCING else (1.9, 2.5))
    return Thing(
        shape=str(rng.choice(SHAPES)),
        colour=colour,
        motion=motion,
        x=x,
        y=y,
        radius=float(rng.uniform(17, 20)),
        speed=float(rng.uniform(slowest, fastest)),
        angle=angle,
    )


def _place(rng: Generator, motion: str, side: float) -> tuple[float, float, float]:
    """Where a take finds a thing: (x, y, angle). side: 0 for a thing alone, -1 and 1 for two, which are put apart across their way.

    A wrapping thing starts where it has the frame before it, any other near the middle: the motion alone then tells about where a
    thing is at each time. If things started anywhere, a denoiser would see no use for the sentence while noise is high, which is
    when it decides on a motion, and would need far more training to find one.
    """
    dx, dy = WRAPPING.get(motion) or BOUNCING.get(motion) or (0, 1)
    ahead = _HEADROOM if motion in WRAPPING else 0.0
    x, y = rng.uniform(-_JITTER, _JITTER, 2) + SIZE / 2 - ahead * np.array([dx, dy]) + side * _APART * np.array([dy != 0, dx != 0])
    return float(x), float(y), float(rng.uniform(-0.5, 0.5) + np.pi * (side > 0))


def sentence(scene: Scene, rng: Generator | None = None) -> str:
    """Say the whole scene; with `rng` the wording varies, without it is the plainest."""
    return join_clauses(clauses(scene, rng))


def clauses(scene: Scene, rng: Generator | None = None) -> list[str]:
    """What a sentence says of each thing, in their order, and of the background."""

    def pick(options: tuple[str, ...]) -> str:
        return str(rng.choice(options)) if rng is not None else options[0]

    things = [f"a {thing.colour} {thing.shape} {pick(_VERBS[thing.motion])}" for thing in scene.things]
    return [*things, pick(_PLACES).format(scene.background)]


def join_clauses(parts: list[str]) -> str:
    return f"{' and '.join(parts[:-1])} {parts[-1]}"


def vocabulary() -> list[str]:
    """Every word that `sentence` can use, sorted."""
    texts = [*SHAPES, *COLOURS, *BACKGROUNDS, "a", "and", *_PLACES, *(verb for verbs in _VERBS.values() for verb in verbs)]
    return sorted({word for text in texts for word in text.replace("{}", "").split()})


def draw(scene: Scene, num_frames: int, start: int = 0) -> NDArray[np.uint8]:
    """Frames `start` to `start + num_frames` of the scene: [num_frames, SIZE, SIZE, 3], uint8 RGB."""
    times = np.arange(start, start + num_frames, dtype=np.float32)
    frames = _draw_background(scene, times)
    for thing in scene.things:
        cover = _cover(thing, times)[..., None]
        frames = frames * (1 - cover) + np.array(COLOURS[thing.colour], np.float32) * cover
    return np.rint(frames).astype(np.uint8)


def positions(thing: Thing, times: NDArray[np.floating]) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Centre (x, y) at each time; wrapping motions leave [0, SIZE) and are drawn on a torus."""
    if thing.motion in WRAPPING:
        dx, dy = WRAPPING[thing.motion]
        return thing.x + dx * thing.speed * times, thing.y + dy * thing.speed * times
    if thing.motion in BOUNCING:
        dx, dy = BOUNCING[thing.motion]
        margin = _REACH * thing.radius
        fold = _fold(thing.x if dx else thing.y, thing.speed * times, margin)
        still_x, still_y = np.clip([thing.x, thing.y], margin, SIZE - margin)
        return (fold, np.full_like(times, still_y)) if dx else (np.full_like(times, still_x), fold)
    if thing.motion == "circling":
        margin = _ORBIT + _REACH * thing.radius
        centre_x, centre_y = np.clip([thing.x, thing.y], margin, SIZE - margin)
        angle = thing.angle + thing.speed / _ORBIT * times
        return centre_x + _ORBIT * np.cos(angle), centre_y + _ORBIT * np.sin(angle)
    margin = _REACH * thing.radius
    x, y = np.clip([thing.x, thing.y], margin, SIZE - margin)
    return np.full_like(times, x), np.full_like(times, y)


def _fold(start: float, travelled: NDArray[np.floating], margin: float) -> NDArray[np.floating]:
    """Walk to and fro between the margins."""
    span = SIZE - 2 * margin
    along = np.mod(start + travelled, 2 * span)
    return (margin + np.where(along < span, along, 2 * span - along)).astype(np.float32)


def _cover(thing: Thing, times: NDArray[np.floating]) -> NDArray[np.floating]:
    """How much of each pixel the thing covers, [frames, SIZE, SIZE] in 0..1, by its signed distance."""
    x, y = positions(thing, times)
    grid = np.arange(SIZE, dtype=np.float32) + 0.5
    half = SIZE / 2
    dx = np.mod(grid[None, :] - x[:, None] + half, SIZE) - half
    dy = np.mod(grid[None, :] - y[:, None] + half, SIZE) - half
    return np.clip(0.5 - signed_distance(thing.shape, dx[:, None, :], dy[:, :, None], thing.radius) / _OUTLINE, 0, 1)


def signed_distance(shape: str, dx: NDArray[np.floating], dy: NDArray[np.floating], radius: float) -> NDArray[np.floating]:
    """Distance to the shape's outline, negative inside; all shapes cover about the same area at the same radius."""
    if shape == "circle":
        return np.sqrt(dx**2 + dy**2) - radius
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.89 * radius
    if shape == "triangle":
        slanted = np.abs(dx) * 0.866 - dy * 0.5
        return np.maximum(slanted, dy) - 0.72 * radius
    assert shape == "cross", shape
    arm, width = 1.12 * radius, 0.4 * radius
    across = np.maximum(np.abs(dx) - arm, np.abs(dy) - width)
    upright = np.maximum(np.abs(dx) - width, np.abs(dy) - arm)
    return np.minimum(across, upright)


def _draw_background(scene: Scene, times: NDArray[np.floating]) -> NDArray[np.floating]:
    if scene.background in PLAIN_BACKGROUNDS:
        frames = np.empty((len(times), SIZE, SIZE, 3), np.float32)
        frames[:] = PLAIN_BACKGROUNDS[scene.background]
        return frames
    grid = np.arange(SIZE, dtype=np.float32)[None, :]
    x = grid - (scene.phase[0] + scene.drift[0] * times)[:, None]
    y = grid - (scene.phase[1] + scene.drift[1] * times)[:, None]
    if scene.background == "striped":
        wave = np.broadcast_to(_wave(y, period=24)[:, :, None], (len(times), SIZE, SIZE))
    else:
        wave = _wave(x, period=32)[:, None, :] * _wave(y, period=32)[:, :, None]
    dark, light = (np.array(colour, np.float32) for colour in TEXTURED_BACKGROUNDS[scene.background])
    return dark + (light - dark) * (0.5 + 0.5 * wave[..., None])


def _wave(along: NDArray[np.floating], period: float) -> NDArray[np.floating]:
    return np.sin(2 * np.pi / period * along)
