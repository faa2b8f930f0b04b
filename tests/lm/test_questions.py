"""Our answers beside those of lm-eval, and beside sums done by hand."""

import json
import math
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthboot import config
from synthboot.data import tasks
from synthboot.data import tokenizer as tokenizers
from synthboot.data.items import Item
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import ConfigError
from synthboot.lm import model as models
from synthboot.lm import questions
from tests.conftest import write_jsonl
from tests.lm.conftest import small_model

WORDS = (
    "red",
    "green",
    "blue",
    "cold",
    "warm",
    "small",
    "round",
    "old",
    "new",
    "the",
    "a",
    "cat",
    "dog",
    "house",
    "river",
    "stone",
    "says",
    "sees",
    "makes",
    "finds",
)
WINDOW = 64
ITEMS = {"choice": 50, "pair": 50, "cloze": 50, "context": 50, "open": 20}  # lm-eval generates a token at a time
SEAMS = [("the cat ", "sees"), ("the cat", " sees"), ("the cat", "sees")]


def sentence(rng: random.Random, low: int = 2, high: int = 9) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(low, high)))


def rows(kind: str) -> list[dict[str, Any]]:
    rng = random.Random(kind)
    found: list[dict[str, Any]] = []
    for number in range(ITEMS[kind]):
        long = sentence(rng, 3, 90 if number % 10 == 0 else 12)  # some do not fit the window
        if kind == "choice":
            row: dict[str, Any] = {"query": long, "choices": [sentence(rng, 1, 7) for _ in range(4)], "gold": rng.randrange(4)}
        elif kind == "pair":
            row = {"good": sentence(rng), "bad": sentence(rng)}
        elif kind == "cloze":
            row = {"context": long, "target": rng.choice(WORDS)}
        elif kind == "context":
            row = {"context_options": [long, sentence(rng)], "continuation": sentence(rng), "gold": rng.randrange(2)}
        else:
            row = {"query": sentence(rng, 3, 10), "answers": [sentence(rng, 1, 3), rng.choice(WORDS)]}
        found.append({"id": str(number), **row})
    return found


# What each kind is in lm-eval's own words.
HARNESS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
    },
    "pair": {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_choice": "{{[good, bad]}}",
        "doc_to_target": 0,
        "target_delimiter": "",
    },
    "cloze": {"output_type": "loglikelihood", "doc_to_text": "{{context}}", "doc_to_target": "{{' ' + target}}"},
    "open": {
        "output_type": "generate_until",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{answers}}",
        "generation_kwargs": {"until": ["\n", ".", ","], "do_sample": False, "max_gen_toks": questions.ANSWER_TOKENS},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "ignore_case": True, "ignore_punctuation": True}],
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Tokenizer]:
    """A tiny random model with a tokenizer that knows the words, in a Hugging Face folder."""
    rng = random.Random(0)
    tokenizer = tokenizers.train(iter([sentence(rng, 5, 30) for _ in range(200)]), 330)
    model = small_model(vocab_size=330)
    folder = tmp_path_factory.mktemp("model") / "m"
    models.save(model, folder, tokenizer)
    return folder, model, tokenizer


@pytest.fixture(scope="module")
def both(
    saved: tuple[Path, Any, Tokenizer], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[list[questions.Answer], np.ndarray]]:
    """By kind of question: our answers and lm-eval's, to the same file."""
    pytest.importorskip("lm_eval")
    yaml = pytest.importorskip("yaml")
    folder, model, tokenizer = saved
    place = tmp_path_factory.mktemp("tasks")
    ours = {}
    for kind, words in HARNESS.items():
        path = write_jsonl(place / f"{kind}.jsonl", made_right(kind, rows(kind), model, tokenizer))
        names = {"choice": ("acc", "acc_norm"), "pair": ("acc", "acc_norm"), "cloze": ("perplexity", "acc")}.get(kind, ())
        metrics = {"metric_list": [{"metric": name} for name in names]} if names else {}
        task = {
            "task": f"own_{kind}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            "num_fewshot": 0,
            **metrics,
            **words,
        }
        (place / f"{kind}.yaml").write_text(yaml.safe_dump(task))
        ours[kind] = questions.ask(model, tokenizer, tasks.read(str(path), config.Evaluate(tasks=[str(path)])), WINDOW)
    ours["shots"] = with_examples(model, tokenizer, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(place / "cache"))
        theirs = questions.harness(folder, [f"own_{kind}" for kind in ours], str(place), "cpu")
    return {kind: (answers, theirs[f"own_{kind}"]) for kind, answers in ours.items()}


def with_examples(model: Any, tokenizer: Tokenizer, place: Path) -> list[questions.Answer]:
    """Our answers after two worked examples; what lm-eval needs for its own is written to `place`."""
    yaml = pytest.importorskip("yaml")
    some = [row | {"query": " ".join(row["query"].split()[:6])} for row in rows("choice")]
    parts = {"train": some[:9], "test": some[9:]}
    files = {name: str(write_jsonl(place / f"own_{name}.jsonl", part)) for name, part in parts.items()}
    task = {
        "task": "own_shots",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "num_fewshot": 2,
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm")],
        **HARNESS["choice"],
    }
    (place / "own_shots.yaml").write_text(yaml.safe_dump(task))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, "own", tasks.Task("own_test", "{query}", shots_file="own_train"))
        asked = {shots: tasks.read(f"own@{shots}", config.Evaluate(task_folder=str(place))) for shots in (0, 2)}
    found, none = (questions.ask(model, tokenizer, asked[shots], WINDOW) for shots in (2, 0))
    assert [a.acc for a in found] != [a.acc for a in none]  # the examples made a difference
    return found


def made_right(kind: str, some: list[dict[str, Any]], model: Any, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The rows, some with what the model would say: a random model is never right by chance on an open question."""
    if kind not in ("cloze", "open"):
        return some
    said = questions.greedy_answers(model, tokenizer, [r.get("query", r.get("context")) for r in some], WINDOW)
    for number, row in enumerate(some):
        words = said[number].split()
        if kind == "open" and number % 3 == 0 and words:
            row["answers"] = [said[number].upper() + "!"]
        elif kind == "cloze" and words and said[number].startswith(" "):
            row["target"] = words[0][:8]
    return some


@pytest.mark.parametrize("kind", [*HARNESS, "shots"])
def test_we_agree_with_lm_eval_on_every_item(kind: str, both: dict[str, tuple[list[questions.Answer], np.ndarray]]) -> None:
    ours, theirs = both[kind]
    asked = ITEMS["choice"] - 9 if kind == "shots" else ITEMS[kind]  # nine are the worked examples
    assert len(ours) == len(theirs) == asked
    assert [float(a.acc) for a in ours] == theirs[:, 0].tolist()
    if kind in ("choice", "pair", "shots"):
        assert [float(a.acc_norm) for a in ours] == theirs[:, 1].tolist()
    assert 0 < sum(a.acc for a in ours) < asked  # a figure that could have come out otherwise


def test_a_choice_is_the_sum_of_its_tokens(saved: tuple[Path, Any, Tokenizer]) -> None:
    _, model, tokenizer = saved
    row = {"query": "the cat sees", "choices": ["a dog", "the old river stone"], "gold": 1}
    (item,) = tasks.of([row], "here")
    (answer,) = questions.ask(model, tokenizer, [item], WINDOW)
    nll = []
    for choice in row["choices"]:
        context, both = tokenizer.encode([row["query"], row["query"] + " " + choice])
        logits = model(torch.tensor([both])).logits[0].log_softmax(-1)
        nll.append(-sum(float(logits[i - 1, both[i]].detach()) for i in range(len(context), len(both))))
    assert answer.nll == pytest.approx(nll[1], rel=1e-5)
    assert answer.acc == (nll[1] < nll[0])
    assert answer.acc_norm == (nll[1] / len(row["choices"][1]) < nll[0] / len(row["choices"][0]))
    assert answer.choice_nll == pytest.approx(math.log(1 + math.exp(nll[1] - nll[0])), rel=1e-4)


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(saved: tuple[Path, Any, Tokenizer]) -> None:
    _, model, tokenizer = saved
    items = [Item("x", "cloze", (context,), (continuation,), 0) for context, continuation in SEAMS]
    one, two, other = questions.ask(model, tokenizer, items, WINDOW)
    assert one == two
    assert one.nll != pytest.approx(other.nll)


def test_what_is_too_long_loses_its_beginning(saved: tuple[Path, Any, Tokenizer]) -> None:
    _, model, tokenizer = saved
    (answer,) = questions.ask(model, tokenizer, [Item("x", "cloze", ("cat " * 200,), ("dog",), 0)], 16)
    (whole,) = tokenizer.encode(["cat " * 200 + "dog"])
    ids = whole[-17:]
    length = len(whole) - len(tokenizer.encode([("cat " * 200).rstrip()])[0])  # of the continuation
    logits = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    nll = -sum(float(logits[i - 1, ids[i]].detach()) for i in range(17 - length, 17))
    assert answer.nll == pytest.approx(nll, rel=1e-5)


def test_an_open_question_fits_a_window_that_is_shorter_than_an_answer(
    saved: tuple[Path, Any, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model, tokenizer = saved
    asked: list[Any] = []

    class Listening:
        def sample(self, requests: Any) -> list[Any]:
            asked.extend(requests)
            return []

    monkeypatch.setattr(questions, "sampler", lambda *_, **__: Listening())
    question = "cat " * 200
    ids = tuple(tokenizer.encode([question])[0])
    for window in (8, 32, 100):
        questions.greedy_answers(model, tokenizer, [question], window)
        request = asked.pop()
        assert len(request.prompt) + request.max_tokens == window
        assert request.prompt == ids[-len(request.prompt) :]
        assert request.max_tokens == min(32, window // 2)


def test_open_answers_are_compared_without_case_and_punctuation(saved: tuple[Path, Any, Tokenizer]) -> None:
    _, model, tokenizer = saved
    asked = [sentence(random.Random(n)) for n in range(20)]
    said = questions.greedy_answers(model, tokenizer, asked, WINDOW)
    assert not any(stop in text for text in said for stop in "\n.,")
    question, text = next((q, t) for q, t in zip(asked, said, strict=True) if t.split())
    answers = [f" {text.upper()}!? ", f"{text} too"]
    items = [Item("x", "open", (question,), (), 0, answers=(answer,)) for answer in answers]
    assert [answer.acc for answer in questions.ask(model, tokenizer, items, WINDOW)] == [True, False]


def tasks_of(folder: Path, **by_file: str) -> str:
    folder.mkdir()
    for name, described in by_file.items():
        (folder / f"{name}.yaml").write_text(described)
    return str(folder)


def test_tasks_of_a_folder_and_of_lm_eval_are_known_and_others_are_an_error(
    saved: tuple[Path, Any, Tokenizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    theirs = tasks_of(tmp_path / "theirs", a="task: of_theirs\ntag: several\n")
    ours = tasks_of(tmp_path / "ours", b="task: of_ours\n", c="group: both\ntask: [of_ours, of_theirs]\n")
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", f"{theirs}/manager.py")  # in place of its fourteen thousand
    for asked in (["of_ours"], ["of_theirs"], ["of_theirs", "of_ours"], ["several"], ["both"]):
        known = questions.known_to_harness(asked, ours).all_tasks
        assert set(asked) <= set(known)
        assert ("of_theirs" in known) == (asked != ["of_ours"])  # what a group names is there with it
    with pytest.raises(ConfigError, match="lm-eval knows no task 'no_such_task'"):
        questions.harness(saved[0], ["of_ours", "no_such_task"], ours, "cpu")


@pytest.mark.slow
def test_lm_eval_s_own_tasks_are_known(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    assert "arc_easy" in questions.known_to_harness(["arc_easy", "mmlu"], str(tmp_path)).all_tasks


def test_chance_is_chance() -> None:
    """A model that knows nothing answers a quarter of four-way questions."""
    rng = random.Random(1)
    tokenizer = tokenizers.train(iter([string.ascii_lowercase] * 5), 280)
    some = [
        {"query": sentence(rng), "choices": [sentence(rng, 2, 3) for _ in range(4)], "gold": rng.randrange(4)}
        for _ in range(400)
    ]
    answers = questions.ask(small_model(), tokenizer, tasks.of(some, "here"), WINDOW)
    share = np.mean([a.acc for a in answers])
    assert abs(share - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 400)
    assert json.dumps([a.nll for a in answers])
