"""A YAML file or mapping into a checked Config, and what is wrong with it in one line that names the key."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from synthboot.config import Arm, Config
from synthboot.errors import ConfigError


def load(source: str | Path | Mapping[str, Any], set: Mapping[str, Any] | None = None) -> Config:
    """The checked configuration of a YAML file (or mapping) with `set` applied (`{"pair.num_neighbors": 8}`).

    Raises ConfigError, naming the key and the nearest known one, for anything that is not a valid configuration.
    """
    if isinstance(source, Mapping):
        where, raw = "config", copy.deepcopy(dict(source))
    else:
        where = str(source)
        try:
            raw = yaml.safe_load(Path(source).read_text("utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{where}: no such file; the shipped ones are in configs/") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: cannot be read: {error}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: expected sections such as `corpus:` and `budget:`, found {type(raw).__name__}")
    for key, value in (set or {}).items():
        _assign(raw, key, value)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from None


def parse_set(items: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """`section.key=value` strings as a mapping, values read as YAML."""
    parsed: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {item}: expected section.key=value, for example --set pair.num_neighbors=8")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {item}: the value is not YAML") from None
    return parsed


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        if raw.get(part) is None:
            raw[part] = {}
        raw = raw[part]
        if not isinstance(raw, dict):
            raise ConfigError(f"{key}: {part} is not a section")
    raw[last] = value


def _explain(error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    where = ".".join(path) or "config"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(path[-1], _fields(path[:-1]), n=1)
        return f"{where}: unknown key" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{where}: required, and not given"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" + ("" if error["type"] == "value_error" else f" (got {error['input']!r})")


def _fields(path: list[str]) -> list[str]:
    model: type[BaseModel] = Config
    for i, part in enumerate(path):
        if model is Config and part == "arms":
            return list(Arm.model_fields) if len(path) > i + 1 else list(model.model_fields)
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        options = [annotation, *get_args(annotation)]
        nested = [a for a in options if isinstance(a, type) and issubclass(a, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)
