"""Reading frozen config dataclasses from mappings, with one clear message for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from math import isfinite
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


def suggestion(word: str, known: list[str]) -> str:
    """The tail of an error about an unknown word: the nearest known one, and all of them."""
    near = get_close_matches(word, known, n=1)
    return (f"Did you mean '{near[0]}'? " if near else "") + f"Known: {', '.join(sorted(known))}."


def read_config(config_class: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass from plain values. Raises ValueError naming `where`, the value and the mend."""
    assert is_dataclass(config_class)
    known = [field.name for field in fields(config_class)]
    for key in values:
        if key not in known:
            raise ValueError(f"{where} has no setting '{key}'. {suggestion(str(key), known)}")
    try:
        merged = OmegaConf.merge(_schema(config_class), OmegaConf.create(dict(values)))
        _check_finite(OmegaConf.to_container(merged), "")
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        if "Missing mandatory value" in reason or "missing" in reason.lower():
            raise ValueError(f"{where} lacks a setting: {reason}.") from None
        raise ValueError(f"{where}: {reason}.") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    assert isinstance(result, config_class)
    return result


@lru_cache
def _schema(config_class: type) -> Any:
    """The settings of a config class and their types, which merging copies."""
    return OmegaConf.structured(config_class)


def _check_finite(value: Any, name: str) -> None:
    """Raise ValueError, naming the setting, for a number that is none, however deep it lies in lists and mappings."""
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{name} is {value:g}; it must be a finite number.")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_finite(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _check_finite(inner, f"{name}[{index}]")


def check_count(name: str, count: float) -> None:
    """Raise ValueError for what is neither a whole number nor a share below 1."""
    if count > 1 and count != int(count):
        raise ValueError(f"{name} is {count:g}; it must be a whole number, or a share below 1.")


def ascends(values: Sequence[float]) -> bool:
    """Whether each value is larger than the one before it."""
    return all(before < after for before, after in pairwise(values))
