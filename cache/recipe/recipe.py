"""A recipe: a named cache method as trigger x site x predictor with common guards, written as YAML in configs/cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from itertools import combinations
from math import ceil
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from omegaconf import MISSING

from ..predictors import PREDICTORS, Predictor
from ..sites import SITES, ModelShape, Site
from ..state.storage import DTYPES
from ..triggers import TRIGGERS, Moment, Trigger
from .config import check_count, read_config, suggestion

Kind = TypeVar("Kind")
ABSCISSAE = ("step", "sigma")
# each: every branch for itself; cond: the conditional one for both (EasyCache); joint: from the signals of both, before either runs.
BRANCHES = ("each", "cond", "joint")
CATEGORIES = ("static", "timestep-adaptive", "layer-adaptive", "predictive", "hybrid")  # survey arXiv 2510.19755, section 3


@dataclass(frozen=True)
class Guards:
    """Common to all recipes: steps that are computed whatever the trigger says.

    first_steps, last_steps: computed at the start and the end of a take; below 1 they are shares of its steps. max_reused_steps: longest
    run of reuse (0: no limit). max_risk: a predictor's own doubt (RACER's relative disagreement) from which a step is computed; the next
    step that the trigger would have computed is then reused instead, unless it is in doubt as well (0: no limit).
    """

    first_steps: float = 1
    last_steps: float = 1
    max_reused_steps: int = 0
    max_risk: float = 0.0

    def __post_init__(self) -> None:
        if self.first_steps <= 0:
            raise ValueError(f"first_steps is {self.first_steps:g}; the first step can only be computed, so at least 1.")
        check_count("first_steps", self.first_steps)
        check_count("last_steps", self.last_steps)
        if min(self.last_steps, self.max_reused_steps, self.max_risk) < 0:
            raise ValueError(
                f"last_steps={self.last_steps:g}, max_reused_steps={self.max_reused_steps} and max_risk={self.max_risk:g} must not be negative."
            )

    def num_computed(self, num_inference_steps: int) -> tuple[int, int]:
        """How many first and last steps of a take are computed."""
        first, last = (ceil(n * num_inference_steps) if n < 1 else int(n) for n in (self.first_steps, self.last_steps))
        return first, last

    def compel(self, moment: Moment, reused_run: int) -> bool:
        """Whether this step must be computed. reused_run: how many steps in a row were reused just before it."""
        first, last = self.num_computed(moment.num_inference_steps)
        too_long = 0 < self.max_reused_steps <= reused_run
        return too_long or moment.step < first or moment.step >= moment.num_inference_steps - last


@dataclass(frozen=True)
class Calibration:
    """model: hash of the model that was measured (pipeline.model_hash). num_inference_steps: of the takes, 0 if it fits any.
    flow_shift: of their sigmas, None for the model's own.
    """

    model: str = ""
    num_inference_steps: int = 0
    flow_shift: float | None = None

    def check(self, model: str, num_inference_steps: int, flow_shift: float | None, recipe: str) -> None:
        """Raise ValueError, with the mend, for another model, number of steps or course of sigma."""
        if model != self.model:
            raise ValueError(f"Recipe '{recipe}' was calibrated for another model; run `longtake calibrate` on this one.")
        self.check_steps(num_inference_steps, recipe)
        if self.num_inference_steps and self.flow_shift != flow_shift:
            stated = ("the model's own flow_shift" if shift is None else f"flow_shift {shift:g}" for shift in (self.flow_shift, flow_shift))
            raise ValueError(
                f"Recipe '{recipe}' was calibrated with {next(stated)}, the take has {next(stated)}; make them equal, or run `longtake calibrate` "
                f"with the take's."
            )

    def check_steps(self, num_inference_steps: int, recipe: str) -> None:
        """Raise ValueError, with the mend, for takes of another number of steps."""
        if self.num_inference_steps not in (0, num_inference_steps):
            raise ValueError(
                f"Recipe '{recipe}' was calibrated for {self.num_inference_steps} steps, the take has {num_inference_steps}; make them equal, "
                f"or run `longtake calibrate` with --steps {num_inference_steps}."
            )


@dataclass(frozen=True)
class Fit:
    """Published numbers for one model, told by its width and number of blocks: changes to the recipe's parts."""

    model: str = MISSING
    dim: int = MISSING
    num_blocks: int = MISSING
    trigger: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)
    guards: dict[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        every = {"trigger": self.trigger, "site": self.site, "predictor": self.predictor, "guards": self.guards}
        return {part: settings for part, settings in every.items() if settings}


@dataclass(frozen=True)
class Choice(Generic[Kind]):
    """One registered part with its settings; `build` makes a fresh one."""

    name: str
    config: Any
    kind: type[Kind]

    def build(self) -> Kind:
        return self.kind(self.config)  # type: ignore[call-arg]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self.config)}

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in asdict(self.config).items() if value not in ([], ""))
        return f"{self.name}({settings})" if settings else self.name


@dataclass(frozen=True)
class Part:
    """One trigger at work on one site."""

    trigger: Choice[Trigger]
    site: Choice[Site]
    predictor: Choice[Predictor]

    def to_dict(self) -> dict[str, Any]:
        return {"trigger": self.trigger.to_dict(), "site": self.site.to_dict(), "predictor": self.predictor.to_dict()}

    def check(self, abscissa: str, branches: str) -> None:
        """Raise ValueError, with the mend, for parts that do not go together: each declares what it needs of the others."""
        trigger, site, predictor = self.trigger.build(), self.site.build(), self.predictor.build()
        here = f"site '{self.site.name}'"
        if predictor.needs_velocity and not site.keeps_velocity:
            raise ValueError(f"predictor '{self.predictor.name}' foretells the model's output, which {here} does not keep; use output, keep: value.")
        if trigger.needs_latents and site.sharded:
            raise ValueError(f"trigger '{self.trigger.name}' compares the model's input and output, which {here} does not see; use site output.")
        if trigger.needs_checks and not site.checks:
            raise ValueError(f"trigger '{self.trigger.name}' judges checked forecasts, and {here} checks none; use stack with verify: true.")
        if site.checks and not trigger.needs_checks:
            raise ValueError(f"{here} checks forecasts, which trigger '{self.trigger.name}' does not judge; set site.verify to false.")
        if trigger.needs_units and not site.keeps_units_apart:
            raise ValueError(f"trigger '{self.trigger.name}' reuses half of the units, and {here} keeps one; use site blocks, or set turn to 0.")
        if predictor.needs_abscissa not in ("", abscissa):
            needed = predictor.needs_abscissa
            raise ValueError(f"predictor '{self.predictor.name}' works along {needed}, and abscissa is '{abscissa}'; set it to {needed}.")
        needs = {name: needed for name, needed in ((self.trigger.name, trigger.needs_branches), (self.site.name, site.needs_branches)) if needed}
        if len(set(needs.values())) > 1:
            raise ValueError(f"trigger '{self.trigger.name}' and {here} need other branches ({', '.join(needs.values())}); choose another of them.")
        for name, needed in needs.items():
            if branches != needed:
                raise ValueError(f"'{name}' needs branches '{needed}', and branches is '{branches}'; set it to {needed}.")


@dataclass(frozen=True)
class Recipe:
    """name, category (of CATEGORIES) and paper are for people; the rest decides the film.

    parts: one as a rule; several where a method treats parts of the model differently. abscissa: what predictors extrapolate along,
    `step` or `sigma`. branches: of BRANCHES, who decides. dtype: of DTYPES in storage.py, how features are kept. calibration: for which
    model and number of steps its numbers were measured. calibrated: whether its numbers belong to a model, so that without a
    calibration it is but a form. fits: numbers for known models, which `fitted` puts in.
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

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Recipe:
        """Raises ValueError for unknown parts and settings, with the nearest known one."""
        raw = read_config(_RawRecipe, values, "The recipe")
        where = f"Recipe '{raw.name}'"
        choices = (("abscissa", raw.abscissa, ABSCISSAE), ("branches", raw.branches, BRANCHES), ("dtype", raw.dtype, tuple(DTYPES)))
        for setting, value, known in choices:
            if value not in known:
                raise ValueError(f"{where}: {setting} is '{value}'; it must be one of {', '.join(known)}.")
        if raw.category and raw.category not in CATEGORIES:
            raise ValueError(f"{where}: category is '{raw.category}'; it must be one of {', '.join(CATEGORIES)}.")
        if raw.parts and (raw.trigger or raw.site or raw.predictor):
            raise ValueError(f"{where} has both parts and a trigger, site or predictor of its own; put these into a part.")
        guards = read_config(Guards, raw.guards, f"{where}, guards")
        alone = {"trigger": raw.trigger, "site": raw.site, "predictor": raw.predictor}
        recipe = cls(
            name=raw.name,
            category=raw.category,
            paper=raw.paper,
            parts=tuple(_read_part(part, where) for part in (raw.parts or [alone])),
            guards=guards,
            abscissa=raw.abscissa,
            branches=raw.branches,
            dtype=raw.dtype,
            calibration=read_config(Calibration, raw.calibration, f"{where}, calibration") if raw.calibration else None,
            calibrated=raw.calibrated,
            fits=tuple(read_config(Fit, fit, f"{where}, fits") for fit in raw.fits),
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
        for one, other in combinations([part.site for part in self.parts], 2):
            if shared := one.build().covers & other.build().covers:
                raise ValueError(
                    f"sites '{one.name}' and '{other.name}' of two parts both keep {', '.join(sorted(shared))}; leave it to one of them."
                )
        if self.guards.max_risk and self.branches == "cond":
            raise ValueError("guards.max_risk doubts each branch's own forecast, but branches is cond; set branches to each or joint.")
        if self.guards.max_risk and not any(part.predictor.kind.knows_risk for part in self.parts):
            names = ", ".join(part.predictor.name for part in self.parts)
            raise ValueError(
                f"guards.max_risk is {self.guards.max_risk:g}, but predictor {names} never doubts its forecasts; use racer, or set it to 0."
            )

    def fitted(self, dim: int, num_blocks: int) -> Recipe:
        """The recipe for a model of that width and number of blocks, with its published numbers where there are some.

        Raises ValueError, naming the command, if it needs numbers for the model and has none.
        """
        fit = next((fit for fit in self.fits if (fit.dim, fit.num_blocks) == (dim, num_blocks)), None)
        if fit is not None:
            return replace(load_recipe(self, fit.changes), calibrated=False, fits=())
        if self.calibrated and self.calibration is None:
            raise ValueError(
                f"Recipe '{self.name}' needs numbers that are measured on the model, and has none for this one ({num_blocks} blocks, dim {dim}); run "
                f"`longtake calibrate MODEL --recipe {self.name}`: jobs find the file that it writes, enable_cache takes its path."
            )
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
        calibration = {"calibration": asdict(self.calibration)} if self.calibration else {}
        common = {"abscissa": self.abscissa, "branches": self.branches, "dtype": self.dtype}
        return {**parts, "guards": asdict(self.guards), **common, **calibration}


@dataclass(frozen=True)
class _RawPart:
    trigger: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _RawRecipe(_RawPart):
    name: str = "unnamed"
    category: str = ""
    paper: str = ""
    parts: list[dict[str, Any]] = field(default_factory=list)
    guards: dict[str, Any] = field(default_factory=dict)
    abscissa: str = "step"
    branches: str = "each"
    dtype: str = "model"
    calibration: dict[str, Any] = field(default_factory=dict)
    calibrated: bool = False
    fits: list[dict[str, Any]] = field(default_factory=list)


def _read_part(values: Mapping[str, Any], where: str) -> Part:
    raw = read_config(_RawPart, values, f"{where}, parts")
    return Part(
        trigger=_choose(raw.trigger, TRIGGERS, f"{where}, trigger"),
        site=_choose(raw.site, SITES, f"{where}, site"),
        predictor=_choose(raw.predictor, PREDICTORS, f"{where}, predictor"),
    )


def _choose(values: Mapping[str, Any], registry: Mapping[str, tuple[type[Any], type[Kind]]], where: str) -> Choice[Kind]:
    settings = dict(values)
    name = str(settings.pop("name", ""))
    if name not in registry:
        raise ValueError(f"{where}: unknown name '{name}'. {suggestion(name, list(registry))}")
    config_class, kind = registry[name]
    return Choice(name, read_config(config_class, settings, f"{where} '{name}'"), kind)


def recipe_names() -> list[str]:
    """The recipes that come with longtake."""
    folder = resources.files("longtake.configs") / "cache"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe, changes: Mapping[str, Mapping[str, Any]] | None = None, dtype: str | None = None
) -> Recipe:
    """A recipe by name, YAML path or mapping, with `changes` merged into its parts ({"trigger": {"threshold": 0.1}}).

    dtype: how features are kept, instead of what the recipe says.
    """
    if isinstance(recipe, Recipe):
        values: dict[str, Any] = recipe.to_dict()
    elif isinstance(recipe, Mapping):
        values = dict(recipe)
    else:
        values = _read_yaml(str(recipe))
    for part, settings in (changes or {}).items():
        if "parts" in values and part != "guards":
            raise ValueError(f"Recipe '{values.get('name')}' has several parts, so that {part} is not one; change them in a YAML file of your own.")
        for place in (values, *values.get("fits", ())):
            place[part] = {**place.get(part, {}), **settings}
    return Recipe.from_mapping(values if dtype is None else {**values, "dtype": dtype})


def _read_yaml(name: str) -> dict[str, Any]:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"There is no recipe file '{name}'; give the path of a YAML file or one of: {', '.join(recipe_names())}.")
        content = path.read_bytes()
    elif name in recipe_names():
        content = (resources.files("longtake.configs") / "cache" / f"{name}.yaml").read_bytes()
    else:
        raise ValueError(f"There is no recipe '{name}'. {suggestion(name, [*recipe_names(), 'none'])}")
    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(f"Recipe '{name}' is not valid YAML: {' '.join(str(error).split())}; mend it, or name another recipe.") from None
    if not isinstance(values, dict):
        raise ValueError(f"Recipe '{name}' must be a mapping with trigger, site, predictor and guards.")
    return values
