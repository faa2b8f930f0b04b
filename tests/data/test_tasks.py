# ruff: noqa: RUF001
import gzip
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from synthboot import config
from synthboot.data import tasks
from synthboot.data.documents import Document
from synthboot.errors import ConfigError, DataError
from tests.conftest import write_jsonl

CHOICE = {"query": "What is warm?", "choices": ["ice", "fire"], "gold": 1}


def asked(tmp_path: Path, rows: list[Any], **changes: Any) -> list[tasks.Item]:
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    return tasks.read(str(path), config.Evaluate(tasks=[str(path)], **changes))


def test_fields_decide_what_kind_of_question_a_line_is(tmp_path: Path) -> None:
    rows = [
        CHOICE,
        {"context_options": ["the cat", "the dog"], "continuation": "meows", "gold": 0},
        {"good": "They go.", "bad": "They goes."},
        {"context": "The capital of France is", "target": "Paris"},
        {"query": "Who?", "answers": ["Ann", "Anna"]},
    ]
    items = asked(tmp_path, rows)
    assert [i.kind for i in items] == ["choice", "context", "pair", "cloze", "open"]
    assert items[0].contexts == ("What is warm?",)
    assert items[0].continuations == (" ice", " fire")
    assert items[1].contexts == ("the cat", "the dog")
    assert items[2].contexts == ("",)
    assert items[3].continuations == (" Paris",)
    assert items[4].answers == ("Ann", "Anna")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "q", "choices": ["a"]}, 'line 1: no "gold" field'),
        ({"query": "q", "choices": ["a", "b"], "gold": 2}, 'line 1: "gold" is 2, and there are 2 choices'),
        ({"query": "q"}, "line 1: these fields make no question: query; needed are query, choices, gold; or"),
        ({"query": "q", "answers": []}, 'line 1: "answers" is empty'),
        ("not json", "line 1: not valid JSON"),
        ("[1]", "line 1: not a JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(DataError, match="own.jsonl " + message):
        asked(tmp_path, [row])


def test_a_file_is_refused_whole_and_the_bad_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'own.jsonl line 2: "good" is null, not text; 2 of 4 are no questions'):
        asked(tmp_path, [CHOICE, {"good": None, "bad": "b"}, CHOICE, {"good": "", "bad": "b"}], task_items=1)
    with pytest.raises(DataError, match=r"own.jsonl: holds no questions"):
        asked(tmp_path, [])


def test_a_byte_order_mark_and_odd_line_ends_are_no_part_of_a_question(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({**CHOICE, "query": "a\u2028b"}, ensure_ascii=False).encode() + b"\r\n")
    assert tasks.read(str(path), config.Evaluate())[0].contexts == ("a\u2028b",)
    for content in (gzip.compress(path.read_bytes())[:-9], b"\x1f\x8b" + b"\xff" * 40, b"no"):
        (tmp_path / "bad.jsonl.gz").write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            tasks.read(str(tmp_path / "bad.jsonl.gz"), config.Evaluate())
    for line in (b"[" * 100_000, b"1" * 5_000, b'{"a": "\xff"}', b'{"query": "' + b"x" * 40_000_000):
        path.write_bytes(line + b"\n")
        with pytest.raises(DataError, match=r"line 1: (not valid JSON|longer than)|is a JSON array"):
            tasks.read(str(path), config.Evaluate())


@pytest.mark.parametrize("shots", [2, 5, 10**6])
def test_too_few_worked_examples_are_an_error(tmp_path: Path, shots: int) -> None:
    own = str(write_jsonl(tmp_path / "own.jsonl", [CHOICE, CHOICE, {**CHOICE, "subject": "b"}]))
    with pytest.raises(DataError, match=rf"own.jsonl line 1: {shots} worked examples are asked for, and there are 1"):
        tasks.read(f"{own}@{shots}", config.Evaluate())


def test_an_unknown_task_is_an_error_that_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="blimpp: neither a file nor a known task; known are arc_challenge"):
        tasks.names(config.Evaluate(tasks=["blimpp"]))
    with pytest.raises(ConfigError, match=r"blimp: no blimp\.jsonl\.zst in evaluate\.task_folder"):
        tasks.files(config.Evaluate(tasks=["small"], task_folder=str(tmp_path)))


def test_lm_eval_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'synthboot\[eval\]'"):
        tasks.names(config.Evaluate(tasks=["lm-eval:piqa"]))


def test_groups_are_their_tasks() -> None:
    assert tasks.names(config.Evaluate(tasks=["small", "blimp", "world", "lm-eval:piqa"])) == [
        "blimp",
        "lambada",
        "sciq",
        "supported_wikidata_cloze",
        "world",
        "lm-eval:piqa",
    ]


def test_items_are_drawn_at_random_and_the_same_for_a_seed(tmp_path: Path) -> None:
    rows = [{"context": f"c{i}", "target": "t", "id": i} for i in range(50)]
    first = asked(tmp_path, rows, task_items=10)
    assert [i.id for i in first] == [i.id for i in asked(tmp_path, rows, task_items=10)]
    assert [i.id for i in first] != [str(i) for i in range(10)]
    assert len({i.id for i in first}) == 10


def test_worked_examples_stand_before_a_question_and_never_give_it_away(tmp_path: Path) -> None:
    rows = [{"query": f"question {i}?", "answers": [f"answer {i}"]} for i in range(6)]
    write_jsonl(tmp_path / "triviaqa_sm_sub.jsonl", rows)
    cfg = config.Evaluate(tasks=["triviaqa"], task_folder=str(tmp_path))
    for number, item in enumerate(tasks.read("triviaqa", cfg)):
        example, question = item.contexts[0].split("\n\n")
        assert question == f"Question: question {number}?\nAnswer:"
        assert f"answer {number}" not in example
        assert example.startswith("Question: question ")
        assert "\nAnswer: answer " in example


def test_worked_examples_are_asked_for_after_an_at_sign(tmp_path: Path) -> None:
    rows = [{"query": f"question {i}?", "choices": ["yes", "no"], "gold": i % 2} for i in range(8)]
    own = str(write_jsonl(tmp_path / "mine@3.jsonl", rows))  # an @ in a file's name is the name's
    write_jsonl(tmp_path / "arc_easy_test.jsonl", rows[:2])
    write_jsonl(tmp_path / "arc_easy_train.jsonl", rows[2:])
    cfg = config.Evaluate(tasks=[own, f"{own}@2", "arc_easy@5"], task_folder=str(tmp_path))
    assert tasks.names(cfg) == cfg.tasks
    assert [p.name for p in tasks.files(cfg)] == ["mine@3.jsonl", "arc_easy_test.jsonl", "arc_easy_train.jsonl"]
    by_name = {name: [item.contexts[0].count("question") for item in tasks.read(name, cfg)] for name in cfg.tasks}
    assert by_name == {own: [1] * 8, f"{own}@2": [3] * 8, "arc_easy@5": [6] * 2}


@pytest.mark.parametrize("name", ["small@5", "world@1", "lm-eval:arc_easy@5"])
def test_worked_examples_for_what_takes_none_are_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: worked examples go with single tasks of ours; drop @"):
        tasks.names(config.Evaluate(tasks=[name]))


def test_examples_of_a_subject_come_first_and_choices_become_letters(tmp_path: Path) -> None:
    def row(subject: str, number: int) -> dict[str, Any]:
        return {"subject": subject, "query": f"{subject} {number}", "choices": ["x", "y"], "gold": number % 2}

    write_jsonl(tmp_path / "mmlu_test.jsonl", [row("art", 100)])
    write_jsonl(tmp_path / "mmlu_dev.jsonl", [row("art", i) for i in range(7)] + [row("law", i) for i in range(7)])
    (item,) = tasks.read("mmlu", config.Evaluate(tasks=["mmlu"], task_folder=str(tmp_path)))
    head, *examples, question = item.contexts[0].split("\n\n")
    assert head == "The following are multiple choice questions (with answers) about art."
    assert examples == [f"art {i}\nA. x\nB. y\nAnswer: {'AB'[i % 2]}" for i in range(5)]
    assert question == "art 100\nA. x\nB. y\nAnswer:"
    assert item.continuations == (" A", " B")


def test_items_that_the_training_text_holds_are_found(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    rows = [
        {"context": long, "target": "end"},
        {"context": long.replace("seven", "SEVEN,").replace("one", "uno"), "target": "end"},
        {"context": "other " + long.replace(" eight", " ate"), "target": "end"},
        {"context": "a b c d e f g h", "target": "i"},  # nine words: looked for whole
        {"context": "a b c d e f g x", "target": "i"},
        {"context": "too short", "target": "to tell"},
    ]
    items = asked(tmp_path, rows)
    texts = [f"And then: {long}; the end.", "so A b, c d e f g h i j", "too short to tell"]
    seen, short = tasks.seen(items, texts)
    assert seen.tolist() == [True, True, False, True, False, False]
    assert short.tolist() == [False] * 5 + [True]


@pytest.mark.slow
def test_known_tasks_with_files_on_this_machine_can_be_read() -> None:
    folder = Path(__file__).parents[3] / "shared" / "data" / "eval"
    if not folder.exists():
        pytest.skip("shared/data/eval is not here")
    cfg = config.Evaluate(tasks=["paper", "small"], task_folder=str(folder), task_items=20)
    for name in tasks.names(cfg):
        items = tasks.read(name, cfg)
        assert len(items) == 20, name
        assert json.dumps([i.contexts for i in items])
        assert all(0 <= i.gold < max(1, len(i.continuations)) for i in items)


def test_a_short_question_is_found_without_its_answer_and_by_symbols_where_it_has_few_words(tmp_path: Path) -> None:
    rows = [
        {"query": "中国的首都是哪座城市？", "choices": ["上海", "北京"], "gold": 1},
        {"query": "日本で一番高い山は何ですか", "answers": ["富士山"]},
        {"query": "대한민국의 수도는 어디입니까?", "answers": ["서울"]},
        {"query": "Türkiye'nin başkenti neresidir?", "answers": ["Ankara"]},
        {"query": "∫ x² dx = x³ / 3 + C", "answers": ["C"]},
        {"query": "中国的首都在哪里", "answers": ["北京"]},  # another question
    ]
    items = asked(tmp_path, rows)
    texts = ["问：中国的首都是哪座城市？答：北京。", "Q: 日本で一番高い山は何ですか。", "물음 대한민국의 수도는 어디입니까?"]
    seen, short = tasks.seen(items, [*texts, "TÜRKİYE’nin başkenti neresidir".replace("İ", "i"), "so ∫ x² dx = x³/3 + C, and"])
    assert seen.tolist() == [True] * 5 + [False]
    assert not short.any()


def test_a_run_that_chinese_questions_share_by_chance_is_longer_than_a_name(tmp_path: Path) -> None:
    rows = [{"query": "中华人民共和国全国人民代表大会的常设机关是什么，它由多少人组成", "answers": ["常务委员会"]}]
    assert not tasks.seen(asked(tmp_path, rows), ["他在中华人民共和国全国人民代表大会上讲话"])[0].any()


def test_an_answer_is_told_where_one_of_its_documents_is_there_under_its_title(tmp_path: Path) -> None:
    def cloze(*support: dict[str, Any]) -> dict[str, Any]:
        return {"context": "The dam is in", "target": "Turkey", "support": list(support)}

    rows = [
        cloze({"id": "7", "title": "Dam"}),
        cloze({"id": "9"}, {"id": 7, "title": "Dam"}),  # one of several is enough
        cloze({"id": "7"}),
        cloze({"id": "7", "title": "Dama"}),  # the document of another corpus
        cloze({"id": "8", "title": "Any"}),  # this document has no title
        cloze({"id": "9", "title": "Dam"}),
        cloze(),
    ]
    texts = [Document("7", "A dam in Turkey.", {"title": "Dam"}), Document("8", "Another.")]
    told = tasks.told(asked(tmp_path, rows), texts)
    assert told.tolist() == [True, True, True, False, True, False, False]


def test_text_that_holds_no_question_leaves_nothing_behind(tmp_path: Path) -> None:
    items = asked(tmp_path, [{"query": f"What is the height of tower {i} in yards?", "answers": ["9"]} for i in range(9)])
    texts = [f"plain text number {i} of words that nobody asks for" for i in range(4_000)]

    def peak(count: int) -> int:
        tracemalloc.start()
        tasks.seen(items, texts[:count])
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(4_000) - peak(400) < 100_000
