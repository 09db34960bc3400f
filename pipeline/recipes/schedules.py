"""Which schedule a take steps at: by name, beside the model, or by path. Knows cards and takes; loads no model."""

from __future__ import annotations

from pathlib import Path

from ...cache import Schedule, load_schedule
from ..checkpoint.card import ModelCard
from ..take import Take
from .choose import sampling_options

_FINE, _FEWEST = 50, 5  # steps that a schedule is chosen from, if nothing else is said, and the fewest that can be chosen from so many


def schedule_path(card: ModelCard, scheduler: str | None, num_steps: int) -> Path:
    """The path of a schedule that was planned for this model and a sampler, by its name; None for the checkpoint's own."""
    return card.path / "longtake" / f"schedule-{scheduler or card.sampler}-{num_steps}-steps.yaml"


def find_schedule(name: str, card: ModelCard, take: Take) -> Schedule | None:
    """`planned`, for the one beside the model that is for the take's sampler and number of steps, a YAML file's path, or `none`.

    Raises ValueError, with the mend, where there is none; whether it fits the take is checked by the take.
    """
    if name == "none":
        return None
    if name.endswith((".yaml", ".yml")):
        return load_schedule(name)
    if name != "planned":
        raise ValueError(f"Take '{take.name}': schedule is '{name}'; it must be planned, none, or the path of a YAML file with sigmas.")
    take.scheduled_sampler(card)
    path = schedule_path(card, take.scheduler, take.num_inference_steps)
    if path.is_file():
        return load_schedule(path)
    there = sorted(path.stem for path in card.path.glob("longtake/schedule-*-steps.yaml"))
    steps = take.num_inference_steps
    fine = "" if _FEWEST <= steps < _FINE else f" --steps {max(2 * steps, _FEWEST)}"
    raise ValueError(
        f"Take '{take.name}': there is no {path.stem} beside the model ({', '.join(there) or 'no schedule at all'}); set scheduler and "
        f"num_inference_steps to one that there is, or plan it: `longtake calibrate {card.called} --recipe schedule --scheduler "
        f"{take.scheduler or card.sampler} --computed {steps}{fine}{sampling_options(take)} --prompt ...`."
    )
