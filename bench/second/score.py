"""How well the second model does what it is asked: `python -m longtake.bench.second.score --clips 64`.

Renders held-out combinations with fixed seeds, 50 steps, guidance 4 and no cache, and counts how often colour, shape, motion and ground are right.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...files import write_atomic
from ...pipeline.checkpoint.card import read_card
from ...pipeline.demo.score import render_frames, save_sheet
from ...pipeline.loop.render import Renderer
from ...pipeline.take import Take
from .judge import Verdict, judge
from .scene import sample_scene, sentence

MODEL = Path(__file__).parent / "model"
_HEADING = "## Score"


@dataclass(frozen=True)
class ScoredClip:
    """frames: [num_frames, height, width, 3], uint8."""

    prompt: str
    verdict: Verdict
    frames: NDArray[np.uint8]


def score_clips(renderer: Renderer, num_clips: int, *, num_inference_steps: int = 50) -> Iterator[ScoredClip]:
    """Render and judge held-out scenes 0 to `num_clips`; the same scenes and seeds at every call."""
    for index in range(num_clips):
        scene = sample_scene(np.random.default_rng((11, index)), held_out=True)
        settings: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": renderer.family.card.guidance_scale}
        take = Take.clip(renderer.family.card, f"scene-{index}", sentence(scene), seed=index, **settings)
        frames = render_frames(renderer, take)
        yield ScoredClip(take.prompts[0].text, judge(frames, scene), frames)


def shares(verdicts: list[Verdict]) -> dict[str, float]:
    """For each attribute the share in 0..1 of clips that show it as asked."""
    return {name: sum(asdict(verdict)[name] for verdict in verdicts) / len(verdicts) for name in asdict(verdicts[0])}


def record(readme: Path, score: dict[str, float], num_clips: int, num_inference_steps: int) -> None:
    """Say the score in the model's card, in the place of an older one."""
    told = ", ".join(f"{name} {share:.1%}" for name, share in score.items())
    how = f"{num_clips} clips of held-out combinations, {num_inference_steps} Euler steps, guidance 4, judged by `bench/second/judge.py`"
    text = f"As asked: {told}\n({how})."
    body = readme.read_text().split(_HEADING, maxsplit=1)[0].rstrip()
    write_atomic(readme, f"{body}\n\n{_HEADING}\n\n{text}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="the checkpoint folder")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50, help="denoising steps a clip")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (PNG)")
    parser.add_argument("--record", action="store_true", help="write the score into the model's README.md")
    options = parser.parse_args()
    clips = []
    for clip in score_clips(Renderer(read_card(str(options.model))), options.clips, num_inference_steps=options.steps):
        clips.append(clip)
        wrong = [name for name, right in asdict(clip.verdict).items() if not right]
        print(f"{len(clips) - 1:3} {clip.prompt}: {'wrong ' + ', '.join(wrong) if wrong else 'right'}", flush=True)
    if options.sheet:
        save_sheet([clip.frames for clip in clips], options.sheet)
    score = shares([clip.verdict for clip in clips])
    print(score)
    if options.record:
        record(options.model / "README.md", score, len(clips), options.steps)


if __name__ == "__main__":
    main()
