"""What is measured a piece at a time: a model on a sampler with so many steps a film."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """model: one of MODELS. sampler: as takes have it. clips: how many are measured."""

    model: str
    sampler: str
    steps: int
    clips: int = 8

    @property
    def name(self) -> str:
        return f"{self.model}/{self.sampler}/{self.steps}"


STAGES = (
    Stage("demo", "euler", 50),
    Stage("demo", "unipc", 50),
    Stage("second", "euler", 50),
    Stage("demo", "unipc", 30, clips=6),
    Stage("demo", "euler", 12),
    Stage("demo", "euler", 6, clips=4),
)


def stage_named(name: str) -> Stage:
    """Raises ValueError, with those that there are, for a name that none has."""
    for stage in STAGES:
        if stage.name == name:
            return stage
    raise ValueError(f"There is no stage '{name}'; known: {', '.join(stage.name for stage in STAGES)}.")


_SETTINGS, _FILMS_OF_ALL = 420, 0.55  # of a stage; the share of all films that is rendered once contenders far from the front are left
_STEP_SECONDS, _FILM_STEPS, _DECODE_SECONDS = 0.095, 0.5, 0.45  # CPU time a step; steps a film, with the uncached ones, as a share


def expected_hours(stage: Stage) -> float:
    """About how long a stage takes on one core, from what the demo model's films took on a Xeon of 2023."""
    films = stage.clips * _SETTINGS * _FILMS_OF_ALL
    return films * (stage.steps * _FILM_STEPS * _STEP_SECONDS + _DECODE_SECONDS) / 3600
