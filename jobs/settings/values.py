"""Settings as people write them, in files and on the command line: YAML, read by the type of the setting that a value belongs to.

Texts stay as they are written: for a setting whose type is a text, `no`, `12` and `1.50` are texts, and all that follows `takes.0.prompt=` is
the prompt. For other settings only `true` and `false` are booleans (YAML 1.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

import yaml

# The setting that a text stands for where a group of settings is expected: `cache: fbcache` is `cache: {recipe: fbcache}`.
SHORTHANDS = {"cache": "recipe", "timeline": "name", "model": "path", "parallel": "degrees"}


# Settings that are dropped when another text takes the place of the group's, as they belonged to the old one; its other settings stay.
_DROPPED: dict[str, tuple[str, ...]] = {
    "cache": ("replay", "trigger", "site", "predictor", "guards"),
    "timeline": ("window", "overlap", "anchors", "context", "on_prompt", "shift"),
    "model": (),
    "parallel": ("cfg_degree", "window_degree", "ring_degree", "ulysses_degree"),
}
_YAML = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Reads plain words as YAML 1.2 does: no dates, no base-60 numbers, and `yes`, `no`, `on` and `off` are texts. A key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"found the key '{key.value}' twice", key.start_mark)
        values = super().construct_mapping(node, deep)
        node.value = list({key.value: (key, value) for key, value in node.value}.values())  # `<<` added keys that the mapping's own overrule
        return values


_WORDS = {
    _YAML + "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    _YAML + "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    _YAML + "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    _YAML + "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    _YAML + "merge": (r"<<", "<"),
}
_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _WORDS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor(_YAML + "int", lambda loader, node: int(node.value, 10 if node.value.lstrip("+-").isdigit() else 0))


def parse_file(content: bytes, config_class: type) -> Any:
    """The values of a whole job file as dicts, lists and scalars. Raises ValueError for what is not valid YAML."""
    return _parse(content, config_class)


def parse_value(text: str, kind: Any) -> Any:
    """The value of the text after `key=`, for a setting of type `kind`. Raises ValueError for what is not valid YAML."""
    return text if _is_text(kind) and not (text == "null" and type(None) in get_args(kind)) else _parse(text, kind)


def _parse(content: bytes | str, kind: Any) -> Any:
    loader: Any = None
    try:
        loader = _Loader(content)
        node = loader.get_single_node()
        return None if node is None else _construct(loader, node, kind)
    except yaml.YAMLError as error:
        raise ValueError(f"is not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _is_text(kind: Any) -> bool:
    return kind is str or set(get_args(kind)) == {str, type(None)}


def _construct(loader: Any, node: Any, kind: Any) -> Any:
    kinds = [one for one in get_args(kind) if one is not type(None)] if type(None) in get_args(kind) else [kind]
    [wanted] = kinds if len(kinds) == 1 else [Any]
    is_plain = isinstance(node, yaml.ScalarNode) and node.tag.startswith(_YAML) and node.tag != _YAML + "null"
    if is_plain and (wanted is str or is_dataclass(wanted)):  # a group's shorthand is a text as well
        return node.value
    if isinstance(node, yaml.MappingNode) and is_dataclass(wanted):
        untyped, hints = loader.construct_mapping(node, deep=True), field_types(wanted)
        typed = {key.value: value for key, value in node.value if key.value in hints}
        return {key: _construct(loader, typed[key], hints[key]) if key in typed else value for key, value in untyped.items()}
    if isinstance(node, yaml.SequenceNode) and get_origin(wanted) is list:
        return [_construct(loader, item, get_args(wanted)[0]) for item in node.value]
    return loader.construct_object(node, deep=True)


def field_types(config_class: Any) -> dict[str, Any]:
    """The settings of a config and their types."""
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in fields(config_class)}


def override(values: dict[str, Any], key: str, text: str, config_class: type) -> None:
    """Change nested values by `key=text`; `*` in a key stands for every item of a list (takes.*.seed).

    Raises ValueError for an item or a group that does not exist, and for a text that is not valid YAML.
    """
    steps = re.sub(r"\[(\d+|\*)\]", r".\1", key).split(".")
    if not all(steps):
        raise ValueError(f"'{key}={text}' is no override: '{key}' names no setting; write takes.0.seed=1 for example.")
    kind: Any = config_class
    for step in steps:
        kind = _within(kind, step)
    try:
        value = parse_value(text, kind)
    except ValueError as error:
        raise ValueError(f"'{key}={text}' {error}.") from None
    _change(values, steps, lambda old: _replaced(steps[-1], old, value), key)


def _replaced(name: str, old: Any, new: Any) -> Any:
    short = SHORTHANDS.get(name)
    if short is None or not isinstance(new, str):
        return {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new
    kept = {setting: value for setting, value in old.items() if setting not in _DROPPED[name]} if isinstance(old, dict) else {}
    return {**kept, short: new}


def _within(kind: Any, step: str) -> Any:
    """The type of the setting `step` of a setting of type `kind`; Any where it is not known."""
    inner = next((one for one in get_args(kind) if one is not type(None)), None) if type(None) in get_args(kind) else kind
    if is_dataclass(inner):
        return field_types(inner).get(step, Any)
    return get_args(inner)[0] if get_origin(inner) is list else Any


def _change(values: Any, steps: list[str], change: Callable[[Any], Any], key: str) -> None:
    step, *rest = steps
    found: list[Any] = [step]
    if isinstance(values, list):
        if step == "*":
            found = list(range(len(values)))
        elif step.isdigit() and int(step) < len(values):
            found = [int(step)]
        else:
            numbers = f"0 to {len(values) - 1}, or * for all" if values else "it is empty"
            raise ValueError(f"The override '{key}' has '{step}' where the number of a list's item is wanted ({numbers}).")
    for at in found:
        if not rest:
            values[at] = change(values.get(at) if isinstance(values, dict) else values[at])
            continue
        inner = values.get(at) if isinstance(values, dict) else values[at]
        if inner is None:
            inner = values[at] = {}
        if not isinstance(inner, dict | list):
            raise ValueError(f"The override '{key}' reaches into '{at}', which is {inner!r} and has no settings of its own.")
        _change(inner, rest, change, key)
