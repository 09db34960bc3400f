"""What to turn on a recipe to trade quality for speed. Knows settings of triggers; what a turn costs is measured elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .part import Part
from .recipe import Recipe

_RUNGS_PER_OCTAVE = 4


@dataclass(frozen=True)
class Knob:
    """Settings of a trigger that grow together, the larger the faster, up to `octaves` doublings or halvings from what a recipe says.

    least: the smallest value of settings that are whole numbers; None for the others.
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
    """Where a range begins that ends with the take and is reused as a whole (T-GATE): what is turned is its length in timesteps."""

    def turn(self, config: Any, factor: float) -> Any:
        return replace(config, high=self._scale(min(1000.0, config.low + factor * (config.high - config.low)), 1.0))


_GATE = _Gate(("high",), octaves=2)

# One line a trigger. None: nothing to turn; the steps of masks and plans were chosen together.
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
    """The recipe with the knobs of all its parts turned alike, from slow to fast, itself among them; itself alone if it has none."""
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
    """Where a recipe's knobs stand, for people: `threshold 0.1`; empty if it has none."""
    knobs = [(part.trigger.config, _knob(part)) for part in recipe.parts]
    return ", ".join(f"{name} {_shown(getattr(config, name))}" for config, knob in knobs if knob for name in knob.settings)


def _shown(value: Any) -> str:
    """A codebook by its lowest and highest bound."""
    return "..".join(f"{bound:g}" for bound in dict.fromkeys((value[0][0], value[-1][0]))) if isinstance(value, list) else f"{value:g}"
