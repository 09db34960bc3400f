"""One trigger at work on one site with one predictor: read from YAML, and checked for what each needs of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from ..predictors import PREDICTORS, Predictor
from ..sites import SITES, Site
from ..triggers import TRIGGERS, Trigger
from .config import read_config, suggestion

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Choice(Generic[Kind]):
    """A trigger, site or predictor: its name in the registry, its settings and its class. `build` makes one that has seen nothing yet."""

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
    """When to recompute (trigger), what to keep (site) and how to stand in for it (predictor)."""

    trigger: Choice[Trigger]
    site: Choice[Site]
    predictor: Choice[Predictor]

    def to_dict(self) -> dict[str, Any]:
        return {"trigger": self.trigger.to_dict(), "site": self.site.to_dict(), "predictor": self.predictor.to_dict()}

    def check(self, abscissa: str, branches: str) -> None:
        """Raise ValueError, with the mend, where one of the three lacks what it needs of the others, as each of their classes declares."""
        trigger, site, predictor = self.trigger.build(), self.site.build(), self.predictor.build()
        here = f"site '{self.site.name}'"
        if predictor.needs_velocity and not site.keeps_velocity:
            raise ValueError(f"predictor '{self.predictor.name}' forecasts the model's output, which {here} does not keep; use output, keep: value.")
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
            raise ValueError(f"trigger '{self.trigger.name}' and {here} need different branches ({', '.join(needs.values())}); choose another one.")
        for name, needed in needs.items():
            if branches != needed:
                raise ValueError(f"'{name}' needs branches '{needed}', and branches is '{branches}'; set it to {needed}.")


@dataclass(frozen=True)
class RawPart:
    """A part as it stands in YAML: each of the three with its `name` and its settings."""

    trigger: dict[str, Any] = field(default_factory=dict)
    site: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)


def read_part(raw: RawPart, where: str) -> Part:
    """Raises ValueError, naming `where`, for unknown names and settings, with the nearest known one."""
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
