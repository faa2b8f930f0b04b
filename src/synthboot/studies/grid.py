"""The points of a study: every combination of the values that settings are varied over, each a
checked configuration with a run folder of its own. What is wrong is said before anything runs."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthboot import config, loading, recipes, schema, strict_yaml
from synthboot.errors import ConfigError
from synthboot.runner.graph import fingerprints, needed
from synthboot.settings import RUNTIME

_SHOWN_CHARACTERS = 40
_MOST_CHARACTERS = 100  # of a run's name
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Point:
    """One combination of values: what is varied, and the run that it makes."""

    name: str
    settings: dict[str, object]
    config: config.Config


def parse_vary(items: Sequence[str]) -> dict[str, list[object]]:
    """`section.key=value,value` strings as values by setting, each read as `--set` reads it.

    Raises ConfigError for anything of another form.
    """
    found: dict[str, list[object]] = {}
    for item in items:
        key, equals, values = item.partition("=")
        if not equals or not all(key.split(".")) or not values.strip():
            raise ConfigError(
                f"--vary {item}: expected section.key=value,value, "
                "for example --vary model.width=96,192"
            )
        if key in found:
            raise ConfigError(f"--vary {key}: given twice; put all its values into one")
        # As a list, so that a comma inside brackets or quotes belongs to its value.
        parsed, _ = strict_yaml.parse(f"[{values}]", f"--vary {item}")
        assert isinstance(parsed, list)
        found[key] = parsed
    return found


def parse_seeds(given: str | None) -> list[Any] | None:
    """`0,1,2` as a list, for `pretrain.seeds`; None where nothing is given."""
    if given is None:
        return None
    parsed, _ = strict_yaml.parse(f"[{given}]", f"--seeds {given}")
    assert isinstance(parsed, list)
    return parsed


def points(
    source: str | Path | Mapping[str, object],
    vary: Mapping[str, Sequence[object]],
    out: Path | None = None,
    *,
    set: Mapping[str, object] | None = None,
    seeds: Sequence[object] | None = None,
    together: bool = False,
) -> list[Point]:
    """Every point of the grid, the last setting changing fastest; `together`, the first values of
    all settings, then the second ones, and so on.

    `out` is the study's folder, that of the runs; unless given, it lies beside the run that the
    configuration names, as `NAME-study`. `seeds` are those of every point.

    Raises ConfigError for a setting that does not exist or changes nothing, for a value that it
    does not take, for a grid of one, and for seeds that would share what each is to have.
    """
    shared = dict(set or {})
    if seeds is not None:
        shared["pretrain.seeds"] = list(seeds)
    for key in vary:
        if key.partition(".")[0] in RUNTIME:
            raise ConfigError(
                f"--vary {key}: says where and how work runs and changes nothing that is computed, "
                f"so all points would be the same; set it with --set"
            )
        if key in shared:
            raise ConfigError(f"--vary {key}: is set for all points as well; keep one")

    found = []
    for values in _combinations(vary, together):
        settings = dict(zip(vary, values, strict=True))
        try:
            cfg = loading.load(source, set=shared | settings)
        except ConfigError as error:
            given = ", ".join(f"{key}={_text(value)}" for key, value in settings.items())
            raise ConfigError(f"study: point {given}: {error}") from None
        root = out if out is not None else cfg.folder.with_name(f"{cfg.name}-study")
        name = _name(settings)
        own = cfg.model_copy(update={"root": str(root), "name": name})
        found.append(Point(name, settings, own))

    _check_texts(found)
    names = Counter(point.name for point in found)
    [(name, count)] = names.most_common(1)
    if count > 1:
        raise ConfigError(f"study: the point {name} is there {count} times; keep one")
    return found


class Planner:
    """The plans of a grid's points up to a stage. Files outside the runs are hashed once, for all
    points that read the same ones."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._hashed: dict[str, dict[str, Any]] = {}

    def units(self, point: Point) -> dict[str, recipes.Unit]:
        """The units that a point needs."""
        return needed(self.everything(point), self.target)

    def everything(self, point: Point) -> dict[str, recipes.Unit]:
        """The units of a point, beyond the target too."""
        # whatever names a file is text, so points with the same texts read the same files
        texts = {key: value for key, value in point.settings.items() if not _is_number(value)}
        everything = recipes.units(point.config, self._hashed.get(repr(texts), {}))
        self._hashed[repr(texts)] = recipes.outside(everything)
        return everything

    def check_different(self, points: Sequence[Point]) -> None:
        """Raise ConfigError where two points would make the same artifacts: no stage up to there
        reads what they differ in."""
        known: dict[tuple[str, ...], str] = {}
        for point in points:
            marks = fingerprints(self.units(point))
            # the report holds the name of its run, so it always differs
            marks.pop("report", None)
            same = known.setdefault(tuple(marks.values()), point.name)
            if same != point.name:
                raise ConfigError(
                    f"study: {same} and {point.name} are the same up to {self.target}: no stage "
                    f"reads what they differ in; vary something else, or go on to a later stage "
                    f"(--until)"
                )


def _check_texts(points: Sequence[Point]) -> None:
    """Raise ConfigError where seeds of several points are to have texts of their own and would
    share one: the first seed of every run reads the text that all would read without."""
    first: dict[int, int] = {}
    for point in points:
        cfg = point.config
        if not cfg.pretrain.text_per_seed:
            continue
        seed = cfg.pretrain.seeds[0]
        other = first.setdefault(cfg.seed, seed)
        if other != seed:
            raise ConfigError(
                f"study: pretrain.text_per_seed: seeds {other} and {seed} are the first of "
                f"different points, which all read one text; put all seeds into every point "
                f"(--seeds {other},{seed}), or vary `seed` with them (--together)"
            )


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _combinations(
    vary: Mapping[str, Sequence[object]],
    together: bool,
) -> list[tuple[object, ...]]:
    lengths = {key: len(values) for key, values in vary.items()}
    if together and len({*lengths.values()}) > 1:
        counts = ", ".join(f"{key} has {count}" for key, count in lengths.items())
        raise ConfigError(f"--together: settings need as many values as each other, and {counts}")
    number = max(lengths.values(), default=0) if together else math.prod(lengths.values())
    if number < 2 or not vary:
        raise ConfigError(
            "study: one point is a run (`synthboot run`); give a setting two values or more, "
            "for example --vary model.width=96,192"
        )
    if number > schema.MAX_TRIALS:
        raise ConfigError(f"study: {number:,} points, more than {schema.MAX_TRIALS:,}")
    if together:
        return list(zip(*vary.values(), strict=True))
    return list(itertools.product(*vary.values()))


def _name(settings: Mapping[str, object]) -> str:
    """The name of a point's run: what is varied and how, `unique_tokens-400000_width-96`."""
    last = Counter(key.rpartition(".")[2] for key in settings)
    parts = []
    for key, value in settings.items():
        short = key.rpartition(".")[2]
        # `tune.lr` and `optim.lr` need their sections.
        parts.append(_safe(f"{short if last[short] == 1 else key}-{_text(value)}"))
    name = "_".join(parts)
    return name if len(name) <= _MOST_CHARACTERS else _shortened(name, name)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _safe(text: str) -> str:
    """A text as part of a name; what is lost is kept as a hash, so that two never become one."""
    name = _NO_NAME.sub("-", text).strip("-")
    if name == text and len(name) <= _SHOWN_CHARACTERS:
        return name
    return _shortened(name[:_SHOWN_CHARACTERS], text)


def _shortened(name: str, text: str) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{name[: _MOST_CHARACTERS - 10]}-{digest}"
