"""What reaches a terminal: nothing that acts on it, everything that is text, in any encoding, whoever reads."""

import json
import os
import subprocess
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from synthboot import cli, show
from synthboot.cli.output import say
from synthboot.data.disk import storage_errors
from synthboot.errors import StorageError
from synthboot.terminal import one_line, safe, table_lines

ACTING = [chr(c) for c in [*range(9), *range(11, 32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xD800]]
TEXT = "a\u3000b\u00a0c\u200dd\u200ce\u00adf e\u0301 日本語 हिन्दी שלום \u200f العربية 👩\u200d🔬 \u2003\tx\ny \ue000"


def test_what_acts_on_a_terminal_is_written_as_json_writes_it() -> None:
    for character in ACTING:
        assert safe(f"a{character}b") == f"a\\u{ord(character):04x}b"
        assert json.loads(safe(json.dumps({character: character}, ensure_ascii=False))) == {character: character}
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp") and chr(code) not in "\n\t":
            assert safe(chr(code)) != chr(code)


def test_text_stays_text() -> None:
    assert safe(TEXT) == TEXT
    assert safe("a\r\nb") == "a\nb"
    assert one_line("a\nb\tc\u3000") == "a\\u000ab\\u0009c\u3000"


EVIL = "\x1b]0;x\x07\u202egnp.exe\u2066\x9b31m\x85"
LONG = "".join(chr(0x4E00 + i) for i in range(300))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ((LONG, 0), ("ก" * 150, 1), (EVIL, 2), ("x" * 200, 0))
    example = show.Example(f"t {EVIL}\nnew", {"d1": ((TEXT, 0),), f"d2{EVIL}": parts})
    monkeypatch.setattr(show, "examples", lambda *_, **__: [example])


@pytest.mark.parametrize("columns", ["100", "60", "24"])
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_show_loses_no_text_and_lets_none_act(shown: None, option: list[str], columns: str) -> None:
    result = CliRunner().invoke(cli.main, ["show", "x", "pairs", *option], env={"COLUMNS": columns})
    assert result.exit_code == 0, result.output
    assert not {c for c in result.stdout if c in ACTING}
    if option:
        assert json.loads(result.stdout)[0]["texts"][f"d2{EVIL}"][0][0] == LONG
    else:
        assert all(c in result.stdout for c in LONG)
        assert (result.stdout.count("ก"), result.stdout.count("…")) == (150, 0)
        assert result.stdout.count("x") >= 200


def test_errors_statuses_and_comparisons_let_nothing_act(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text('name: "a\\e[2J\\u202e\\n"\n"b\\e]0;": 1\n')
    for arguments in (
        ["plan", str(config)],
        ["plan", str(tmp_path / EVIL)],
        ["status", str(tmp_path / f"a\n{EVIL}")],
        ["plan", str(config), "--set", f"{EVIL}=1"],
        ["show", f"{tmp_path}/{EVIL}", "pairs"],
    ):
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 2
        assert not {c for c in result.output if c in ACTING}
        assert len(result.stderr.splitlines()) == 1


def test_columns_line_up_where_characters_are_wide() -> None:
    lines = table_lines(["a", "b"], [["日本", "x"], ["y" * 4, "\x1b"]])
    assert lines == ["a     b", "----  ------", "日本  x", "yyyy  \\u001b"]


PROGRAM = """
import sys
from synthboot import cli, show
parts = {"d1": (("日本 é \\U0001f600 " + sys.argv[2] * 9, 0),)}
show.examples = lambda *_, **__: [show.Example("t", parts)]
cli.main(["show", "x", "pairs", *sys.argv[1].split()])
"""


@pytest.mark.parametrize(("encoding", "option"), [("latin-1", ""), ("ascii", "--json"), ("ascii", "")])
def test_an_encoding_that_lacks_characters_is_no_crash(encoding: str, option: str) -> None:
    command = [sys.executable, "-c", PROGRAM, option, ""]
    told = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=True)
    text = told.stdout.decode(encoding)
    if option:
        assert json.loads(text)[0]["texts"]["d1"] == [["日本 é \U0001f600 ", 0]]
    else:
        assert "\\u65e5\\u672c" in text


def test_a_reader_that_goes_ends_it_without_a_word() -> None:
    command = [sys.executable, "-c", PROGRAM, "--json", "words "]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141


TOLD = """
from synthboot.cli.progress import RunProgress
with RunProgress() as progress:
    for number in range(2_000):
        progress.tell("base", "note", f"line {number}")
print("done")
"""


def test_where_results_cannot_be_written_it_is_no_run_folder_whose_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 - closing it fails, which must hide nothing
    monkeypatch.setattr(sys, "stdout", full)
    try:
        with pytest.raises(StorageError, match=r"^standard output: the disk is full; "), storage_errors(tmp_path):
            say("a result")
    finally:
        monkeypatch.undo()
        with suppress(OSError):  # it keeps what it could not write, and tries again
            full.close()


@pytest.mark.parametrize("log", ["full", "left"])
def test_a_log_that_cannot_be_written_ends_no_work(log: str) -> None:
    """As where its disk is full, or where what read it has ended."""
    if log == "full":
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, target = os.pipe()
        os.close(reader)
    try:
        process = subprocess.run([sys.executable, "-c", TOLD], stdout=subprocess.PIPE, stderr=target, text=True, timeout=120)
    finally:
        os.close(target)
    assert process.stdout == "done\n"
