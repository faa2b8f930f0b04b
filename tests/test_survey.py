"""`synthboot init`: what it finds in files, and that what it writes fits them."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from synthboot import loading, proposal
from synthboot.cli import main
from synthboot.data import documents
from synthboot.errors import DataError
from synthboot.proposal import propose
from synthboot.runner import machines
from synthboot.survey import survey
from tests.conftest import world_documents, write_jsonl

WORDS = ["river", "moth", "rower", "village", "summit", "valley", "wing", "boat", "north", "south", "league", "season"]


def texts(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 40)) + f" number {number}." for number in range(count)]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return str(path)


def init(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["init", *arguments])


def test_a_configuration_for_lines_whose_text_has_another_name(tmp_path: Path) -> None:
    rows = [
        {"doi": f"10/{i}", "posted": f"2020-0{1 + i % 9}-03", "kind": ("a", "b")[i % 2], "body": text}
        for i, text in enumerate(texts(140))
    ]
    source = lines(tmp_path / "mine.jsonl", [*rows, {"doi": "10/x", "body": rows[0]["body"]}, {"doi": "10/y"}])
    out = tmp_path / "first try.yaml"
    result = init(source, "--out", str(out))
    assert result.exit_code == 0, result.output
    cfg = loading.load(out)
    assert cfg.corpus.source == source
    assert (cfg.corpus.text_field, cfg.corpus.id_field, cfg.pair.label_field) == ("body", "doi", "kind")
    assert (cfg.corpus.validation_docs, cfg.corpus.test_docs) == (28, 14)
    assert cfg.budget.unique_tokens == "all"
    assert "oracle" not in cfg.arms  # there is no more text than all arms have
    for found in (
        "documents: 140 of 142 records (0.7% exact duplicates; 1 bad: 1 x no",
        'text: field "body"; ids: field "doi"',
        "other fields: posted, kind",
        "scripts: Latin 100%",
        'dates: field "posted", 2020-01-03 to 2020-09-03',
        'labels: field "kind"',
        " here (to a factor of two)",
        f"synthboot pair '{out}'",
    ):
        assert found in result.stdout
    again = init(source, "--out", str(out))
    assert again.exit_code == 2
    assert "is there already" in again.stderr


def test_it_is_said_where_documents_are_longer_than_what_is_learned_of_them(tmp_path: Path) -> None:
    short, long = ([" ".join(texts(many)) + f" {i}" for i in range(120)] for many in (1, 50))
    for name, written in (("short", short), ("long", long)):
        result = init(lines(tmp_path / f"{name}.jsonl", [{"text": text} for text in written]), "--out", str(tmp_path / name))
        assert result.exit_code == 0, result.output
        assert ("documents are long: the synthesizer has room for" in result.stdout) == (name == "long")


def test_scripts_have_the_names_that_readers_know(tmp_path: Path) -> None:
    han, kana = "\u6f22\u5b57", "\u304b\u306a"
    found = survey(lines(tmp_path / "a.jsonl", [{"text": f"{han}{kana} {number}"} for number in range(120)]))
    assert found.scripts == {"Han": 0.5, "Hiragana": 0.5}


def test_every_format_is_looked_at_by_the_reader(tmp_path: Path) -> None:
    written = texts(120)
    (tmp_path / "folder").mkdir()
    for number, text in enumerate(written):
        (tmp_path / "folder" / f"{number}.txt").write_text(text)
    (tmp_path / "folder" / "notes.log").write_text("a,b")
    pq.write_table(pa.table({"id": [str(i) for i in range(120)], "text": written}), tmp_path / "t.parquet")
    rows = [{"id": i, "text": text} for i, text in enumerate(written)]
    sources = [str(tmp_path / "folder"), str(tmp_path / "t.parquet"), lines(tmp_path / "l.jsonl", rows)]
    found = [survey(source) for source in sources]
    for one in found:
        assert len(one.lengths) == one.records == 120
        assert one.corpus.text_field == "text"
        assert one.is_whole
    assert len({one.tokens for one in found[1:]}) == 1  # a folder's files come in another order
    assert "files ignored: 1 x .log" in found[0].lines()[0]


def test_tokens_are_about_those_of_the_corpus(tmp_path: Path) -> None:
    source = lines(tmp_path / "l.jsonl", [{"text": text} for text in texts(150)])
    found = survey(source)
    exact = np.array([len(text.encode()) for text in texts(150)]) / found.bytes_per_token
    assert np.abs(found.lengths - exact).max() <= 1
    assert not survey(source, most_bytes=5_000).is_whole
    assert survey(source, most_bytes=5_000).tokens < found.tokens / 2


def test_what_cannot_be_used_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    (tmp_path / "empty").mkdir()
    few = lines(tmp_path / "few.jsonl", [{"text": text} for text in texts(12)])
    numbers = lines(tmp_path / "numbers.jsonl", [{"a": 1, "b": 2}])
    for source, reason in (
        (str(tmp_path / "empty"), "no such file, or nothing in it that can be read"),
        (few, "documents that differ: 12, too few"),
        (numbers, 'no record is a document: 1 x no "text" field; fields: a, b'),
    ):
        result = init(source, "--out", str(out))
        assert result.exit_code == 2, result.output
        assert reason in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not out.exists()


def test_fewer_hours_mean_less_text_and_an_oracle_that_has_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # what was measured is kept in `runs`
    monkeypatch.setattr("synthboot.runner.machines.core_flops", lambda _: 1e9)
    found = survey(lines(tmp_path / "l.jsonl", [{"text": text} for text in texts(1_000)]))
    plenty = propose(found, "mine", 1_000)
    little = propose(found, "mine", plenty.hours / 10)
    assert little.hours <= plenty.hours / 10
    assert little.unique_tokens < plenty.unique_tokens
    least = ["repetition", "sbp", "self"]
    for made, arms in ((plenty, [*least, "random", "ensemble", "distill"]), (little, [*least, "oracle"])):
        path = tmp_path / f"{made.unique_tokens}.yaml"
        path.write_text(made.text)
        assert list(loading.load(path).arms) == arms


def test_hours_that_are_left_go_into_what_makes_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("synthboot.runner.machines.core_flops", lambda _: 1e9)
    found = survey(lines(tmp_path / "l.jsonl", [{"text": text} for text in texts(1_000)]))
    made = set()
    for hours in np.geomspace(3, 200, 36):
        proposed = propose(found, "mine", hours)
        (tmp_path / "mine.yaml").write_text(proposed.text)
        cfg = loading.load(tmp_path / "mine.yaml")
        made.add((bool(cfg.arms["repetition"].sweep), len(cfg.pretrain.seeds), "random" in cfg.arms, "distill" in cfg.arms))
        assert proposed.hours <= hours
    steps = [(False, 3, False), (True, 3, False), (True, 5, False), (True, 5, True)]
    assert made == {*((*step, False) for step in steps), (*steps[-1], True)}


def test_more_hours_than_were_asked_for_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("synthboot.runner.machines.core_flops", lambda _: 1e9)
    source = lines(tmp_path / "l.jsonl", [{"text": text} for text in texts(200)])
    result = init(source, "--hours", "0.001")
    assert result.exit_code == 0, result.output
    assert "that is more than --hours 0.001: less would be too little to learn from" in result.stdout
    cfg = loading.load("mine.yaml")
    assert cfg.budget.train_tokens % (cfg.optim.batch_tokens // cfg.model.seq_len * cfg.model.seq_len) == 0
    assert "that is more than" not in init(source, "--hours", "1000", "--out", "more.yaml").stdout


DEEPER = [
    (lambda text: {"id": 1, "data": {"text": text}}, ".data.text? // null"),
    (lambda text: {"title": text[-60:], "a b": {"c.d": text}}, '."a b"."c.d"? // null'),
    (lambda text: {"messages": [{"role": "user", "content": text}]}, '[.messages[]? | .content? | strings] | join("\\n\\n")'),
    (lambda text: {"parts": [text, "end"]}, '[.parts[]? | strings] | join("\\n\\n")'),
]


@pytest.mark.parametrize(("row", "lifted"), DEEPER)
def test_text_that_lies_below_a_field_is_found_and_how_to_bring_it_up(row: Any, lifted: str, tmp_path: Path) -> None:
    source = lines(tmp_path / "l.jsonl", [row(text) for text in texts(120)])
    result = init(source, "--out", str(tmp_path / "o.yaml"))
    assert f"jq -c '. + {{text: ({lifted})}}' brings it up" in result.output
    assert (result.exit_code == 0) == ("title" in row(""))  # where there is a field of text, it is taken
    # of a record that has its text, nothing is said
    own = lines(tmp_path / "own.jsonl", [{"text": "short " + text[:20], "meta": row(text)} for text in texts(120)])
    assert survey(own).advice == ""


@pytest.mark.skipif(shutil.which("jq") is None, reason="runs the command that is advised")
def test_what_is_advised_for_text_below_a_field_runs_whatever_the_field_is_called(tmp_path: Path) -> None:
    source = lines(tmp_path / "l.jsonl", [{"author's": {'a "b" \\ č': text}} for text in texts(3)])
    [command] = re.findall(r"(jq -c .*) brings it up", survey_refused(source))
    made = subprocess.run(["bash", "-c", f"{command} {shlex.quote(source)}"], capture_output=True, check=True)
    assert [json.loads(line)["text"] for line in made.stdout.splitlines()] == texts(3)


ODD = {
    "data": [{}, {"data": None}, {"data": "a string"}, {"data": ["a list"]}],
    "messages": [{}, {"messages": None}, {"messages": "a string"}, {"messages": {"content": 1}}],
}
"""Records that have no text where others have it."""


@pytest.mark.skipif(shutil.which("jq") is None, reason="runs the command that is advised")
@pytest.mark.parametrize("where", ODD)
def test_what_is_advised_loses_no_record_that_has_nothing_there(tmp_path: Path, where: str) -> None:
    def below(text: str) -> dict[str, Any]:
        said: list[Any] = [{"content": text}, "no object", {"content": None}, {"content": ["a list"]}, {"content": "end"}]
        return {where: {"text": text} if where == "data" else said}

    rows = [below(text) for text in texts(20)] + ODD[where] + [below("the last one")]
    source = lines(tmp_path / "l.jsonl", [{"n": number, **row} for number, row in enumerate(rows)])
    [command] = re.findall(r"(jq -c .*) brings it up", survey(source).advice)
    made = subprocess.run(["bash", "-c", f"{command} {shlex.quote(source)}"], capture_output=True, check=True)
    lifted = [json.loads(line) for line in made.stdout.splitlines()]
    assert [row["n"] for row in lifted] == list(range(len(rows)))
    end = "" if where == "data" else "\n\nend"
    assert [row["text"] for row in lifted if row["text"]] == [text + end for text in [*texts(20), "the last one"]]


def test_fields_are_called_as_they_are_whatever_is_in_their_names(tmp_path: Path) -> None:
    text, label, number = 'Text\n("English" 😀 \\ it\'s)', "kind\tof", "Doc\u2028ID"
    rows = [{number: i, label: ("a", "b")[i % 2], text: written} for i, written in enumerate(texts(120))]
    result = init(lines(tmp_path / "l.jsonl", rows), "--out", str(tmp_path / "o.yaml"))
    assert result.exit_code == 0, result.output
    cfg = loading.load(tmp_path / "o.yaml")
    assert (cfg.corpus.text_field, cfg.corpus.id_field, cfg.pair.label_field) == (text, number, label)


def test_fields_that_no_configuration_can_name_are_none(tmp_path: Path) -> None:
    odd, kind = "\udcf6", "\udcf7"
    rows = [{"id": i, odd: written * 2, kind: ("a", "b")[i % 2], "body": written} for i, written in enumerate(texts(120))]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = init(str(tmp_path / "l.jsonl"), "--out", str(tmp_path / "o.yaml"))
    assert result.exit_code == 0, result.output
    cfg = loading.load(tmp_path / "o.yaml")
    assert (cfg.corpus.text_field, cfg.pair.label_field) == ("body", None)


def test_files_without_text_among_others_are_told_how_to_be_left_out(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"text": written} for written in texts(120)])
    (tmp_path / "about.csv").write_text("name,year\nx,1\n")
    assert "leaves out files that have no text" in survey(str(tmp_path)).advice
    assert not survey(str(tmp_path / "*.jsonl")).advice


def survey_refused(source: str) -> str:
    with pytest.raises(DataError) as caught:
        survey(source)
    return str(caught.value)


@pytest.mark.parametrize("name", ["Doc-ID", "docId", "document_id", "_Id", "ID", "GUID"])
def test_an_id_is_one_however_it_is_spelled(name: str, tmp_path: Path) -> None:
    rows = [{"text": text, name: f"d{number}", "idea": number} for number, text in enumerate(texts(120))]
    assert survey(lines(tmp_path / "l.jsonl", rows)).corpus.id_field == name
    both = [{"url": f"u{number}", "uid": number} | row | {"id": number} for number, row in enumerate(rows)]
    assert survey(lines(tmp_path / "l.jsonl", both)).corpus.id_field == "id"
    none = [row | {name: "same"} for row in rows]
    assert survey(lines(tmp_path / "l.jsonl", none)).corpus.id_field == "id"  # which there is not: made of file and line


def test_text_in_another_encoding_is_told_what_makes_it_utf_8(tmp_path: Path) -> None:
    advised = "`iconv -f WINDOWS-1252 -t UTF-8`"
    western = "".join(json.dumps({"text": f"café {text}"}, ensure_ascii=False) + "\n" for text in texts(130))
    (tmp_path / "all.jsonl").write_bytes(western.encode("cp1252"))
    assert advised in init(str(tmp_path / "all.jsonl")).output
    some = "".join(json.dumps({"text": text}) + "\n" for text in texts(120, seed=1))
    (tmp_path / "some.jsonl").write_bytes(some.encode() + western.encode("cp1252"))
    assert advised in init(str(tmp_path / "some.jsonl"), "--out", str(tmp_path / "o.yaml")).output
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a.txt").write_bytes(western.encode("utf-16"))
    assert "`iconv -f UTF-16 -t UTF-8` makes it UTF-8" in init(str(tmp_path / "t")).output


@pytest.mark.parametrize("hours", ["nan", "inf", "0", "-1"])
def test_hours_that_no_clock_shows(hours: str, tmp_path: Path) -> None:
    result = init(lines(tmp_path / "l.jsonl", [{"text": text} for text in texts(200)]), "--hours", hours)
    assert result.exit_code == 2
    assert "Invalid value for '--hours'" in result.output


def test_a_source_may_be_called_anything(tmp_path: Path) -> None:
    path = tmp_path / "it's: #1 [a], {b}.jsonl"
    lines(path, [{"text": text} for text in texts(110)])
    result = init(str(path), "--out", str(tmp_path / "c.yaml"))
    assert result.exit_code == 0, result.output
    cfg = loading.load(tmp_path / "c.yaml")
    assert len(list(documents.records(cfg.corpus))) == 110


def test_a_model_that_this_machine_has_no_memory_for_is_not_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = survey(lines(tmp_path / "l.jsonl", [{"text": text} for text in texts(1_000)]))
    layers = []
    for memory in (1e12, 2e9):
        machine = machines.figures().machines["laptop"].model_copy(update={"memory_bytes": memory})
        monkeypatch.setattr(machines, "this", lambda cfg, machine=machine: machine)
        monkeypatch.setattr(proposal, "TOKENS_A_PARAMETER", 0)  # so that size alone decides
        proposed = propose(found, "mine", 1e9)
        assert proposed.hours < 1e9
        (tmp_path / "mine.yaml").write_text(proposed.text)
        layers.append(loading.load(tmp_path / "mine.yaml").model.layers)
    assert layers[0] > layers[1]


def test_records_that_are_bad_are_let_be_and_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows: list[Any] = world_documents()
    write_jsonl(tmp_path / "mixed.jsonl", [*rows, *[{"id": f"x{i}", "text": None} for i in range(90)]])
    said = CliRunner().invoke(main, ["init", "mixed.jsonl", "--out", "mixed.yaml"])
    assert said.exit_code == 0, said.output
    assert "20.0% of the records are bad: mend them, or they are left out (corpus.max_quarantine)" in said.output
    assert loading.load(tmp_path / "mixed.yaml").corpus.max_quarantine == 0.24
    nowhere = CliRunner().invoke(main, ["init", "mixed.jsonl", "--out", "none/x.yaml"])
    assert nowhere.exit_code != 0
    assert "--out: none: no such folder; make it, or name another" in nowhere.output
    write_jsonl(tmp_path / "fine.jsonl", rows)
    assert "are bad" not in CliRunner().invoke(main, ["init", "fine.jsonl", "--out", "fine.yaml"]).output
    assert "max_quarantine" not in (tmp_path / "fine.yaml").read_text()


def notes(source: str) -> str:
    return "\n".join(line for line in survey(source).lines() if line.startswith("note: "))


def test_files_without_the_text_are_named_with_what_they_have(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(110)])
    assert notes(str(tmp_path)) == ""
    (tmp_path / "labels.csv").write_text("file,label\na,b\nc,d\n")
    assert 'no record of labels.csv has the field "text"; those of labels.csv are file, label: call' in notes(str(tmp_path))
    (tmp_path / "labels.csv").write_text("file,label\na,b\nc,d\n" * 2)
    lines(tmp_path / "a.jsonl", [{"text": text} for text in texts(110)] + [{"other": "a"}])
    assert "no record of labels.csv has" in notes(str(tmp_path))
    for number in range(4):
        (tmp_path / f"m{number}.csv").write_text("body\nwords\n")
    assert "no record of labels.csv, m0.csv, m1.csv and of 2 more has" in notes(str(tmp_path))


def test_a_table_without_a_head_is_told(tmp_path: Path) -> None:
    rows = "".join(f'{number % 2},"{text}"\n' for number, text in enumerate(texts(120)))
    (tmp_path / "bare.csv").write_text(rows)
    result = init(str(tmp_path / "bare.csv"), "--out", str(tmp_path / "o.yaml"))
    assert "note: the first row of a table names its fields, and here it is a text, which is lost" in result.output
    question = "What did you like most about this course, in your own words"
    (tmp_path / "form.csv").write_text(f'n,"{question}"\n{rows}')
    assert notes(str(tmp_path / "form.csv")) == ""


def test_an_opening_that_most_documents_share_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for number, text in enumerate(texts(120)):
        (tmp_path / "notes" / f"{number}.md").write_text(f"---\ntitle: {number}\n---\n{text}\n")
    assert "100% of the documents begin with the line '---'" in notes(str(tmp_path / "notes"))
    for number, text in enumerate(texts(120)):
        (tmp_path / "notes" / f"{number}.md").write_text(f"# {number}\n---\n{text}\n")
    assert notes(str(tmp_path / "notes")) == ""


def test_files_that_were_passed_over_are_said_how_to_read(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("words")
    (tmp_path / "a.py").write_text("pass")
    assert notes(str(tmp_path)) == ""
    (tmp_path / "b.py").write_text("pass")
    assert "more files were passed over than read; where .py is plain text, name it: 'folder/**/*.py'" in notes(str(tmp_path))
    for name in ("a.pdf", "b.pdf", "c.pdf"):
        (tmp_path / name).write_bytes(b"%PDF-1.4")
    assert "passed over than read; take the text out of it first" in notes(str(tmp_path))


def test_escapes_of_databases_are_told(tmp_path: Path) -> None:
    rows = [f"{number}\t{text}\\nmore" for number, text in enumerate(texts(110))]
    (tmp_path / "a.tsv").write_text("\n".join(["n\tbody", *rows]))
    assert notes(str(tmp_path)) == ""  # it may be LaTeX
    (tmp_path / "a.tsv").write_text("\n".join(["n\tbody", *rows, "\\N\twords"]))
    assert r"note: values are \N, as databases write it for nothing" in notes(str(tmp_path))
