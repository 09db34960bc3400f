"""What is measured a piece at a time: a model on a sampler with so many steps a film."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """model: one of MODELS. sampler: as takes have it. clips: how many are measured; first_clips: on how many of them every contender is."""

    model: str
    sampler: str
    steps: int
    clips: int = 8
    first_clips: int = 1

    @property
    def name(self) -> str:
        return f"{self.model}/{self.sampler}/{self.steps}"


STAGES = (
    Stage("demo", "euler", 50),
    Stage("demo", "unipc", 50),
    Stage("second", "euler", 50),
    Stage("demo", "unipc", 30, clips=4),
    Stage("demo", "euler", 12),
    Stage("demo", "euler", 6, clips=2),
)


def stage_named(name: str) -> Stage:
    """Raises ValueError, with those that there are, for a name that none has."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ValueError(f"There is no stage '{name}'; known: {', '.join(stage.name for stage in STAGES)}.")


_SETTINGS, _KEPT = 400, 0.3  # of a stage; the share of them that is rendered on every clip
_FILM_STEPS, _TUNING_FILMS = 0.5, 250  # steps of a film, uncached ones beside it included, as a share of the stage's; what tuning renders
_STEP_SECONDS, _DECODE_SECONDS = 0.095, 0.45  # CPU time of the demo model on a Xeon of 2023


def expected_hours(stage: Stage) -> float:
    """About how long a stage takes on one core."""
    films = _SETTINGS * (stage.first_clips + _KEPT * (stage.clips - stage.first_clips))
    steps = stage.steps * (_TUNING_FILMS + _FILM_STEPS * films)
    return (steps * _STEP_SECONDS + films * _DECODE_SECONDS) / 3600
