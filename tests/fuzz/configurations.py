"""Configuration files: drawn from the schema, with values that fit and values that do not, then damaged; and `--set`."""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from click.testing import CliRunner
from hypothesis import strategies as st
from pydantic import BaseModel

from synthboot import loading
from synthboot.cli import main
from synthboot.config import Arm, Config
from synthboot.errors import SynthbootError
from synthboot.lm import precision
from synthboot.runner import machines
from tests.fuzz.fuzzer import Fault, Fuzzer
from tests.fuzz.mutations import edited, edits, once_in

HOSTILE = [
    "2024-13-45",
    "2024-02-30 25:61:61",
    "9" * 5_000,
    "1_000",
    "1e4",
    "1.5e3",
    "1e999",
    "-1e999",
    ".nan",
    "-.inf",
    "010",
    "0o17",
    "0xFF",
    "12:30:45",
    "off",
    "on",
    "yes",
    "NO",
    "~",
    "null",
    "''",
    "' '",
    "!!python/object/apply:os.system [ls]",
    "!!binary 'a'",
    "!!set {a, b}",
    "!!timestamp foo",
    "!custom x",
    "&a [*a]",
    "*missing",
    "[" * 500 + "]" * 500,
    "{? [a]: b}",
    "{[1, 2]: 3}",
    "{<<: x}",
    "!!int abc",
    "!!float x",
    "!!bool maybe",
    "!!omap [a: 1]",
    "!!null x",
    '"\\u202e"',
    '"\\ud800"',
    '"\\0"',
    '"\\x1b[31m"',
    "true",
    "-1",
    "0",
    str(2**63),
    str(2**64),
    str(-(2**64)),
    "0.1.2",
    "1e-400",
    "'a b'",
    "../..",
    "/",
    ".",
    "x" * 300,
    "[1, a, {b: c}]",
    "{lr: [1e-3, 1e-3]}",
    "[]",
    "{}",
    "[null]",
    "{a: {b: {c: d}}}",
    "é",
    "'\u2028'",
    "\u3000",
    "@x",
    "`x`",
    "| x",
    "> x",
    "{",
    "]",
    "&a [&b [*b, *b], *b, *b]",
]
BOMB = "[" + ", ".join(["&a0 [x, x, x]", *(f"&a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]" for i in range(1, 12))]) + "]"


def plausible(annotation: Any) -> st.SearchStrategy[str]:
    """YAML of a value that a field of this type may well take."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return st.one_of([plausible(a) for a in inner])
    if origin is Literal:
        return st.sampled_from([str(a) for a in inner])
    if origin is list:
        return st.lists(plausible(inner[0]), max_size=3).map(lambda found: "[" + ", ".join(found) + "]")
    if origin is dict:
        both = st.tuples(plausible(inner[0]), plausible(inner[1]))
        return st.lists(both, max_size=2).map(lambda found: "{" + ", ".join(f"{k}: {v}" for k, v in found) + "}")
    if hasattr(annotation, "__metadata__"):
        return plausible(annotation.__origin__)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return section(annotation)
    if annotation is bool:
        return st.sampled_from(["true", "false", "on", "off"])
    if annotation is int:
        return st.sampled_from(["1", "2", "3", "8", "64", "300", "100000"])
    if annotation is float:
        return st.sampled_from(["0", "0.05", "0.5", "1", "1e-3", "2.5", "3e2"])
    return st.just("null") if annotation is type(None) else st.sampled_from(["a", "text", "self", "train", "b.jsonl", "world"])


def section(model: type[BaseModel]) -> st.SearchStrategy[str]:
    """YAML of a section with up to three of its fields."""
    fields = [st.tuples(st.just(name), plausible(f.annotation)) for name, f in model.model_fields.items()]
    chosen = st.lists(st.one_of(fields), max_size=3)
    return chosen.map(lambda found: "{" + ", ".join(f"{k}: {v}" for k, v in found) + "}")


def settings_by_name(model: type[BaseModel] = Config, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with a dotted name, and its type."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        yield before + name, kind
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from settings_by_name(kind, f"{before}{name}.")


NAMES = [*settings_by_name(), *settings_by_name(Arm, "arms.repetition."), *settings_by_name(Arm, "arms.sbp.")]


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=6)


@st.composite
def assignment(draw: st.DrawFn) -> tuple[str, str]:
    """One setting and YAML for its value; now and then there is no such setting."""
    name, kind = draw(st.sampled_from(NAMES))
    fits, hostile = plausible(kind), st.sampled_from(HOSTILE)
    value = draw(st.one_of(fits, fits, fits, fits, hostile, words))
    if draw(once_in(16)):
        name = name[:-1] + draw(st.sampled_from(["", "s", ".", ".x", "\u200b", "_"]))
    return name, value


@st.composite
def inputs(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """The bytes of a file, and what follows `--set`."""
    lines: dict[str, list[str]] = {
        "name": ["fuzz"],
        "budget": ["unique_tokens: 100", "train_tokens: 9000"],
        "corpus": ["source: world"],
        "arms": ["repetition: {}", "sbp: {synthetic: related, share: 0.5}"],
    }
    for name, value in draw(st.lists(assignment(), max_size=4)):
        head, dot, rest = name.partition(".")
        nested = rest.split(".")
        text = f"{nested[0]}: " + "".join(f"{{{part}: " for part in nested[1:]) + value + "}" * (len(nested) - 1)
        twice = draw(once_in(8))
        known = [e for e in lines.get(head, []) if twice or not e.startswith(f"{nested[0]}:")]
        lines[head] = [*known, text] if dot else [value]
    text = "".join(
        f"{head}: {entries[0]}\n" if entries and ": " not in entries[0] else f"{head}:\n" + "".join(f"  {e}\n" for e in entries)
        for head, entries in lines.items()
    )
    if draw(once_in(80)):
        text += f"bomb: {BOMB}\n"
    encoding = draw(st.sampled_from(["utf-16", "utf-8-sig", "latin-1"])) if draw(once_in(8)) else "utf-8"
    sets = [f"{name}={value}" for name, value in draw(st.lists(assignment(), max_size=2, unique_by=lambda a: a[0]))]
    return edited(text.encode(encoding, "replace"), draw(edits(2))), sets


@contextmanager
def fuzzer(place: Path) -> Iterator[Fuzzer[tuple[bytes, list[str]]]]:
    """`synthboot plan FILE --set ...` on each: it plans, or says in one line what is wrong."""
    path, runner = place / "fuzz.yaml", CliRunner()

    def check(example: tuple[bytes, list[str]]) -> None:
        data, sets = example
        path.write_bytes(data)
        arguments = [word for item in sets for word in ("--set", item)]
        planned = runner.invoke(main, ["plan", str(path), *arguments])
        one_line(planned)
        if planned.exit_code:
            raise SynthbootError(planned.stderr.removeprefix("error: "))
        cfg = loading.load(path, set=loading.parse_set(sets))
        if Config.model_validate(cfg.model_dump(mode="json")) != cfg:
            raise Fault("a configuration changes when it is written and read", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(machines, "core_flops", lambda _: 1e9)  # neither is about reading, both take a while
        patch.setattr(precision, "undecided", lambda cfg: False)
        yield Fuzzer("configuration", inputs(), check)


def one_line(result: Any) -> None:
    """Raise what a command raised, or a Fault where it ended by an error that is not one line in our words."""
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 0:
        return
    said = result.stderr
    if result.exit_code != 2 or not said.startswith("error: ") or said.count("\n") != 1:
        raise Fault("not one line", f"exit code {result.exit_code}: {said[:300]}")
    for word in ("pydantic", "Input should", "value_error", "type=", "yaml.org", "Traceback"):
        if word in said:
            raise Fault(f"another library's words, {word}", said[:300])
