"""A YAML file or mapping into a checked Config, and what is wrong with it in one line that names the key."""

from __future__ import annotations

import difflib
import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from synthboot import schema, strict_yaml
from synthboot.config import Config
from synthboot.errors import ConfigError
from synthboot.strict_yaml import Place, dotted

_SHOWN, _ERRORS = 60, 5


def load(source: str | Path | Mapping[str, Any], set: Mapping[str, Any] | None = None) -> Config:
    """The checked configuration of a YAML file (or mapping) with `set` applied (`{"pair.num_neighbors": 8}`).

    Raises ConfigError, naming the key and the nearest known one, for anything that is not a valid configuration.
    """
    where, lines = "config", dict[Place, int]()
    raw: Any = source
    if not isinstance(source, Mapping):
        where = str(source)
        raw, lines = strict_yaml.read(source)
    raw = _plain(raw, (), where)
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else _said(raw)
        raise ConfigError(
            f"{where}: expected sections such as `corpus:` and `budget:`, found {found}"
        )
    for key, value in (set or {}).items():
        place = _assign(raw, key, _plain(value, (), f"--set {key}"))
        lines = {known: line for known, line in lines.items() if known[: len(place)] != place}
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        told = list(dict.fromkeys(_explain(e, raw, lines) for e in error.errors()))
        more = f"; and {len(told) - _ERRORS} more" if len(told) > _ERRORS else ""
        raise ConfigError(f"{where}: " + "; ".join(told[:_ERRORS]) + more) from None


def parse_set(items: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """`section.key=value` strings as a mapping, values read as YAML."""
    parsed: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(
                f"--set {_cut(item)}: expected section.key=value, for example --set pair.num_neighbors=8"
            )
        if key in parsed:
            raise ConfigError(f"--set {_cut(key)}: given twice; keep one")
        parsed[key], _ = strict_yaml.parse(value, f"--set {_cut(item)}")
    return parsed


def _plain(value: Any, place: Place, where: str) -> Any:
    """A copy with whole numbers as such (1e4, 2.0); an error where a value cannot be any setting's."""
    here = f"{where}: {dotted(place)}" if place else where
    if len(place) > strict_yaml.MAX_DEPTH:
        raise ConfigError(f"{here}: nested more than {strict_yaml.MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{here}: the key {_said(key)} is not text")
            _plain(key, place, where)
        return {key: _plain(inner, (*place, key), where) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, (*place, i), where) for i, inner in enumerate(value)]
    if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise ConfigError(
            f"{here}: {_said(value)} holds a character that text cannot (NUL, or half of a pair)"
        )
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{here}: {value} is not a number that any setting takes")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value


def _assign(raw: dict[str, Any], key: str, value: Any) -> Place:
    *path, last = key.split(".")
    for number, part in enumerate(path):
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {key}: {dotted(tuple(path[: number + 1]))} is not a section")
    raw[last] = value
    return (*path, last)


def _explain(error: Any, raw: dict[str, Any], lines: dict[Place, int]) -> str:
    """One line for one error: the line of the file where it is known, the setting, what is given, what may be."""
    place, field, known = _setting(error["loc"])
    line = next((lines[place[:n]] for n in range(len(place), 0, -1) if place[:n] in lines), None)
    where = ("" if line is None else f"line {line}: ") + (dotted(place) or "config")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(_cut(str(place[-1])), known, n=1)
        return f"{_cut(where)}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{where}: required, and not given"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}"
    given: Any = raw
    for part in place:
        given = given.get(part) if isinstance(given, dict) else None
    if (
        error["loc"][-1:] == ("[key]",)
        and field is not None
        and schema.section(field.annotation) is not None
    ):
        return f"{where.rpartition('.')[0]}: {_said(place[-1])} is no name: {schema.takes(field)}"
    inner = error["loc"][len(place) : len(place) + 1]
    if isinstance(given, dict) and inner and inner[0] in given:  # a key of `sweep`
        where, given = f"{where}.{inner[0]}", given[inner[0]]
    wanted = "settings below it" if field is None else schema.takes(field)
    unquoted = isinstance(given, int | float) and wanted.startswith(("text", "a name"))
    quoted = "; in quotes it is text" if unquoted else ""
    return f"{where}: got {_said(given)}; it takes {wanted}{quoted}"


def _setting(loc: tuple[str | int, ...]) -> tuple[Place, FieldInfo | None, list[str]]:
    """Where an error lies: the place of the setting, its field if it is one, and the keys that are known there. What
    follows in `loc` lies inside the setting's value."""
    model: type[BaseModel] = Config
    field: FieldInfo | None = None
    for depth, part in enumerate(loc):
        if field is not None:  # a name of `arms`: what follows are the fields of an arm
            if loc[depth + 1 : depth + 2] == ("[key]",):
                return loc[: depth + 1], field, []
            field = None
            continue
        found = model.model_fields.get(str(part))
        if found is None:
            return loc[: depth + 1], None, list(model.model_fields)
        inner = schema.section(found.annotation)
        if inner is None:
            return loc[: depth + 1], found, []
        model, field = inner, found if found.annotation is not inner else None
    return loc, field, list(model.model_fields)


def _said(value: Any) -> str:
    """A value as one would write it in YAML, not too long."""
    if isinstance(value, str):
        return f"'{_cut(value)}'"
    try:
        return _cut(json.dumps(value, ensure_ascii=False, default=repr))
    except (ValueError, TypeError, RecursionError):  # 5,000 digits, a key that is no text, a loop
        return f"a {type(value).__name__}"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"
