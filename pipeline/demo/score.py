"""How well the demo model does what it is asked: `python -m longtake.pipeline.demo.score --clips 64`.

Renders held-out combinations with fixed seeds and counts how often colour, shape, motion and background are right.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...cache import Recipe
from ...files import written_whole
from ..checkpoint.card import read_card
from ..loop.render import Renderer
from ..recipes.choose import find_recipe
from ..take import Take
from .analyse import Verdict, judge
from .scene import sample_scene, sentence


@dataclass(frozen=True)
class ScoredClip:
    """frames: [num_frames, height, width, 3], uint8."""

    prompt: str
    verdict: Verdict
    frames: NDArray[np.uint8]


@dataclass(frozen=True)
class Score:
    """Shares in 0..1 of clips that are right in each respect."""

    num_clips: int
    colour: float
    shape: float
    motion: float
    background: float

    @classmethod
    def of(cls, verdicts: list[Verdict]) -> Score:
        shares = {name: sum(getattr(v, name) for v in verdicts) / len(verdicts) for name in ("colour", "shape", "motion", "background")}
        return cls(num_clips=len(verdicts), **shares)


def score_clips(renderer: Renderer, num_clips: int, *, num_inference_steps: int = 30, recipe: Recipe | None = None) -> Iterator[ScoredClip]:
    """Render and judge held-out scenes 0 to `num_clips`; the same scenes and seeds at every call."""
    for index in range(num_clips):
        scene = sample_scene(np.random.default_rng((11, index)), held_out=True)
        settings: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": renderer.family.card.guidance_scale}
        take = Take.clip(renderer.family.card, f"scene-{index}", sentence(scene), seed=index, **settings)
        frames = render_frames(renderer, take, recipe)
        yield ScoredClip(take.prompts[0].text, judge(frames, scene), frames)


def render_frames(renderer: Renderer, take: Take, recipe: Recipe | None = None) -> NDArray[np.uint8]:
    """A take's frames as viewers get them before compression: [num_frames, height, width, 3], uint8."""
    latents = renderer.render(take, recipe).latents
    return torch.cat(list(renderer.family.decode(latents))).mul(255).round().byte().cpu().numpy()


def save_sheet(clips: list[NDArray[np.uint8]], path: Path, *, stills: int = 6, columns: int = 3) -> None:
    """Clips, [num_frames, height, width, 3] each, as strips of stills, `columns` of them side by side, in order."""
    strips = [np.concatenate([frames[i] for i in np.linspace(0, len(frames) - 1, stills).astype(int)], axis=1) for frames in clips]
    strips += [np.zeros_like(strips[0])] * (-len(strips) % columns)
    framed = [np.pad(strip, ((2, 2), (2, 2), (0, 0))) for strip in strips]
    rows = [np.concatenate(framed[i : i + columns], axis=1) for i in range(0, len(framed), columns)]
    with written_whole(path) as temporary:
        Image.fromarray(np.concatenate(rows, axis=0)).save(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="'demo' or a checkpoint folder")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30, help="denoising steps a clip")
    parser.add_argument("--cache", default="none", help="a recipe to render with")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (PNG)")
    options = parser.parse_args()
    card = read_card(options.model)
    recipe = None if options.cache == "none" else find_recipe(options.cache, card, options.steps)
    clips = []
    for clip in score_clips(Renderer(card), options.clips, num_inference_steps=options.steps, recipe=recipe):
        clips.append(clip)
        wrong = [name for name, right in asdict(clip.verdict).items() if not right]
        print(f"{len(clips) - 1:3} {clip.prompt}: {'wrong ' + ', '.join(wrong) if wrong else 'right'}", flush=True)
    if options.sheet:
        save_sheet([clip.frames for clip in clips], options.sheet)
    print(json.dumps(asdict(Score.of([clip.verdict for clip in clips]))))


if __name__ == "__main__":
    main()
