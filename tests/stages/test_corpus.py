import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from synthboot import config
from synthboot.artifacts.corpus import Corpus
from synthboot.artifacts.store import Progress, Shards, silent
from synthboot.data import near_duplicates
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError, DataError
from synthboot.stages import corpus as stage
from synthboot.stages.corpus import corpus
from tests.conftest import Killed, files, world_documents, write_jsonl


def make(folder: Path, rows: list[Any], unique_tokens: int = 1_000, progress: Progress = silent, **changes: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    source = write_jsonl(folder / "source.jsonl", rows)
    settings = {"vocab_size": 320, "validation_docs": 20, "test_docs": 20, "shard_docs": 50} | changes
    return corpus(config.Corpus(source=str(source), **settings), unique_tokens, folder / "out", progress=progress)


def texts(folder: Path, name: str) -> list[str]:
    return [d.text for d in Corpus.open(folder / "out").texts(name)]


def test_every_record_is_accounted_for_and_sets_do_not_overlap(tmp_path: Path) -> None:
    rows = [*world_documents(), {"id": "empty", "text": " "}, {"id": "copy", "text": world_documents()[0]["text"]}]
    result = make(tmp_path, rows, max_quarantine=0.1)
    assert result.records == len(rows)
    assert result.quarantined == 1
    assert result.dropped["exact_duplicate"] == 1
    assert result.records == sum(result.documents.values()) + result.quarantined + sum(result.dropped.values())
    assert (result.documents["validation"], result.documents["test"]) == (20, 20)
    sets = [set(texts(tmp_path, name)) for name in ("validation", "test", "pool")]
    assert sum(map(len, sets)) == len(set.union(*sets)) == sum(result.documents.values())


def test_quarantine_names_file_line_and_reason(tmp_path: Path) -> None:
    make(tmp_path, [*world_documents(), '{"id": "x", "text": "cut', {"id": "y"}], max_quarantine=0.1)
    found = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert found == [
        {"file": "source.jsonl", "line": 361, "reason": "not valid JSON (truncated?)"},
        {"file": "source.jsonl", "line": 362, "reason": 'no "text" field'},
    ]


def test_too_many_bad_records_stop_the_stage(tmp_path: Path) -> None:
    rows = [*world_documents()[:95], *[{"id": str(i)} for i in range(5)]]
    with pytest.raises(DataError, match=r'source\.jsonl line 96: no "text" field; 5 of 100 records are bad \(limit 1%\)'):
        make(tmp_path, rows)
    with pytest.raises(DataError, match=r"\(limit 0\.04%\)"):
        make(tmp_path, rows, max_quarantine=0.0004)


def test_no_text_field_at_all_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='no "text" field; 50 of 50 records are bad'):
        make(tmp_path, [{"id": str(i), "body": "words"} for i in range(50)])


def planted(seed: int = 1) -> list[dict[str, str]]:
    """80 groups of three near-copies (Jaccard above 0.8) among 120 single documents."""
    rng = random.Random(seed)
    rows = []
    for group in range(200):
        words = [f"w{rng.randrange(9_000)}" for _ in range(100)]
        for copy in range(3 if group < 80 else 1):
            changed = list(words)
            if copy:
                changed[rng.randrange(100)] = f"other{rng.randrange(10**6)}"
            rows.append({"id": f"{group}-{copy}", "text": " ".join(changed)})
    rng.shuffle(rows)
    return rows


@pytest.mark.parametrize("setting", ["remove", "flag"])
def test_no_held_out_document_has_a_near_copy_in_training(tmp_path: Path, setting: str) -> None:
    result = make(tmp_path, planted(), near_duplicates=setting, validation_docs=60, test_docs=60)
    held = [set(near_duplicates.shingles(t)) for name in ("validation", "test") for t in texts(tmp_path, name)]
    pool = [set(near_duplicates.shingles(t)) for t in texts(tmp_path, "pool")]
    assert held
    assert pool
    assert max(near_duplicates.jaccard(a, b) for a in held for b in pool) < 0.8
    if setting == "remove":
        assert result.dropped["near_duplicate"] == 160
        assert sum(result.documents.values()) == 200
    else:
        assert sum(result.documents.values()) == 360
        assert result.flagged_docs == 240


@pytest.mark.parametrize(("threshold", "dropped"), [(0.8, 1), (0.95, 0)])
def test_how_alike_near_copies_are_is_set(tmp_path: Path, threshold: float, dropped: int) -> None:
    words = [f"w{n}" for n in range(100)]
    alike = [*words[:50], "other", *words[51:]]
    shingles = [set(near_duplicates.shingles(" ".join(text))) for text in (words, alike)]
    assert 0.8 < near_duplicates.jaccard(*shingles) < 0.95
    rows = [*world_documents(), {"id": "one", "text": " ".join(words)}, {"id": "other", "text": " ".join(alike)}]
    make(tmp_path, rows, near_duplicates="remove", near_duplicate_jaccard=threshold)
    found = {doc for name in ("validation", "test", "pool") for doc in texts(tmp_path, name)}
    assert len({row["text"] for row in rows[-2:]} - found) == dropped


def clusters(*sizes: int) -> list[dict[str, str]]:
    """Groups of near-copies of these sizes."""
    rng, rows = random.Random(7), []
    for group, size in enumerate(sizes):
        words = [f"w{rng.randrange(9_000)}" for _ in range(60)]
        rows += [{"id": f"{group}-{n}", "text": " ".join([*words, f"end{n}"])} for n in range(size)]
    return rows


def split(folder: Path, rows: list[dict[str, str]], validation: int, test: int) -> list[list[str]]:
    settings: dict[str, Any] = {"near_duplicates": "flag", "validation_docs": validation, "test_docs": test}
    make(folder, rows, 100, **settings)
    return [[d.id for d in Corpus.open(folder / "out").texts(name)] for name in ("validation", "test", "pool")]


@pytest.mark.parametrize("sizes", [(40, *[1] * 30), (20, 20, *[1] * 12), (6, 6, 6, 6, *[1] * 5), (2,) * 5 + (5,) * 3])
def test_held_out_sets_have_the_size_asked_for_whatever_the_groups(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    sets = split(tmp_path, clusters(*sizes), 5, 6)
    assert [len(s) for s in sets] == [5, 6, sum(sizes) - 11]
    groups = [{name.split("-")[0] for name in s} for s in sets]
    assert not groups[0] & groups[1]
    assert not groups[2] & (groups[0] | groups[1])


def test_no_groups_of_the_size_asked_for_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"corpus\.test_docs: no groups of near-duplicates, which stay together, have 7 "):
        split(tmp_path, clusters(*[2] * 20), 4, 7)


def test_large_groups_are_held_out_no_more_often_than_others() -> None:
    class Hashed(stage.Spool):
        """Documents of which only the hashes of their ids matter."""

        def __init__(self, ids: np.ndarray) -> None:
            self.ids, self.replay, self.first = ids, np.zeros(len(ids), bool), np.array([0, len(ids)])

        def __getitem__(self, index: Any) -> Any:
            return ""

    rng, first = np.random.default_rng(0), 0
    for _ in range(300):  # one group of 50 among 50 single documents
        spool = Hashed(rng.integers(0, 1 << 64, 100, np.uint64))
        group = np.concatenate((np.zeros(50, np.int64), np.arange(1, 51)))
        cfg = config.Corpus(source="x", validation_docs=48, test_docs=2)
        kept = np.concatenate(([True], np.zeros(49, bool), np.ones(50, bool)))  # one of each
        order, _ = stage.split(spool, kept, group, cfg)
        first += int(np.flatnonzero(order == 0)[0] < 25)
    assert 110 < first < 185  # a half, by chance; nearly always where the least hash decides


def test_without_grouping_near_copies_do_cross(tmp_path: Path) -> None:
    """The test above can fail: with near-duplicates ignored, copies land on both sides."""
    make(tmp_path, planted(), near_duplicates="off", validation_docs=60, test_docs=60)
    held = [set(near_duplicates.shingles(t)) for name in ("validation", "test") for t in texts(tmp_path, name)]
    pool = [set(near_duplicates.shingles(t)) for t in texts(tmp_path, "pool")]
    assert max(near_duplicates.jaccard(a, b) for a in held for b in pool) >= 0.8


def test_a_document_keeps_its_set_when_others_come_or_the_order_changes(tmp_path: Path) -> None:
    rows = world_documents()
    make(tmp_path / "a", rows)
    make(tmp_path / "b", rows[::-1])
    for name in ("validation", "test", "pool"):
        assert texts(tmp_path / "a", name) == texts(tmp_path / "b", name)


def test_d_pretrain_is_a_nested_head_of_the_pool(tmp_path: Path) -> None:
    small, large = make(tmp_path / "a", world_documents(), 1_000), make(tmp_path / "b", world_documents(), 3_000)
    pool = Tokens.open(Shards(tmp_path / "a" / "out" / "pool"))
    assert small.pretrain_tokens >= 1_000 > pool.bounds[small.pretrain_docs - 1]
    assert small.pretrain_docs < large.pretrain_docs
    first, second = texts(tmp_path / "a", "pool"), texts(tmp_path / "b", "pool")
    assert first[: small.pretrain_docs] == second[: small.pretrain_docs]


def test_the_tokenizer_sees_d_pretrain_alone(tmp_path: Path) -> None:
    result = make(tmp_path / "a", world_documents(), 1_500)
    assert 0.9 * result.pretrain_docs <= result.tokenizer_docs <= result.pretrain_docs
    kept = {d.id for d in itertools.islice(Corpus.open(tmp_path / "a" / "out").texts("pool"), result.pretrain_docs)}
    changed = [r if r["id"] in kept else {**r, "text": r["text"].upper()} for r in world_documents()]
    make(tmp_path / "b", changed, 1_500)
    same = [(tmp_path / x / "out" / "tokenizer" / "tokenizer.json").read_bytes() for x in "ab"]
    assert same[0] == same[1]


@pytest.mark.parametrize("unique_tokens", [1_500, "all"])
def test_the_tokenizer_reads_no_more_text_than_it_is_given(tmp_path: Path, unique_tokens: Any) -> None:
    result = make(tmp_path, world_documents(), unique_tokens, tokenizer_bytes=1_000)
    size = np.cumsum([len(text.encode()) for text in texts(tmp_path, "pool")])
    assert size[result.tokenizer_docs - 1] >= 1_000 > size[result.tokenizer_docs - 2]


def test_asking_for_more_text_than_there_is(tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"budget\.unique_tokens: 10,000,000 asked for, the corpus has [\d,]+ in the 320 doc"):
        make(tmp_path / "a", world_documents(), 10_000_000)
    with pytest.raises(BudgetError, match="25 documents are left after cleaning, and 40 are asked for"):
        make(tmp_path / "b", world_documents()[:25])


def test_killed_between_shards_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "whole", world_documents())

    def killed_at(number: int) -> Progress:
        told = iter(range(1, 99))

        def progress(*_: Any) -> None:
            if next(told) == number:
                raise Killed

        return progress

    for number in (3, 9, 14):
        with pytest.raises(Killed):
            make(tmp_path / "killed", world_documents(), progress=killed_at(number))
    make(tmp_path / "killed", world_documents())
    assert files(tmp_path / "killed" / "out") == files(tmp_path / "whole" / "out")


def marked(splits: list[Any]) -> list[dict[str, Any]]:
    return [{"id": f"m{i}", "text": f"document {i} says {i * 37} and {i * 91}", "split": s} for i, s in enumerate(splits)]


def split_config(path: Path) -> config.Corpus:
    return config.Corpus(source=str(path), split_field="split", near_duplicates="off", vocab_size=300, shard_docs=16)


def test_documents_go_where_their_mark_says_and_the_oracles_come_last(tmp_path: Path) -> None:
    splits = ["pretrain"] * 20 + ["oracle"] * 30 + ["test"] * 7 + ["validation"] * 5
    path = write_jsonl(tmp_path / "marked.jsonl", marked(splits))
    result = corpus(split_config(path), "all", tmp_path / "c")
    assert result.documents == {"validation": 5, "test": 7, "pool": 50}
    assert result.pretrain_docs == 20
    read = {
        name: [d.metadata["split"] for d in Corpus.open(tmp_path / "c").texts(name)] for name in ("validation", "test", "pool")
    }
    assert read == {"validation": ["validation"] * 5, "test": ["test"] * 7, "pool": ["pretrain"] * 20 + ["oracle"] * 30}
    assert result.tokenizer_docs <= 20  # the tokenizer sees D_pretrain alone
    few = corpus(split_config(path), 100, tmp_path / "few")
    assert few.pretrain_docs < 20
    with pytest.raises(BudgetError, match="100,000 asked for"):  # the oracle's text does not count
        corpus(split_config(path), 100_000, tmp_path / "many")


def test_marks_are_read_from_columns_as_from_lines(tmp_path: Path) -> None:
    rows = marked(["pretrain"] * 20 + ["test"] * 4 + ["validation"] * 4)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "marked.parquet")
    result = corpus(split_config(tmp_path / "marked.parquet"), "all", tmp_path / "c")
    assert result.documents == {"validation": 4, "test": 4, "pool": 20}
    assert {document.metadata["split"] for document in Corpus.open(tmp_path / "c").texts("test")} == {"test"}


def test_of_equal_documents_the_held_out_one_stays_then_d_pretrains(tmp_path: Path) -> None:
    rows = marked(["oracle"] * 20 + ["pretrain"] * 12 + ["test"] * 4 + ["validation"] * 4)
    for number in range(12):  # every document of D_pretrain is the oracle's too, and two are held out
        rows[20 + number]["text"] = rows[number]["text"]
    rows[32]["text"], rows[36]["text"] = rows[0]["text"], rows[1]["text"]
    result = corpus(split_config(write_jsonl(tmp_path / "m.jsonl", rows)), "all", tmp_path / "c")
    assert result.documents == {"validation": 4, "test": 4, "pool": 18}
    assert result.pretrain_docs == 10
    assert result.dropped["exact_duplicate"] == 14


def test_a_wrong_or_missing_mark_is_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", marked(["pretrain"] * 5 + ["test"] * 2 + ["validation"] * 2 + ["dev"]))
    with pytest.raises(DataError, match="document 'm9' has split 'dev'; validation, test, pretrain, oracle are known"):
        corpus(split_config(path), "all", tmp_path / "a")
    path = write_jsonl(tmp_path / "list.jsonl", marked(["pretrain"] * 5 + [["test"]]))
    with pytest.raises(DataError, match=r"document 'm5' has split \['test'\]; validation, test"):
        corpus(split_config(path), "all", tmp_path / "list")
    path = write_jsonl(tmp_path / "b.jsonl", marked(["pretrain"] * 5 + ["validation"] * 2))
    with pytest.raises(DataError, match=r"corpus\.split_field: no document is marked test"):
        corpus(split_config(path), "all", tmp_path / "b")


def test_all_takes_what_is_not_held_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "all.jsonl", marked([None] * 40))
    cfg = config.Corpus(source=str(path), vocab_size=300, validation_docs=5, test_docs=5, near_duplicates="off")
    assert corpus(cfg, "all", tmp_path / "c").pretrain_docs == 30


@pytest.mark.parametrize("near_duplicates", ["remove", "flag", "off"])
def test_text_to_replay_is_kept_apart_and_never_resembles_the_corpus(tmp_path: Path, near_duplicates: str) -> None:
    known = world_documents()
    near = known[5]["text"] + " And then."
    other = "Quite another thing, told at some length and by somebody else."
    rows = [{"id": known[0]["id"], "text": other}, {"id": "same", "text": known[3]["text"]}, {"id": "near", "text": near}]
    replay = write_jsonl(tmp_path / "replay.jsonl", [*rows, '{"id": 5'])
    result = make(tmp_path, known, replay=str(replay), near_duplicates=near_duplicates, max_quarantine=0.1)
    kept = texts(tmp_path, "replay")
    assert kept == [other] if near_duplicates != "off" else set(kept) == {other, near}
    assert result.documents["replay"] == len(kept)
    assert result.quarantined == 1
    assert result.records == sum(result.documents.values()) + result.quarantined + sum(result.dropped.values())
    assert Tokens.open(Shards(tmp_path / "out" / "replay")).num_tokens == result.tokens["replay"] > 0
    without = make(tmp_path / "without", known, near_duplicates=near_duplicates)
    for name in ("validation", "test", "pool"):
        assert texts(tmp_path, name) == texts(tmp_path / "without", name)
    assert without.pretrain_tokens == result.pretrain_tokens
    assert "replay" not in without.documents


def test_text_to_replay_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    copies = write_jsonl(tmp_path / "copies.jsonl", world_documents()[:3])
    with pytest.raises(DataError, match=r"corpus\.replay: .*copies\.jsonl: nothing is left of it beside the corpus"):
        make(tmp_path, world_documents(), replay=str(copies))


def test_text_to_replay_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"corpus\.replay: .*nowhere\.jsonl: no such file"):
        make(tmp_path, world_documents(), replay=str(tmp_path / "nowhere.jsonl"))


def test_canaries_lie_in_d_pretrain_alone_as_often_as_asked_and_change_nothing_else(tmp_path: Path) -> None:
    rows = world_documents()
    canaries = config.Canaries(count=2, copies=[1, 3], words=6, candidates=5)
    plain = make(tmp_path / "plain", rows)
    counts = make(tmp_path / "planted", rows, canaries=canaries)
    drawn = Corpus.open(tmp_path / "planted" / "out")
    records = json.loads((tmp_path / "planted" / "out" / "canaries.json").read_text())
    assert [record["copies"] for record in records] == [1, 1, 3, 3, 0, 0, 0, 0, 0]

    known = {record["text"] for record in records}
    pool = list(drawn.texts("pool"))
    pretrain = [document.text for document in pool[: counts.pretrain_docs]]
    for record in records:
        assert pretrain.count(record["text"]) == record["copies"]
    for name in ("validation", "test"):
        assert not known & set(texts(tmp_path / "planted", name))
        assert texts(tmp_path / "planted", name) == texts(tmp_path / "plain", name)
    others = [document.text for document in pool if document.text not in known]
    assert others == texts(tmp_path / "plain", "pool")
    assert counts.pretrain_docs == plain.pretrain_docs + 8
    assert counts.account.endswith("8 copies of canaries planted")
    assert len({document.id for document in pool}) == len(pool)
    # no two of three copies side by side, or all at one end, is not to be expected, but all over it
    places = [i for i, text in enumerate(pretrain) if text in known]
    assert places[-1] - places[0] > counts.pretrain_docs / 3

    same = ("tokenizer/tokenizer.json", "validation/000000/tokens.bin")
    for name in same:
        assert (tmp_path / "planted" / "out" / name).read_bytes() == (tmp_path / "plain" / "out" / name).read_bytes()
    assert not (tmp_path / "plain" / "out" / "canaries.json").exists()


@pytest.mark.parametrize("unique_tokens", [1_000, "all"])
def test_no_more_text_is_tokenized_at_once_than_memory_is_planned_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique_tokens: Any
) -> None:
    make(tmp_path / "whole", world_documents(), unique_tokens=unique_tokens)
    calls: list[int] = []
    documents = Tokenizer.documents

    def counted(self: Tokenizer, texts: Any) -> list[list[int]]:
        calls.append(sum(map(len, texts)))
        return documents(self, texts)

    monkeypatch.setattr(Tokenizer, "documents", counted)
    monkeypatch.setattr(stage, "TOKENIZED_AT_ONCE", 400)
    monkeypatch.setattr(stage, "WRITTEN_AT_ONCE", 1_000)
    make(tmp_path / "parts", world_documents(), unique_tokens=unique_tokens)
    assert max(calls) < 400 + max(len(row["text"]) for row in world_documents())
    for name in ("validation", "test", "pool"):
        assert texts(tmp_path / "parts", name) == texts(tmp_path / "whole", name)
    tokens = [{n: b for n, b in files(tmp_path / part / "out").items() if n.endswith(".bin")} for part in ("whole", "parts")]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("near_duplicates", ["remove", "flag"])
def test_marked_training_text_that_resembles_held_out_text_is_left_out(tmp_path: Path, near_duplicates: str) -> None:
    rows = [row | {"split": "pretrain"} for row in world_documents()]
    held_out = [
        {"id": f"t{i}", "text": rows[i]["text"] + " And then.", "split": ("test", "validation")[i % 2]} for i in range(8)
    ]
    twins = [rows[20] | {"id": "twin", "text": rows[20]["text"] + " Or so."}]
    path = write_jsonl(tmp_path / "m.jsonl", [*rows, *held_out, *twins])
    cfg = config.Corpus(source=str(path), split_field="split", near_duplicates=near_duplicates, vocab_size=300)  # type: ignore[arg-type]
    result = corpus(cfg, "all", tmp_path / "out")
    assert (result.documents["test"], result.documents["validation"]) == (4, 4)
    pool = set(texts(tmp_path, "pool"))
    assert not pool & {row["text"] for row in rows[:8]}
    both = {rows[20]["text"], twins[0]["text"]}  # two of training that resemble each other alone
    assert len(pool & both) == (2 if near_duplicates == "flag" else 1)
    assert result.records == sum(result.documents.values()) + sum(result.dropped.values())
