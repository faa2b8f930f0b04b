"""Records become documents: each with an id of its own, from the bytes that the fingerprint speaks of, and all counted."""

import json
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthboot import config, pool, recipes
from synthboot.artifacts import spool
from synthboot.artifacts.store import WORK, Progress, Shards, silent
from synthboot.data import documents, files
from synthboot.data.disk import read_json
from synthboot.errors import DataError
from synthboot.stages.corpus import corpus
from tests.conftest import small_config, world_documents, write_jsonl


def settings(source: Any, **changes: Any) -> config.Corpus:
    given = [str(s) for s in source] if isinstance(source, list) else str(source)
    return config.Corpus(source=given, near_duplicates="off", **{"shard_docs": 8, **changes})


def ingested(
    cfg: config.Corpus, folder: Path, expected: dict[str, list[str]] | None = None, progress: Progress = silent
) -> dict[str, str]:
    """Texts by id."""
    folder.mkdir(exist_ok=True)
    spool.ingest(cfg, folder, progress, expected or {})
    found = spool.Spool(Shards(folder / WORK / "ingest"))
    ids = [found.row(i, "id") for i in range(len(found))]
    assert len(set(zip(ids, found, strict=True))) == len(set(found))
    return dict(zip(ids, found, strict=True))


def identities(cfg: config.Corpus) -> dict[str, list[str]]:
    return {"source": documents.identity(cfg.source), "replay": documents.identity(cfg.replay or [], "corpus.replay")}


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"id": i, "text": f"document {i}"} for i in range(start, start + count)]


def test_no_text_is_lost_to_an_id_that_another_has(tmp_path: Path) -> None:
    for number in range(3):  # ids begin anew in every shard
        write_jsonl(tmp_path / f"part-{number}.jsonl", [{"id": i, "text": f"{number}, {i}"} for i in range(20)])
    found = ingested(settings(tmp_path / "*.jsonl"), tmp_path / "a")
    assert sorted(found.values()) == sorted(f"{number}, {i}" for number in range(3) for i in range(20))
    assert {name.partition("#")[0] for name in found} == {str(i) for i in range(20)}
    assert sum("#" in name for name in found) == 40
    backwards = [tmp_path / f"part-{number}.jsonl" for number in (2, 1, 0)]
    assert ingested(settings(backwards), tmp_path / "b") == found  # which of them keeps its id hangs on the texts alone


def test_fields_are_json_that_every_reader_knows() -> None:
    fields = {
        "nan": math.nan,
        "inner": [{"much": math.inf}, 1.5, True],
        "bytes": b"\xff\x00",
        "half": "\ud800",
        "day": date(2026, 1, 2),
    }
    known = json.loads(spool.fields_json(fields), parse_constant=pytest.fail)
    assert known == {"nan": None, "inner": [{"much": None}, 1.5, True], "bytes": "ff00", "half": "?", "day": "2026-01-02"}


def test_an_id_that_looks_like_one_that_was_made_up_takes_no_text_away(tmp_path: Path) -> None:
    first = [{"id": "x", "text": t} for t in ("one", "two", "three")]
    made = set(ingested(settings(write_jsonl(tmp_path / "a.jsonl", first)), tmp_path / "a"))
    more = [{"id": name, "text": f"another {name}"} for name in made] + [{"text": "none"}, {"id": "b.jsonl:7", "text": "7"}]
    found = ingested(settings(write_jsonl(tmp_path / "b.jsonl", [*first, *more])), tmp_path / "b")
    assert len(found) == len(first) + len(more)


def test_replayed_text_has_ids_of_its_own(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"id": "x", "text": "one"}, {"id": "replay:x", "text": "two"}])
    write_jsonl(tmp_path / "b.jsonl", [{"id": "x", "text": "three"}, {"id": "x", "text": "four"}])
    cfg = settings(tmp_path / "a.jsonl", replay=str(tmp_path / "b.jsonl"))
    found = ingested(cfg, tmp_path / "out", identities(cfg))
    assert sorted(found.values()) == ["four", "one", "three", "two"]
    assert {name.partition("#")[0] for name in found} == {"x", "replay:x"}


def append(path: Path) -> None:
    write_jsonl(path, [*rows(40), *rows(1, 99)])


def flip(path: Path) -> None:
    path.write_text(path.read_text().replace("document 39", "Document 39"))


def cut(path: Path) -> None:
    write_jsonl(path, rows(30))


def replace(path: Path) -> None:
    write_jsonl(path.with_name("new"), rows(40, 50)).rename(path)


@pytest.mark.parametrize("change", [append, flip, cut, replace, Path.unlink])
@pytest.mark.parametrize("when", ["before it is read", "while it is read"])
def test_a_source_that_changes_is_an_error_and_never_a_mixture(
    tmp_path: Path, change: Callable[[Path], None], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", 256)  # the file is read in blocks, and is longer than one
    path = write_jsonl(tmp_path / "a.jsonl", rows(40))
    cfg = settings(path)
    marks = identities(cfg)
    shards = iter(range(100))

    def changing(*_: Any) -> None:
        if next(shards) == 0:
            change(path)

    progress = changing if when == "while it is read" else silent
    if when == "before it is read":
        change(path)
    replaced = when == "while it is read" and change in (replace, Path.unlink)  # the file that was opened is still read
    if not replaced:
        with pytest.raises(DataError, match=r"a\.jsonl: (has changed since this run began|no such file|cannot be read)"):
            ingested(cfg, tmp_path / "out", marks, progress)
    write_jsonl(path, rows(40))  # as it was: what is kept of the changed one must not be in it
    found = ingested(cfg, tmp_path / "out", marks)
    assert found == {str(row["id"]): row["text"] for row in rows(40)}


def test_shards_of_a_changed_file_do_not_outlive_a_kill(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*rows(7), {"id": 7, "text": "changed"}, *rows(40, 8)])
    cfg = settings(path)
    ingested(cfg, tmp_path / "out")  # six shards, and nobody has compared the hash
    write_jsonl(path, rows(40))
    assert ingested(cfg, tmp_path / "out", identities(cfg)) == {str(i): f"document {i}" for i in range(40)}


def test_files_that_come_or_go_are_named(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / "data" / name, rows(3)) if (tmp_path / "data").mkdir(exist_ok=True) is None else None
    cfg = settings(tmp_path / "data")
    marks = identities(cfg)
    (tmp_path / "data" / "b.jsonl").unlink()
    with pytest.raises(DataError, match=r"corpus\.source: b\.jsonl is gone since this run began to look at it; run again"):
        ingested(cfg, tmp_path / "out", marks)
    write_jsonl(tmp_path / "data" / "aa.jsonl", rows(3))
    with pytest.raises(DataError, match=r"aa\.jsonl: has changed since this run began"):
        ingested(cfg, tmp_path / "out", marks)


def test_a_changed_parquet_file_is_found_out_whatever_column_it_is_in(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**row, "note": "x" * 50} for row in rows(40)])
    pq.write_table(table, tmp_path / "a.parquet", compression="none", use_dictionary=False)
    cfg = settings(tmp_path / "a.parquet")
    marks = identities(cfg)
    assert len(ingested(cfg, tmp_path / "out", marks)) == 40
    content = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(content.replace(b"x" * 50, b"y" + b"x" * 49, 1))
    with pytest.raises(DataError, match=r"a\.parquet: has changed"):
        ingested(cfg, tmp_path / "out", marks)


def test_a_changed_saved_dataset_is_found_out(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(rows(5)).save_to_disk(str(tmp_path / "saved"))
    cfg = settings(tmp_path / "saved")
    marks = identities(cfg)
    assert len(ingested(cfg, tmp_path / "out", marks)) == 5
    (tmp_path / "saved" / "state.json").write_text((tmp_path / "saved" / "state.json").read_text() + " ")
    with pytest.raises(DataError, match="saved: has changed"):
        ingested(cfg, tmp_path / "out", marks)


def test_fields_that_no_file_can_hold_do_not_stop_the_run(tmp_path: Path) -> None:
    deep = '{"text": "deep", "x": ' + "[" * 900 + "]" * 900 + "}"
    path = write_jsonl(tmp_path / "a.jsonl", ['{"text": "half", "\\ud800": "\\udfff and \\ud83d\\ude00"}', deep])
    cfg = settings(path, max_quarantine=0.5)
    assert "half" in ingested(cfg, tmp_path / "out").values()
    fields = json.loads(spool.Spool(Shards(tmp_path / "out" / WORK / "ingest")).row(0, "metadata"))
    assert fields == {"?": "? and \N{GRINNING FACE}"}


def test_a_wrong_field_name_is_told_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "GIVE_UP_AFTER", 20)
    path = write_jsonl(tmp_path / "a.jsonl", [{"body": "words"} for _ in range(500)])
    with pytest.raises(DataError, match=r'line 1: no "text" field; 24 of 24 records are bad'):
        ingested(settings(path), tmp_path / "out")


def test_a_shard_ends_where_its_records_take_too_much_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SHARD_BYTES", 100)
    cfg = settings(write_jsonl(tmp_path / "a.jsonl", [{"text": "long " * 50 + str(i)} for i in range(4)]))
    assert len(ingested(cfg, tmp_path / "out")) == 4
    assert len(Shards(tmp_path / "out" / WORK / "ingest")) == 4


def test_an_account_says_what_was_not_kept_as_it_came(tmp_path: Path) -> None:
    texts = world_documents()[:100]
    data = tmp_path / "data"
    data.mkdir()
    again = {"id": texts[0]["id"], "text": "Quite another text under an id that is known."}
    copy = {"id": "copy", "text": texts[1]["text"]}
    write_jsonl(data / "a.jsonl", [*texts, again, copy, {"text": " "}, {"id": "y"}])
    (data / "b.log").write_text("id,text")
    (data / ".c.txt").write_text("hidden")
    cfg = settings(data, vocab_size=300, validation_docs=5, test_docs=5, max_quarantine=0.1, shard_docs=64)
    result = corpus(cfg, "all", tmp_path / "out", expected=identities(cfg))
    assert result.account == (
        '104 records: 101 kept, 2 quarantined (1 x empty text, 1 x no "text" field), 1 x exact duplicate dropped, '
        "1 x repeated id of another text renamed, 2 files ignored (1 x .log, 1 x hidden)"
    )
    assert read_json(tmp_path / "out" / "corpus.json")["account"] == result.account
    assert (result.renamed_ids, result.ignored_files) == (1, {".log": 1, "hidden": 1})
    assert result.reasons == {"empty text": 1, 'no "text" field': 1}


def test_weights_from_outside_are_part_of_what_the_corpus_reads(tmp_path: Path, world_file: Path) -> None:
    (tmp_path / "model").mkdir()
    weights = tmp_path / "model" / "model.safetensors"
    given = small_config(world_file, tmp_path / "runs")
    given["model"] = {**given["model"], "init_from": str(tmp_path / "model")}
    seen = []
    for content in (b"one", b"two"):
        weights.write_bytes(content)
        seen.append(recipes.units(config.Config(**given))["corpus"].outside)
    assert seen[0] != seen[1]


def test_several_processes_spool_the_same_bytes(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [*rows(21), {"id": 21}, *rows(20, 22)])
    cfg = settings(tmp_path / "a.jsonl", replay=str(write_jsonl(tmp_path / "b.jsonl", rows(9, 100))), max_quarantine=0.5)
    made = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        counted = spool.ingest(cfg, folder, silent, {}, workers)
        assert (counted.records, counted.quarantined) == (51, 1)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        made.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert len([path for path in made[0] if path.name == "documents.arrow"]) == 8
    assert made[0] == made[1]


def test_several_processes_write_the_same_corpus(tmp_path: Path) -> None:
    """With ids that were renamed, canaries that were planted and text to replay, which no shard of the source holds."""
    text = "the quick brown fox jumps over lazy dogs and runs away from them into woods"
    named = [{"id": i % 60, "text": f"{i} {text} {i}"} for i in range(90)]
    source = write_jsonl(tmp_path / "a.jsonl", named)
    replay = write_jsonl(tmp_path / "b.jsonl", [{"id": i, "text": f"replayed {i} {text}"} for i in range(20)])
    cfg = settings(source, replay=str(replay), vocab_size=300, validation_docs=9, test_docs=9, canaries={"count": 4})
    made = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        counts = corpus(cfg, "all", folder, workers=workers)
        assert counts.renamed_ids == 30
        assert counts.documents["replay"] == 20
        files = sorted(path for path in folder.rglob("*") if path.is_file() and WORK not in path.relative_to(folder).parts)
        made.append({path.relative_to(folder): path.read_bytes() for path in files})
    assert len([path for path in made[0] if path.name == "documents.parquet"]) > 12
    assert made[0] == made[1]


def in_a_worker(cfg: config.Corpus, folder: Path, connection: object) -> int:
    return corpus(cfg, "all", folder, workers=2).documents["pool"]


def test_a_unit_that_has_tokenized_may_have_workers_that_do(tmp_path: Path) -> None:
    """A unit's workers are forks of it: the threads with which it trained the tokenizer are not there in them."""
    text = "the quick brown fox jumps over lazy dogs and runs away from them into woods"
    source = write_jsonl(tmp_path / "a.jsonl", [{"id": i, "text": f"{i} {text} {i}"} for i in range(90)])
    cfg = settings(source, vocab_size=300, validation_docs=9, test_docs=9)
    running = pool.Pool()
    running.start("corpus", in_a_worker, cfg, tmp_path / "out")
    try:
        assert running.wait() == [("corpus", "done", 72)]
    finally:
        running.close()


def test_mapped_text_takes_no_descriptors(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "many.jsonl", world_documents())
    ingested(settings(path), tmp_path / "out")
    shards = Shards(tmp_path / "out" / WORK / "ingest")
    before = len(list(Path("/proc/self/fd").iterdir()))
    read = spool.Texts(shards)
    assert len(read) == 360  # in 45 shards
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert read[359] == spool.Texts(shards)[359]
