"""What a setting may be: bounded numbers, names, text, switches; and the same in words, for errors."""

from __future__ import annotations

import itertools
import math
import shlex
import types
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo

_SWITCH = {"on": True, "yes": True, "off": False, "no": False}
_NAME, _URL = r"^[A-Za-z0-9][A-Za-z0-9._-]*$", r"^https?://\S+$"
_PATTERNS = {
    _NAME: "a name of at most 100 letters, digits, '.', '_' and '-', a letter or digit first",
    _URL: "an address that begins with http:// or https://",
}
MAX_TRIALS = 1_000


def _splits(command: str) -> str:
    try:
        shlex.split(command)
    except ValueError as error:
        raise ValueError(f"no command line: {error}") from None
    return command


Count = Annotated[int, Field(ge=1, le=10**15)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy, scikit-learn and torch all take
Text = Annotated[str, Field(min_length=1, max_length=10_000)]
Name = Annotated[str, Field(pattern=_NAME, max_length=100)]
Sources = Text | Annotated[list[Text], Field(min_length=1)]
Url = Annotated[str, Field(pattern=_URL, max_length=2_000)]
Command = Annotated[Text, AfterValidator(_splits)]
Switch = Annotated[
    bool, BeforeValidator(lambda v: _SWITCH.get(v.lower(), v) if isinstance(v, str) else v)
]


def given(value: Any) -> Any:
    """A section as it is given: `pair:` with nothing below it has no settings, rather than being nothing."""
    return {} if value is None else value


Swept = TypeVar("Swept", bound=BaseModel)


def trials(swept: Swept) -> dict[str, Swept]:
    """Every combination of a section's `sweep` by name; the section itself under no name where there is none. Raises
    ValueError for a value that its setting does not take."""
    sweep: dict[str, list[float]] = getattr(swept, "sweep")  # noqa: B009
    plain, found = swept.model_dump(exclude={"sweep"}), dict[str, Swept]()
    if math.prod(map(len, sweep.values())) > MAX_TRIALS:
        raise ValueError(f"`sweep` has more than {MAX_TRIALS:,} combinations, a model each")
    for values in itertools.product(*sweep.values()) if sweep else ():
        chosen = dict(zip(sweep, values, strict=True))
        name = ",".join(f"{key}={value:g}" for key, value in chosen.items())
        if name in found:
            raise ValueError(f"`sweep` has {name} twice (six digits count)")
        try:
            found[name] = type(swept)(**plain | chosen)
        except ValidationError as error:
            wrong = error.errors()[0]
            field = type(swept).model_fields.get(str(wrong["loc"][0])) if wrong["loc"] else None
            reason = wrong["ctx"]["error"] if field is None else f"it takes {takes(field)}"
            raise ValueError(f"`sweep`: {name}: {reason}") from None
    return found or {"": swept}


def takes(field: FieldInfo) -> str:
    """What a setting takes, in words: `a number above 0 and at most 1`."""
    return _words(field.annotation, field.metadata)


def section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or holds by name, if it does."""
    options = [annotation, *get_args(annotation)]
    return next((a for a in options if isinstance(a, type) and issubclass(a, BaseModel)), None)


def _words(kind: Any, limits: list[Any]) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        flat = [
            m
            for given in inner[1:]
            for m in (given.metadata if isinstance(given, FieldInfo) else [given])
        ]
        return _words(inner[0], [*flat, *limits])
    if origin in (Union, types.UnionType):
        return ", or ".join(_words(option, limits) for option in inner)
    if origin is Literal:
        *most, last = inner
        return f"{', '.join(most)} or {last}" if most else str(last)
    if origin is list:
        return f"a list of {_words(inner[0], [])}" + (
            "" if _limit(limits, "min_length") is None else ", one at least"
        )
    if origin is dict:
        return f"values by name ({_words(inner[0], [])}), each {_words(inner[1], [])}"
    if kind in (int, float):
        return ("a whole number" if kind is int else "a number") + _range(limits)
    if kind is bool:
        return "true or false"
    if kind is str:
        plain = "text" if _limit(limits, "min_length") is None else "text that is not empty"
        return _PATTERNS.get(_limit(limits, "pattern"), plain)
    return "nothing (null)" if kind in (None, types.NoneType) else "settings by name"


def _range(limits: list[Any]) -> str:
    above, least, below, most = (_limit(limits, name) for name in ("gt", "ge", "lt", "le"))
    if least is not None and most is not None:
        return f" from {least:,.16g} to {most:,.16g}"
    words = {"above": above, "at least": least, "below": below, "at most": most}
    found = [f"{word} {limit:,.16g}" for word, limit in words.items() if limit is not None]
    return f" {' and '.join(found)}" if found else ""


def _limit(limits: list[Any], name: str) -> Any:
    return next((getattr(m, name) for m in limits if getattr(m, name, None) is not None), None)
