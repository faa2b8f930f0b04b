"""YAML without its surprises: a mapping of plain values, and the line on which each of them stands.

`off`, `no`, dates, `010` and `12:30` are text, and a setting decides what text means to it; `1e4`
and `1_000` are numbers. Keys are text as written, and none may stand twice. Tags, second documents,
deep nesting and what aliases blow up are errors. Anchors, aliases and merge keys work.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from synthboot.errors import ConfigError, irregular

Value = None | bool | int | float | str | list[Any] | dict[str, Any]
KeyPath = tuple[str | int, ...]

MAX_BYTES = 128 * 1024
MAX_VALUES = 50_000
MAX_DEPTH = 20
MAX_DIGITS = 400

# As in YAML 1.2; `yes`, `no`, `on` and `off` stay text, and a switch knows what they mean.
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "true": True, "false": False}
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_NUMBER = re.compile(
    rf"[-+]?(?:(?:0|(?!0){_DIGITS})(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?"
)
# Read so that the error can say what is wrong: no setting takes them.
_ENDLESS = re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE)


def read(path: str | Path) -> tuple[Value, dict[KeyPath, int]]:
    """What a file holds, and the line of every value by its place.

    Raises ConfigError, naming the line, for anything odd.
    """
    file = Path(path)
    try:
        if not file.exists():
            raise ConfigError(f"{path}: no such file; the shipped ones are in configs/")
        what = irregular(file.stat().st_mode)
        if what:
            raise ConfigError(f"{path}: {what}; name a YAML file, which can be read again")
        with open(file, "rb") as stream:
            # One byte more than allowed tells whether there is more.
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        # A name may be too long, or hold what no name can.
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read: {reason}") from None

    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"{path}: more than {MAX_BYTES:,} bytes; a configuration is a page of settings"
        )
    # Editors on Windows write UTF-16, and a mark before UTF-8.
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise ConfigError(
            f"{path} line {line}: not text in UTF-8; save the file as UTF-8"
        ) from None
    return parse(text, str(path))


def parse(text: str, where: str) -> tuple[Value, dict[KeyPath, int]]:
    """What a text holds, and the line of every value; `where` begins the message of an error."""
    try:
        return _Parser(text, where).document()
    except yaml.reader.ReaderError as error:
        line = 1 + text.count("\n", 0, error.position)
        character = error.character if isinstance(error.character, int) else ord(error.character)
        what = f"holds the character U+{character:04X}, which no YAML file may"
        raise ConfigError(f"{where} line {line}: {what}; is it a text file?") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = error.problem or error.context or ""
        raise ConfigError(f"{where} line {line}: not YAML: {problem}{_hint(problem)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # Such as an escape for a character that is none.
        raise ConfigError(f"{where}: not YAML: {error}") from None


def _hint(problem: str) -> str:
    """What to do about what PyYAML says of lines that are not what it expects there."""
    if "'\\t'" in problem:
        return "; indent by spaces, not by tabs"
    if "<block" in problem:
        return "; is it indented as what stands beside it?"
    if "mapping values" in problem:
        return "; is it indented as what stands beside it, and a text with `: ` in it in quotes?"
    return ""


class _Parser:
    """Values out of PyYAML's events, one method for each kind."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self.events: Iterator[yaml.Event] = yaml.parse(text, yaml.SafeLoader)
        self.lines: dict[KeyPath, int] = {}
        self.anchors: dict[str, tuple[Value, int]] = {}
        self.count = 0

    def document(self) -> tuple[Value, dict[KeyPath, int]]:
        """The only document there may be."""
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None, {}
        value = self.value(next(self.events), ())
        next(self.events)
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self.error(after, "a second document begins; one file is one configuration")
        return value, self.lines

    def value(self, event: yaml.Event, key_path: KeyPath) -> Value:
        self.lines[key_path] = _line(event)
        self.spend(event, 1)
        if len(key_path) > MAX_DEPTH:
            raise self.error(event, f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")  # as it was written
            raise self.error(event, f"tag {tag}: tags are not read; write the value itself")
        # How many values an anchor stands for, to be counted again at every alias.
        before = self.count
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self.sequence(key_path)
        else:
            value = self.mapping(key_path)
        if event.anchor is not None:
            self.anchors[event.anchor] = value, 1 + self.count - before
        return value

    def sequence(self, key_path: KeyPath) -> list[Value]:
        values: list[Value] = []
        for event in self.until(yaml.SequenceEndEvent):
            values.append(self.value(event, (*key_path, len(values))))
        return values

    def mapping(self, key_path: KeyPath) -> dict[str, Value]:
        values: dict[str, Value] = {}
        merged: list[Value] = []
        for event in self.until(yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.tag is not None:
                raise self.error(event, "a key has to be plain text")
            key = event.value
            # In quotes it is a key like any other.
            if key == "<<" and not event.style:
                value = self.value(next(self.events), key_path)
                merged += value if isinstance(value, list) else [value]
                if not all(isinstance(m, dict) for m in merged):
                    raise self.error(event, "`<<` takes a mapping, or a list of them")
                continue
            inner = (*key_path, key)
            if key in values:
                first = self.lines[inner]
                raise self.error(
                    event, f"{dotted(inner)} stands twice, first on line {first}; keep one"
                )
            values[key] = self.value(next(self.events), inner)
            self.lines[inner] = _line(event)

        # What stands in the mapping itself goes before what is merged into it.
        for mapping in merged:
            assert isinstance(mapping, dict)
            values = {**mapping, **values}
        return values

    def alias(self, event: yaml.AliasEvent) -> Value:
        if event.anchor not in self.anchors:
            raise self.error(event, f"*{event.anchor} stands for nothing that is complete above it")
        # Each use counts as what it stands for: a few lines of aliases can blow up to gigabytes.
        value, size = self.anchors[event.anchor]
        self.spend(event, size)
        # What is set in one place must not change in the other.
        return copy.deepcopy(value)

    def scalar(self, event: yaml.ScalarEvent) -> Value:
        text = event.value
        # In quotes, or as a block: text, whatever it looks like.
        if event.style:
            return str(text)
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if endless := _ENDLESS.fullmatch(text):
            return float(endless[1] + endless[2])
        if not _NUMBER.fullmatch(text):
            return str(text)
        if len(text) > MAX_DIGITS:
            raise self.error(event, f"a number of {len(text):,} characters")
        digits = text.replace("_", "")
        return int(digits) if digits.lstrip("+-").isdigit() else float(digits)

    def until(self, end: type[yaml.Event]) -> Iterator[yaml.Event]:
        while not isinstance(event := next(self.events), end):
            yield event

    def spend(self, event: yaml.Event, values: int) -> None:
        self.count += values
        if self.count > MAX_VALUES:
            raise self.error(
                event, f"more than {MAX_VALUES:,} values, aliases counted as what they stand for"
            )

    def error(self, event: yaml.Event, what: str) -> ConfigError:
        return ConfigError(f"{self.where} line {_line(event)}: {what}")


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else event.start_mark.line + 1


def dotted(key_path: KeyPath) -> str:
    """A place as `--set` names it."""
    return ".".join(map(str, key_path))
