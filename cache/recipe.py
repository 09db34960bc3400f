"""A recipe: a named cache method as trigger x site x predictor with common guards, written as YAML in configs/cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

from .config import read_config, suggestion
from .decision import Decision
from .predictors import PREDICTORS, Predictor
from .sites import SITES, Site
from .triggers import TRIGGERS, Trigger

Part = TypeVar("Part")
ABSCISSAE = ("step", "sigma")
CATEGORIES = ("static", "timestep-adaptive", "layer-adaptive", "predictive", "hybrid")  # survey arXiv 2510.19755, section 3


@dataclass(frozen=True)
class Guards:
    """Common to all recipes: steps that are computed whatever the trigger says.

    first_steps, last_steps: computed at the start and the end of a take. max_reused_steps: longest run of reuse (0: no limit).
    """

    first_steps: int = 1
    last_steps: int = 1
    max_reused_steps: int = 0

    def __post_init__(self) -> None:
        if self.first_steps < 1:
            raise ValueError(f"first_steps is {self.first_steps}; the first step can only be computed, so at least 1.")
        if min(self.last_steps, self.max_reused_steps) < 0:
            raise ValueError(f"last_steps={self.last_steps} and max_reused_steps={self.max_reused_steps} must not be negative.")

    def apply(self, wish: Decision, step: int, num_inference_steps: int, reused_run: int) -> Decision:
        """reused_run: how many steps in a row were reused just before this one."""
        forced = step < self.first_steps or step >= num_inference_steps - self.last_steps
        too_long = 0 < self.max_reused_steps <= reused_run
        return Decision.COMPUTE if forced or too_long else wish


@dataclass(frozen=True)
class Calibration:
    """model: hash of the model that was measured (pipeline.card.model_hash). num_inference_steps: of the takes, 0 if it fits any."""

    model: str = ""
    num_inference_steps: int = 0

    def check(self, model: str, num_inference_steps: int, recipe: str) -> None:
        """Raise ValueError, with the mend, for another model or number of steps."""
        if model != self.model:
            raise ValueError(f"Recipe '{recipe}' was calibrated for another model; run `longtake calibrate` on this one.")
        if self.num_inference_steps not in (0, num_inference_steps):
            raise ValueError(
                f"Recipe '{recipe}' was calibrated for {self.num_inference_steps} steps, the take has {num_inference_steps}; make them equal, "
                f"or run `longtake calibrate` with --steps {num_inference_steps}."
            )


@dataclass(frozen=True)
class Choice(Generic[Part]):
    """One registered part with its settings; `build` makes a fresh one."""

    name: str
    config: Any
    part: type[Part]

    def build(self) -> Part:
        return self.part(self.config)  # type: ignore[call-arg]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self.config)}

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in asdict(self.config).items() if value not in ([], ""))
        return f"{self.name}({settings})" if settings else self.name


@dataclass(frozen=True)
class Recipe:
    """name, category (of CATEGORIES) and paper are for people; the rest decides the film.

    abscissa: what predictors extrapolate along, `step` or `sigma`. calibration: for which model and number of steps its numbers were
    measured; None for recipes that fit any.
    """

    name: str
    category: str
    paper: str
    trigger: Choice[Trigger]
    site: Choice[Site]
    predictor: Choice[Predictor]
    guards: Guards
    abscissa: str = "step"
    calibration: Calibration | None = None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Recipe:
        """Raises ValueError for unknown parts and settings, with the nearest known one."""
        raw = read_config(_RawRecipe, values, "The recipe")
        where = f"Recipe '{raw.name}'"
        if raw.abscissa not in ABSCISSAE:
            raise ValueError(f"{where}: abscissa is '{raw.abscissa}'; it must be one of {', '.join(ABSCISSAE)}.")
        if raw.category and raw.category not in CATEGORIES:
            raise ValueError(f"{where}: category is '{raw.category}'; it must be one of {', '.join(CATEGORIES)}.")
        return cls(
            name=raw.name,
            category=raw.category,
            paper=raw.paper,
            trigger=_choose(raw.trigger, TRIGGERS, f"{where}, trigger"),
            site=_choose(raw.site, SITES, f"{where}, site"),
            predictor=_choose(raw.predictor, PREDICTORS, f"{where}, predictor"),
            guards=read_config(Guards, raw.guards, f"{where}, guards"),
            abscissa=raw.abscissa,
            calibration=read_config(Calibration, raw.calibration, f"{where}, calibration") if raw.calibration else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """The recipe with every default spelt out, as `from_mapping` takes it."""
        return {"name": self.name, "category": self.category, "paper": self.paper, **self.deciding()}

    def deciding(self) -> dict[str, Any]:
        """All that decides the film; part of the film key."""
        parts: dict[str, Any] = {"trigger": self.trigger.to_dict(), "site": self.site.to_dict(), "predictor": self.predictor.to_dict()}
        calibration = {"calibration": asdict(self.calibration)} if self.calibration else {}
        return {**parts, "guards": asdict(self.guards), "abscissa": self.abscissa, **calibration}


@dataclass(frozen=True)
class _RawRecipe:
    name: str = "unnamed"
    category: str = ""
    paper: str = ""
    trigger: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)
    guards: dict[str, Any] = field(default_factory=dict)
    abscissa: str = "step"
    calibration: dict[str, Any] = field(default_factory=dict)


def _choose(values: Mapping[str, Any], registry: Mapping[str, tuple[type[Any], type[Part]]], where: str) -> Choice[Part]:
    settings = dict(values)
    name = str(settings.pop("name", ""))
    if name not in registry:
        raise ValueError(f"{where}: unknown name '{name}'. {suggestion(name, list(registry))}")
    config_class, part = registry[name]
    return Choice(name, read_config(config_class, settings, f"{where} '{name}'"), part)


def recipe_names() -> list[str]:
    """The recipes that come with longtake."""
    folder = resources.files("longtake.configs") / "cache"
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Recipe:
    """A recipe by name, YAML path or mapping, with `changes` merged into its parts ({"trigger": {"threshold": 0.1}})."""
    if isinstance(recipe, Recipe):
        values: dict[str, Any] = recipe.to_dict()
    elif isinstance(recipe, Mapping):
        values = dict(recipe)
    else:
        values = _read_yaml(str(recipe))
    for part, settings in (changes or {}).items():
        values[part] = {**values.get(part, {}), **settings}
    return Recipe.from_mapping(values)


def _read_yaml(name: str) -> dict[str, Any]:
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"There is no recipe file '{name}'; give the path of a YAML file or one of: {', '.join(recipe_names())}.")
        text = path.read_text()
    elif name in recipe_names():
        text = (resources.files("longtake.configs") / "cache" / f"{name}.yaml").read_text()
    else:
        raise ValueError(f"There is no recipe '{name}'. {suggestion(name, [*recipe_names(), 'none'])}")
    values = yaml.safe_load(text)
    if not isinstance(values, dict):
        raise ValueError(f"Recipe '{name}' must be a mapping with trigger, site, predictor and guards.")
    return values
