"""A YAML file or mapping into a checked Config; what is wrong is one line that names the key."""

from __future__ import annotations

import difflib
import json
import math
import numbers
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from synthboot import schema, strict_yaml
from synthboot.config import Config
from synthboot.errors import ConfigError
from synthboot.strict_yaml import KeyPath, dotted

_SHOWN_CHARACTERS = 60
_SHOWN_ERRORS = 5
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")


def load(
    source: str | Path | Mapping[str, object],
    set: Mapping[str, object] | None = None,
) -> Config:
    """The checked configuration of a YAML file or mapping.

    `set` overrides settings by dotted name (`{"pair.num_neighbors": 8}`). Raises ConfigError,
    naming the key and the nearest known one, for anything that is not a valid configuration.
    """
    where = "config"
    raw: object = source
    lines: dict[KeyPath, int] = {}
    if not isinstance(source, Mapping):
        where = str(source)
        raw, lines = strict_yaml.read(source)

    raw = _plain(raw, (), where)
    if not isinstance(raw, dict):
        given = "nothing" if raw is None else _quoted(raw)
        raise ConfigError(
            f"{where}: expected sections such as `corpus:` and `budget:`, found {given}"
        )
    overridden: list[KeyPath] = []
    for key, value in (set or {}).items():
        key_path = _assign(raw, key, _plain(value, (), f"--set {key}"))
        # What is overridden stands on no line of the file any more.
        lines = {other: line for other, line in lines.items() if other[: len(key_path)] != key_path}
        overridden.append(key_path)

    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        # Each once: a union reports an error for every type that a value is not.
        messages = list(dict.fromkeys(_explain(e, raw, lines, overridden) for e in error.errors()))
        shown = "; ".join(messages[:_SHOWN_ERRORS])
        if len(messages) > _SHOWN_ERRORS:
            shown += f"; and {len(messages) - _SHOWN_ERRORS} more"
        raise ConfigError(f"{where}: {shown}") from None


def parse_set(items: list[str] | tuple[str, ...]) -> dict[str, object]:
    """`section.key=value` strings as a mapping, values read as YAML."""
    parsed: dict[str, object] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(
                f"--set {_cut(item)}: expected section.key=value, "
                "for example --set pair.num_neighbors=8"
            )
        if key in parsed:
            raise ConfigError(f"--set {_cut(key)}: given twice; keep one")
        parsed[key], _ = strict_yaml.parse(value, f"--set {_cut(item)}")
    return parsed


def _plain(value: object, key_path: KeyPath, where: str) -> object:
    """A copy with whole numbers as such (1e4, 2.0); an error for what cannot be any setting's."""
    here = f"{where}: {dotted(key_path)}" if key_path else where
    if len(key_path) > strict_yaml.MAX_DEPTH:
        raise ConfigError(f"{here}: nested more than {strict_yaml.MAX_DEPTH} deep")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ConfigError(f"{here}: the key {_quoted(key)} is not text")
            # A key may hold what text cannot, as a value may.
            _plain(key, key_path, where)
        return {key: _plain(inner, (*key_path, key), where) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, (*key_path, i), where) for i, inner in enumerate(value)]
    if isinstance(value, str) and _NO_TEXT.search(value):
        raise ConfigError(
            f"{here}: {_quoted(value)} holds a character that text cannot (NUL, or half of a pair)"
        )
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{here}: {value} is not a number that any setting takes")
        # Beyond 2**53 a float says less than the digits of an integer would.
        is_whole = value.is_integer() and abs(value) < 2**53
        return int(value) if is_whole else value
    return value


def _assign(raw: dict[str, Any], key: str, value: object) -> KeyPath:
    *path, last = key.split(".")
    for number, part in enumerate(path):
        # A section that the file leaves out, or leaves empty.
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {key}: {dotted(tuple(path[: number + 1]))} is not a section")
    raw[last] = value
    return (*path, last)


def _explain(
    error: Any,
    raw: dict[str, Any],
    lines: dict[KeyPath, int],
    overridden: list[KeyPath],
) -> str:
    """One line for one error: where it stands, the setting, what is given, what may be."""
    key_path, field, keys = _setting(error["loc"])
    where = _origin(key_path, lines, overridden) + (dotted(key_path) or "config")

    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(_cut(str(key_path[-1])), keys, n=1)
        meant = nearest or _elsewhere(str(key_path[-1]))
        hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
        return f"{_cut(where)}: unknown key{hint}"
    if error["type"] == "missing":
        return f"{where}: required, and not given"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}"

    given: Any = raw
    for part in key_path:
        given = given.get(part) if isinstance(given, dict) else None

    # A name of `arms` that is no name.
    names_sections = field is not None and schema.section(field.annotation) is not None
    if field is not None and names_sections and error["loc"][-1:] == ("[key]",):
        where = where.rpartition(".")[0]
        return f"{where}: {_quoted(key_path[-1])} is no name: {schema.takes(field)}"

    # A key of `sweep` is not a place of its own in the schema, but it is what is wrong.
    inner = error["loc"][len(key_path) : len(key_path) + 1]
    if isinstance(given, dict) and inner and inner[0] in given:
        where = f"{where}.{inner[0]}"
        given = given[inner[0]]

    wanted = "settings below it" if field is None else schema.takes(field)
    message = f"{where}: got {_quoted(given)}; it takes {wanted}"
    if isinstance(given, int | float) and wanted.startswith(("text", "a name")):
        message += "; in quotes it is text"
    if wanted.startswith("a list") and isinstance(given, str | int | float):
        message += "; a list of one stands in brackets too"
    return message


def _elsewhere(key: str) -> list[str]:
    """The settings of this name in any section, as `--set` names them."""
    found = []
    for name, field in Config.model_fields.items():
        section = schema.section(field.annotation)
        # of arms the names are the user's
        is_one = section == field.annotation
        if section is not None and is_one and key in section.model_fields:
            found.append(f"{name}.{key}")
    return found


def _origin(key_path: KeyPath, lines: dict[KeyPath, int], overridden: list[KeyPath]) -> str:
    """The line of a place, or of the nearest above it that the file has, unless `--set` gave it."""
    # a section that `--set` made by naming a setting in it
    if any(given[: len(key_path)] == key_path for given in overridden) and key_path not in lines:
        return "--set "
    for length in range(len(key_path), 0, -1):
        if key_path[:length] in overridden:
            return "--set "
        if key_path[:length] in lines:
            return f"line {lines[key_path[:length]]}: "
    return ""


def _setting(loc: tuple[str | int, ...]) -> tuple[KeyPath, FieldInfo | None, list[str]]:
    """Where an error lies: the place of the setting, its field if it is one, the keys known there.

    What follows in `loc` lies inside the setting's value.
    """
    model: type[BaseModel] = Config
    field: FieldInfo | None = None
    for depth, part in enumerate(loc):
        # Below `arms` comes a name, which is no field; what follows are the fields of an arm.
        if field is not None:
            if loc[depth + 1 : depth + 2] == ("[key]",):
                return loc[: depth + 1], field, []
            field = None
            continue

        entry = model.model_fields.get(str(part))
        if entry is None:
            return loc[: depth + 1], None, list(model.model_fields)
        section = schema.section(entry.annotation)
        if section is None:
            return loc[: depth + 1], entry, []
        model = section
        if entry.annotation is not section:
            field = entry  # sections by name
    return loc, field, list(model.model_fields)


def _quoted(value: object) -> str:
    """A value as one would write it in YAML, not too long."""
    if isinstance(value, str):
        return f"'{_cut(value)}'"
    try:
        return _cut(json.dumps(value, ensure_ascii=False, default=repr))
    except (ValueError, TypeError, RecursionError):
        # 5,000 digits, a key that is no text, a loop.
        return f"a {type(value).__name__}"


def _cut(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]}... ({len(text):,} characters)"
