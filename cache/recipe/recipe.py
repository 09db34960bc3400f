"""A recipe: a named cache method as trigger x site x predictor with common guards, written as YAML in configs/cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

from ..sites import ModelShape
from ..state.storage import DTYPES
from .calibration import Calibration
from .config import read_config
from .fit import Fit, no_fit
from .guards import Guards
from .part import Part, RawPart, read_part

ABSCISSAE = ("step", "sigma")
# Which branches decide:
# each: every branch for itself; cond: the conditional one for both (EasyCache); joint: from the signals of both, before either runs.
BRANCHES = ("each", "cond", "joint")
AGGREGATES = ("mean", "max")  # of the segments of a take that one call shows: decide from the sums of all, or as the one that asks for most does
# What becomes of the state at a border, where a rollout goes from one chunk to the next:
# reset: all of it is forgotten; keep: what triggers have learnt that holds for the next chunk as well goes on, and all else is forgotten.
BORDERS = ("reset", "keep")
CATEGORIES = ("static", "timestep-adaptive", "layer-adaptive", "predictive", "hybrid")  # survey arXiv 2510.19755, section 3


@dataclass(frozen=True)
class Recipe:
    """name, category (of CATEGORIES) and paper are for people; the rest decides the film.

    parts: one as a rule; several where a method treats parts of the model differently. abscissa: what predictors extrapolate along,
    `step` or `sigma`. branches: of BRANCHES, which guidance branches decide. dtype: of DTYPES in state/storage.py, how features are kept.
    calibrated: whether the method needs numbers that are measured on the model. calibration: what they were measured on; a calibrated
    recipe without it can be shown and changed, but not rendered with. fits: published numbers for known models, which `fitted` puts in.
    aggregate: of AGGREGATES, how a banded take's segments decide.
    border: of BORDERS, what becomes of the state where a rollout goes on to the next chunk.
    """

    name: str
    category: str
    paper: str
    parts: tuple[Part, ...]
    guards: Guards
    abscissa: str = "step"
    branches: str = "each"
    dtype: str = "model"
    calibration: Calibration | None = None
    calibrated: bool = False
    fits: tuple[Fit, ...] = ()
    aggregate: str = "mean"
    border: str = "reset"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Recipe:
        """Raises ValueError for unknown parts and settings, with the nearest known one."""
        raw = read_config(_RawRecipe, values, "The recipe")
        where = f"Recipe '{raw.name}'"
        choices = (
            ("abscissa", raw.abscissa, ABSCISSAE),
            ("branches", raw.branches, BRANCHES),
            ("dtype", raw.dtype, tuple(DTYPES)),
            ("aggregate", raw.aggregate, AGGREGATES),
            ("border", raw.border, BORDERS),
        )
        for setting, value, known in choices:
            if value not in known:
                raise ValueError(f"{where}: {setting} is '{value}'; it must be one of {', '.join(known)}.")
        if raw.category and raw.category not in CATEGORIES:
            raise ValueError(f"{where}: category is '{raw.category}'; it must be one of {', '.join(CATEGORIES)}.")
        if raw.parts and (raw.trigger or raw.site or raw.predictor):
            raise ValueError(f"{where} has both parts and a trigger, site or predictor of its own; put these into a part.")
        guards = read_config(Guards, raw.guards, f"{where}, guards")
        parts = [read_config(RawPart, part, f"{where}, parts") for part in raw.parts] or [raw]
        recipe = cls(
            name=raw.name,
            category=raw.category,
            paper=raw.paper,
            parts=tuple(read_part(part, where) for part in parts),
            guards=guards,
            abscissa=raw.abscissa,
            branches=raw.branches,
            dtype=raw.dtype,
            calibration=read_config(Calibration, raw.calibration, f"{where}, calibration") if raw.calibration else None,
            calibrated=raw.calibrated,
            fits=tuple(read_config(Fit, fit, f"{where}, fits") for fit in raw.fits),
            aggregate=raw.aggregate,
            border=raw.border,
        )
        try:
            recipe._check_together()
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return recipe

    def _check_together(self) -> None:
        """Raise ValueError, with the mend, for parts, guards and branches that do not go together."""
        for part in self.parts:
            part.check(self.abscissa, self.branches)
        for part in self.parts if self.border == "keep" else ():
            if not part.trigger.build().carries:
                raise ValueError(
                    f"border is keep, and trigger '{part.trigger.name}', as it is set, learns nothing that would hold for the next chunk (features "
                    f"and forecasts are never kept: a chunk begins with noise); set border to reset, or use trigger plan with max_surprise, or "
                    f"layerwise with relative: true."
                )
        for one, other in combinations([part.site for part in self.parts], 2):
            if shared := one.build().covers & other.build().covers:
                raise ValueError(
                    f"sites '{one.name}' and '{other.name}' of two parts both keep {', '.join(sorted(shared))}; leave it to one of them."
                )
        if self.aggregate == "max" and not any(part.trigger.build().measures for part in self.parts):
            names = ", ".join(part.trigger.name for part in self.parts)
            raise ValueError(f"aggregate is max, but trigger {names} measures nothing that segments could differ in; leave it out.")
        if self.guards.max_risk and self.branches == "cond":
            raise ValueError("guards.max_risk doubts each branch's own forecast, but branches is cond; set branches to each or joint.")
        if self.guards.max_risk and not any(part.predictor.kind.knows_risk for part in self.parts):
            names = ", ".join(part.predictor.name for part in self.parts)
            raise ValueError(
                f"guards.max_risk is {self.guards.max_risk:g}, but predictor {names} never doubts its forecasts; use racer, or set it to 0."
            )

    def fitted(self, model: str, dim: int, num_blocks: int) -> Recipe:
        """The recipe for a model of that name, width and number of blocks, with its published numbers where there are some.

        Raises ValueError, with the mend, if it needs numbers for the model and has none.
        """
        for fit in self.fits:
            if fit.is_for(model, dim, num_blocks):
                return replace(Recipe.from_mapping(merged(self.to_dict(), fit.changes)), calibrated=False, fits=())
        if self.calibrated and self.calibration is None:
            raise ValueError(no_fit(self.name, self.fits, model, dim, num_blocks))
        return replace(self, fits=())

    def check(self, shape: ModelShape, num_inference_steps: int) -> None:
        """Raise ValueError if the recipe cannot work on such a model, or for so many steps, or would reuse nothing in them."""
        for part in self.parts:
            part.site.build().check(shape)
        self.check_steps(num_inference_steps)
        kept = sum(self.guards.num_computed(num_inference_steps))
        if num_inference_steps <= kept:
            raise ValueError(
                f"The take has {num_inference_steps} steps and recipe '{self.name}' always computes {kept}: nothing would be reused. Use no "
                f"cache, more steps, or lower guards.first_steps."
            )

    def check_steps(self, num_inference_steps: int) -> None:
        """Raise ValueError, with the mend, if the recipe was made for takes of another number of steps."""
        if self.calibration:
            self.calibration.check_steps(num_inference_steps, self.name)
        try:
            for part in self.parts:
                part.trigger.build().check_steps(num_inference_steps)
                part.predictor.build().check_steps(num_inference_steps)
        except ValueError as error:
            raise ValueError(f"Recipe '{self.name}': {error} Make the numbers of steps equal, or run `longtake calibrate` for the take's.") from None

    def to_dict(self) -> dict[str, Any]:
        """The recipe with every default spelt out, as `from_mapping` takes it."""
        fits = {"fits": [asdict(fit) for fit in self.fits]} if self.fits else {}
        about = {"name": self.name, "category": self.category, "paper": self.paper, "calibrated": self.calibrated}
        return {**about, **self.deciding(), **fits}

    def deciding(self) -> dict[str, Any]:
        """All that decides the film; part of the film key."""
        parts = self.parts[0].to_dict() if len(self.parts) == 1 else {"parts": [part.to_dict() for part in self.parts]}
        calibration = {"calibration": self.calibration.to_dict()} if self.calibration else {}
        common = {"abscissa": self.abscissa, "branches": self.branches, "dtype": self.dtype}
        # Left out where nobody set them: older films have keys without them.
        rare = {name: value for name, value, usual in (("aggregate", self.aggregate, "mean"), ("border", self.border, "reset")) if value != usual}
        return {**parts, "guards": asdict(self.guards), **common, **rare, **calibration}


@dataclass(frozen=True)
class _RawRecipe(RawPart):
    name: str = "unnamed"
    category: str = ""
    paper: str = ""
    parts: list[dict[str, Any]] = field(default_factory=list)
    guards: dict[str, Any] = field(default_factory=dict)
    abscissa: str = "step"
    branches: str = "each"
    dtype: str = "model"
    border: str = "reset"
    calibration: dict[str, Any] = field(default_factory=dict)
    calibrated: bool = False
    fits: list[dict[str, Any]] = field(default_factory=list)
    aggregate: str = "mean"


def merged(values: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A recipe's plain values with changes to its parts, which overrule its published numbers as well.

    changes: settings by trigger, site, predictor or guards. Raises ValueError where a recipe has several triggers, sites or predictors.
    """
    for part in changes:
        if "parts" in values and part != "guards":
            raise ValueError(f"Recipe '{values.get('name')}' has several parts, so that {part} is not one; change them in a YAML file of your own.")

    def changed(place: Any) -> Any:
        """What is not a mapping is left as it is: reading the recipe refuses it."""
        if not isinstance(place, Mapping):
            return place
        parts = {part: place.get(part, {}) for part in changes}
        return {**place, **{part: {**old, **changes[part]} for part, old in parts.items() if isinstance(old, Mapping)}}

    fits = values.get("fits")
    return {**changed(values), **({"fits": [changed(fit) for fit in fits]} if isinstance(fits, list) else {})}
