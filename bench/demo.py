"""What `make demo` costs and what the cache buys: `python -m longtake.bench demo`.

demo_minutes: the command `longtake render configs/demo.yaml` in a fresh output folder, start of Ray and imports included (downloads
and installation are not). cache_speedup: denoising of the demo's long take without and with its recipe, on one rank with all cores,
A B A B A B, the ratio of the medians. cache_psnr: between the decoded latents of both, before video compression. score_*: the shares
of held-out clips that are right. vae_psnr: of held-out clips of 33 frames that the VAE encodes and decodes. recipes_seconds and
refusal_seconds are first_call.py's, which takes seconds and can be run alone; they lie in results/first_call.json.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources

import torch
from diffusers import AutoencoderKLWan

from ..cache import Recipe
from ..jobs.settings.config import load_job
from ..jobs.settings.planning import plan_job
from ..pipeline.demo.score import Score, save_sheet, score_clips
from ..pipeline.demo.training.vae import held_out_psnr
from ..pipeline.film.compare import compare_frames
from ..pipeline.loop.render import Renderer, WholeTake
from ..pipeline.take import Take
from . import first_call
from .results import RESULTS, Bar, write_results

_ROUNDS = 3
_CLIPS = 64


def main() -> None:
    first_call.main()
    job = str(resources.files("longtake.configs") / "demo.yaml")
    with tempfile.TemporaryDirectory() as folder:
        minutes = _time_demo(job, folder)
        plan = plan_job(load_job(job, [f"output={folder}/again"]))
    long = next(planned.take for planned in plan.takes if planned.take.name == "long")
    assert plan.recipe is not None
    renderer = Renderer(plan.card, plan.model_options)
    seconds, rendered = _time_cache(renderer, long, plan.recipe)
    plain, cached = ([chunk.mul(255).round().byte().numpy() for chunk in renderer.family.decode(one.latents)] for one in rendered)
    comparison = compare_frames(plain, cached)
    clips = list(score_clips(renderer, _CLIPS))
    save_sheet([clip.frames for clip in clips], RESULTS / "demo_score.png")
    score = Score.of([clip.verdict for clip in clips])
    vae = AutoencoderKLWan.from_pretrained(plan.card.path / "vae", torch_dtype=torch.float32)
    medians = [statistics.median(runs) for runs in seconds]
    bars = {
        "demo_minutes": Bar(round(minutes, 2), "min", 6, at_least=False),
        "cache_speedup": Bar(round(medians[0] / medians[1], 3), "x", 1.5, at_least=True),
        "cache_psnr": Bar(round(comparison.psnr, 2), "dB", 26, at_least=True),
        "score_colour": Bar(round(score.colour, 3), "share", 0.95, at_least=True),
        "score_background": Bar(round(score.background, 3), "share", 0.95, at_least=True),
        "score_motion": Bar(round(score.motion, 3), "share", 0.9, at_least=True),
        "score_shape": Bar(round(score.shape, 3), "share", 0.85, at_least=True),
        "vae_psnr": Bar(round(held_out_psnr(vae), 2), "dB", 30, at_least=True),
    }
    decisions = rendered[1].trace.summary() if rendered[1].trace else {}
    raw = {
        "threads": torch.get_num_threads(),
        "recipe": plan.recipe.to_dict(),
        "seconds_without_cache": seconds[0],
        "seconds_with_cache": seconds[1],
        "decisions": decisions,
        "cache_ssim": round(comparison.ssim, 4),
        "score_clips": score.num_clips,
    }
    write_results("demo", bars, raw)


def _time_demo(job: str, folder: str) -> float:
    """Minutes of the demo's command; its long take's contact sheet is kept beside the results."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "longtake", "render", job, f"output={folder}/demo"], check=True)
    minutes = (time.monotonic() - began) / 60
    RESULTS.mkdir(exist_ok=True)
    shutil.copy(f"{folder}/demo/long/contact_sheet.jpg", RESULTS / "demo_long.jpg")
    return minutes


def _time_cache(renderer: Renderer, take: Take, recipe: Recipe) -> tuple[list[list[float]], list[WholeTake]]:
    """Seconds of each round and the last render, without and with the cache, in turn."""
    seconds: list[list[float]] = [[], []]
    rendered: list[WholeTake] = []
    for _ in range(_ROUNDS):
        rendered.clear()
        for runs, choice in zip(seconds, (None, recipe), strict=True):
            began = time.monotonic()
            rendered.append(renderer.render(take, choice))
            runs.append(round(time.monotonic() - began, 3))
    return seconds, rendered


if __name__ == "__main__":
    main()
