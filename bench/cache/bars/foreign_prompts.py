"""How much a plan loses that was calibrated on other scenes than those that it renders: `foreign_prompts_loss`, in dB.

10 of 50 Euler steps on 16 clips: a plan from 4 takes of the tuning clips, as a user calibrates it, against one from takes of the measured
clips' own prompts, which is as well as calibration can know them.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

from ....cache import Recipe
from ....pipeline.calibration.calibrate import calibrate
from ..contenders.contender import Tuning
from ..contenders.recipes import our_setting
from ..films.models import Clip
from ..films.studio import psnr

FOREIGN_CLIPS, _TAKES, _COMPUTED = 16, 4, 10


def foreign_prompts(tuning: Tuning, shown: list[Clip]) -> dict[str, Any]:
    """PSNR of every clip under both plans, against its uncached film. shown: the measured clips."""
    plans = {
        "foreign": _plan(tuning, tuning.clips[:_TAKES]),
        "measured": _plan(tuning, shown),
    }
    rows = []
    for clip in shown:
        frames = tuning.studio.frames(tuning.studio.film(clip, tuning.stage.steps).latents)
        row: dict[str, Any] = asdict(clip)
        for name, recipe in plans.items():
            with our_setting(name, recipe, tuning.stage.steps).put(tuning.studio.pipe):
                film = tuning.studio.film(clip, tuning.stage.steps)
            row[name] = round(psnr(tuning.studio.frames(film.latents), frames), 2)
        rows.append(row)
    means = {name: round(fmean(row[name] for row in rows), 2) for name in plans}
    return {"loss": round(means["measured"] - means["foreign"], 2), **means, "of_clips": rows, "plans": {n: p.to_dict() for n, p in plans.items()}}


def _plan(tuning: Tuning, clips: list[Clip]) -> Recipe:
    return calibrate("planned", tuning.renderer, replace(tuning, clips=clips).takes, computed=_COMPUTED)
