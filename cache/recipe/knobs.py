"""Which settings of a recipe trade quality for speed. Knows triggers' settings; what other values of them give is measured elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .part import Part
from .recipe import Recipe

_RUNGS_PER_OCTAVE = 4


@dataclass(frozen=True)
class Knob:
    """Settings of a trigger that are multiplied by one factor: the larger they are, the more is reused.

    octaves: how many doublings, or halvings, away from the recipe's values they may go. least: the smallest value that makes sense where
    they are whole numbers; None where they are not.
    """

    settings: tuple[str, ...]
    octaves: int
    least: int | None = None

    def turn(self, config: Any, factor: float) -> Any:
        """A trigger's config with the settings `factor` times as large."""
        return replace(config, **{name: self._scale(getattr(config, name), factor) for name in self.settings})

    def _scale(self, value: Any, factor: float) -> Any:
        if isinstance(value, list):  # a codebook: its bounds grow, its intervals stay
            return [[self._scale(bound, factor), interval] for bound, interval in value]
        if self.least is not None:
            return max(self.least, round(value * factor))
        return float(f"{value * factor:.3g}")


class _Gate(Knob):
    """For a range that reaches to the end of the take and is reused whole (T-GATE). Its length in timesteps, `high` less `low`, is what is
    multiplied.
    """

    def turn(self, config: Any, factor: float) -> Any:
        return replace(config, high=self._scale(min(1000.0, config.low + factor * (config.high - config.low)), 1.0))


_GATE = _Gate(("high",), octaves=2)

# One line a trigger. None where there is nothing to multiply: the steps of masks and plans were chosen together.
KNOBS: dict[str, Knob | None] = {
    "guided_change": Knob(("threshold",), octaves=4),
    "interval": Knob(("interval",), octaves=2, least=2),
    "layerwise": Knob(("codebook",), octaves=4),
    "magnitude": Knob(("threshold",), octaves=4),
    "mask": None,
    "plan": None,
    "ranges": Knob(("interval",), octaves=2, least=2),
    "rate": Knob(("threshold",), octaves=4),
    "relative_change": Knob(("threshold",), octaves=4),
    "verify": Knob(("threshold", "floor"), octaves=4),
}


def _knob(part: Part) -> Knob | None:
    is_gate = part.trigger.name == "ranges" and part.trigger.config.interval == 0
    return _GATE if is_gate else KNOBS[part.trigger.name]


def ladder(recipe: Recipe) -> tuple[Recipe, ...]:
    """The recipe at several settings, slow ones first: the knobs of all its parts are multiplied by the same factors, 1 among them. A recipe
    without knobs is the only one.
    """
    knobs = [knob for part in recipe.parts if (knob := _knob(part))]
    end = _RUNGS_PER_OCTAVE * max((knob.octaves for knob in knobs), default=0)
    rungs: list[Recipe] = []
    for turn in range(-end, end + 1):
        factor = 2 ** (turn / _RUNGS_PER_OCTAVE)
        rung = replace(recipe, parts=tuple(_turn(part, factor) for part in recipe.parts)) if turn else recipe
        if rung not in rungs[-1:]:  # whole numbers stay the same over several turns
            rungs.append(rung)
    return tuple(rungs)


def _turn(part: Part, factor: float) -> Part:
    knob = _knob(part)
    return replace(part, trigger=replace(part.trigger, config=knob.turn(part.trigger.config, factor))) if knob else part


def describe_knobs(recipe: Recipe) -> str:
    """The values of a recipe's knobs, for people: `threshold 0.1`; empty if it has none."""
    knobs = [(part.trigger.config, _knob(part)) for part in recipe.parts]
    return ", ".join(f"{name} {_shown(getattr(config, name))}" for config, knob in knobs if knob for name in knob.settings)


def _shown(value: Any) -> str:
    """A codebook by its lowest and highest bound."""
    return "..".join(f"{bound:g}" for bound in dict.fromkeys((value[0][0], value[-1][0]))) if isinstance(value, list) else f"{value:g}"
