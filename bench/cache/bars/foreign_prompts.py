"""How much a plan loses that was calibrated on other scenes than those that it renders: `foreign_prompts_loss`, in dB.

10 of 50 Euler steps on 16 clips: a plan from 4 takes of the tuning clips, as a user calibrates it, against one from takes of the measured
clips' own prompts, which is as well as calibration can know them. Beside these, plans from 2 and from 8 tuning clips.
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

FOREIGN_CLIPS, _COMPUTED = 16, 10
FOREIGN_TAKES = (2, 4, 8)
_USUAL = 4


def foreign_prompts(tuning: Tuning, foreign: list[Clip], shown: list[Clip]) -> dict[str, Any]:
    """PSNR of every clip under all plans, against its uncached film. foreign: tuning clips, as many as the largest of FOREIGN_TAKES; shown: the
    measured clips.
    """
    plans = {f"{count} foreign": _plan(tuning, foreign[:count]) for count in FOREIGN_TAKES}
    plans["measured"] = _plan(tuning, shown)
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
    loss = round(means["measured"] - means[f"{_USUAL} foreign"], 2)
    return {"loss": loss, "means": means, "of_clips": rows, "plans": {name: plan.to_dict() for name, plan in plans.items()}}


def _plan(tuning: Tuning, clips: list[Clip]) -> Recipe:
    return calibrate("planned", tuning.renderer, replace(tuning, clips=clips).takes, computed=_COMPUTED)
