"""A schedule as data: read, checked and written. Knows no scheduler but by name, and no tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..recipe.config import read_config

# The classes of diffusers that step at any sigmas that they are given, with one model call each.
SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler")


@dataclass(frozen=True)
class Schedule:
    """The sigmas (shares of noise in the latents) at which a take calls its model, and what they were planned for.

    sigmas: descending, at most 1 and above 0; the 0 that a take ends at is left out. scheduler: the class of the sampler in diffusers; settings:
    those of its config that decide how it steps. flow_shift, guidance_scale: of the takes that the sigmas were planned on. model: its hash.
    All but the sigmas may be left out, and is not checked then.
    """

    sigmas: list[float]
    scheduler: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    flow_shift: float | None = None
    guidance_scale: float | None = None
    model: str = ""

    def __post_init__(self) -> None:
        ends = [1.0 + 1e-12, *self.sigmas, 0.0]
        for number, (before, sigma, after) in enumerate(zip(ends, self.sigmas, ends[2:], strict=False), start=1):
            if not before > sigma > after:
                raise ValueError(f"sigma {number} of {len(self.sigmas)} is {sigma:g}; they must be at most 1, descend, and stay above 0.")
        if not self.sigmas:
            raise ValueError("sigmas is empty; give one for each step, [1.0, 0.9, 0.6] for example.")

    @property
    def num_steps(self) -> int:
        return len(self.sigmas)

    def check(self, where: str, **found: Any) -> None:
        """Raise ValueError for a sampler, flow shift or guidance that is not what the sigmas were planned for. found: by the names that they have
        here. where: what is checked, as the message begins.
        """
        for name, value in found.items():
            planned = getattr(self, name)
            if planned not in (None, "", value):
                raise ValueError(
                    f"{where}: the schedule was planned for {name} {planned}, and {name} is {value} here; make them equal, or plan one with "
                    f"`longtake calibrate` and --recipe schedule."
                )

    def check_model(self, where: str, model: str) -> None:
        """Raise ValueError for another model than the one that the sigmas were planned for. model: its hash."""
        if self.model not in ("", model):
            raise ValueError(
                f"{where}: the schedule was planned for another model; plan one for this model with `longtake calibrate` and --recipe schedule."
            )

    def to_yaml(self) -> str:
        """The content of a file that `load_schedule` reads."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


def load_schedule(schedule: str | Path | Mapping[str, Any] | Sequence[float] | Schedule) -> Schedule:
    """A schedule from a YAML file's path, a mapping of the same form, or its sigmas alone. Raises ValueError, with the mend, for what is none."""
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, str | Path):
        return read_config(Schedule, _read(Path(schedule)), f"Schedule '{schedule}'")
    if isinstance(schedule, Mapping):
        return read_config(Schedule, schedule, "The schedule")
    if not isinstance(schedule, Sequence) or not all(isinstance(sigma, int | float) and not isinstance(sigma, bool) for sigma in schedule):
        raise ValueError(f"The schedule is {schedule!r}; give a YAML file's path, or a list of sigmas such as [1.0, 0.9, 0.6].")
    return read_config(Schedule, {"sigmas": [float(sigma) for sigma in schedule]}, "The schedule")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ValueError(f"The schedule '{path}' cannot be read ({error.strerror}); give the path of a YAML file with sigmas.") from None
    except yaml.YAMLError as error:
        raise ValueError(f"Schedule '{path}' is not valid YAML: {' '.join(str(error).split())}; mend it, or plan it again.") from None
    if not isinstance(values, dict):
        raise ValueError(f"Schedule '{path}' must be a mapping with sigmas, one for each step.")
    if "sigmas" in values and not isinstance(values["sigmas"], list):
        raise ValueError(f"Schedule '{path}': sigmas is {values['sigmas']!r}; it must be a list such as [1.0, 0.9, 0.6].")
    return values
