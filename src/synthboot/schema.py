"""What a setting may be: bounded numbers, names, text, switches; and the same in words."""

from __future__ import annotations

import itertools
import math
import shlex
import types
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo

# What YAML 1.1 took for booleans and `strict_yaml` leaves as text.
_SWITCH = {"on": True, "yes": True, "off": False, "no": False}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_URL = r"^https?://\S+$"
_JUDGE = r"^(rules|embedding|likelihood|local:.+|server:.+)$"
_PATTERNS = {
    _NAME: "a name of at most 100 letters, digits, '.', '_' and '-', a letter or digit first",
    _URL: "an address that begins with http:// or https://",
    _JUDGE: "`rules`, `embedding`, `likelihood`, `local:FOLDER` or `server:NAME`",
}
# A slip of a sweep must not plan a million models.
MAX_TRIALS = 1_000


def _command_line(command: str) -> str:
    try:
        shlex.split(command)
    except ValueError as error:
        raise ValueError(f"no command line: {error}") from None
    return command


def _switch(value: object) -> object:
    return _SWITCH.get(value.lower(), value) if isinstance(value, str) else value


Count = Annotated[int, Field(ge=1, le=10**15)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
# What numpy, scikit-learn and torch all take.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Text = Annotated[str, Field(min_length=1, max_length=10_000)]
Name = Annotated[str, Field(pattern=_NAME, max_length=100)]
Sources = Text | Annotated[list[Text], Field(min_length=1)]
Url = Annotated[str, Field(pattern=_URL, max_length=2_000)]
Judge = Annotated[str, Field(pattern=_JUDGE, max_length=2_000)]
Command = Annotated[Text, AfterValidator(_command_line)]
Window = Annotated[list[float], Field(min_length=2, max_length=2)]
Switch = Annotated[bool, BeforeValidator(_switch)]


def given(value: object) -> object:
    """A section as it is given: `pair:` with nothing below it is a section without settings."""
    return {} if value is None else value


Swept = TypeVar("Swept", bound=BaseModel)


def trials(swept: Swept) -> dict[str, Swept]:
    """Every combination of a section's `sweep` by name; without one, itself under the empty name.

    Raises ValueError for a value that its setting does not take.
    """
    # By name, since the type checker knows of no `sweep` in a BaseModel.
    sweep: dict[str, list[float]] = getattr(swept, "sweep")  # noqa: B009
    if not sweep:
        return {"": swept}
    if math.prod(map(len, sweep.values())) > MAX_TRIALS:
        raise ValueError(f"`sweep` has more than {MAX_TRIALS:,} combinations, a model each")

    unswept = swept.model_dump(exclude={"sweep"})
    by_name: dict[str, Swept] = {}
    for values in itertools.product(*sweep.values()):
        combination = dict(zip(sweep, values, strict=True))
        # Also the name of a folder, so it has to be short and the same everywhere.
        name = ",".join(f"{key}={value:g}" for key, value in combination.items())
        if name in by_name:
            raise ValueError(f"`sweep` has {name} twice (six digits count)")
        try:
            by_name[name] = type(swept)(**unswept | combination)
        except ValidationError as error:
            reason = _reason(type(swept), error)
            raise ValueError(f"`sweep`: {name}: {reason}") from None
    return by_name


def _reason(kind: type[BaseModel], error: ValidationError) -> str:
    """Why a section of this kind cannot be: what a setting takes, or what a check of all says."""
    first = error.errors()[0]
    field = kind.model_fields.get(str(first["loc"][0])) if first["loc"] else None
    if field is None:
        return str(first["ctx"]["error"])
    return f"it takes {takes(field)}"


def takes(field: FieldInfo) -> str:
    """What a setting takes, in words: `a number above 0 and at most 1`."""
    return _words(field.annotation, field.metadata)


def section(annotation: object) -> type[BaseModel] | None:
    """The section that a field holds, or holds by name, if it does."""
    for option in (annotation, *get_args(annotation)):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _words(kind: object, limits: list[object]) -> str:
    """A type in words; `limits` is the metadata that bounds it."""
    origin = get_origin(kind)
    inner = get_args(kind)
    if origin is Annotated:
        return _words(inner[0], [*_metadata(inner[1:]), *limits])
    if origin in (Union, types.UnionType):
        return ", or ".join(_words(option, limits) for option in inner)
    if origin is Literal:
        *most, last = inner
        return f"{', '.join(most)} or {last}" if most else str(last)
    if origin is list:
        least = _limit(limits, "min_length")
        if least is not None and least == _limit(limits, "max_length"):
            return f"a list of {least}, each {_words(inner[0], [])}"
        at_least_one = "" if least is None else " of one at least"
        return f"a list{at_least_one}, each {_words(inner[0], [])}"
    if origin is dict:
        return f"values by name ({_words(inner[0], [])}), each {_words(inner[1], [])}"
    return _plain_words(kind, limits)


def _plain_words(kind: object, limits: list[object]) -> str:
    if kind is int:
        return f"a whole number{_range(limits)}"
    if kind is float:
        return f"a number{_range(limits)}"
    if kind is bool:
        return "true or false"
    if kind is str:
        plain = "text" if _limit(limits, "min_length") is None else "text that is not empty"
        return _PATTERNS.get(_limit(limits, "pattern"), plain)
    return "nothing (null)" if kind in (None, types.NoneType) else "settings by name"


def _metadata(annotations: tuple[object, ...]) -> list[object]:
    """The limits of an `Annotated`; a Field holds several."""
    limits: list[object] = []
    for annotation in annotations:
        if isinstance(annotation, FieldInfo):
            limits += annotation.metadata
        else:
            limits.append(annotation)
    return limits


def _range(limits: list[object]) -> str:
    least = _limit(limits, "ge")
    most = _limit(limits, "le")
    if least is not None and most is not None:
        return f" from {least:,.16g} to {most:,.16g}"

    words = {
        "above": _limit(limits, "gt"),
        "at least": least,
        "below": _limit(limits, "lt"),
        "at most": most,
    }
    bounds = [f"{word} {limit:,.16g}" for word, limit in words.items() if limit is not None]
    return f" {' and '.join(bounds)}" if bounds else ""


def _limit(limits: list[object], name: str) -> Any:
    """The first bound of this name, if there is one."""
    for limit in limits:
        value = getattr(limit, name, None)
        if value is not None:
            return value
    return None
