"""Questions from JSON lines: what `evaluate.tasks` names, as items that a model can be scored on.

Fields of a line decide what kind of question it is: `query, choices, gold` (multiple choice), `context_options, continuation,
gold` (one continuation of several contexts, as winogrande has), `good, bad` (minimal pairs), `context, target` (last-word
cloze), `query, answers` (open, by exact match). Known tasks name a file in `task_folder`, a prompt and how many worked
examples stand before a question; `NAME@5` puts five there. Prompts follow lm-eval's.

Source: arXiv:2509.15248 asks ARC, SciQ, WinoGrande (0-shot), TriviaQA, WebQuestions (1-shot), and takes perplexities on
LAMBADA and on 5-shot MMLU answers. Deviation: SciQ without its support text, since the file at hand has none for most items.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from synthboot import config
from synthboot.data import documents, ngrams, words
from synthboot.errors import ConfigError, DataError

WORLD, LM_EVAL = "world", "lm-eval:"
SHARED_WORDS = 13
LEAST_WORDS, LEAST_LETTERS = 8, 24
_LETTERS = "ABCDEFGHIJ"
_SUFFIXES = (".jsonl.zst", ".jsonl.gz", ".jsonl")
_FIELDS = {
    "choice": ("query", "choices", "gold"), "context": ("context_options", "continuation", "gold"), "pair": ("good", "bad"),
    "cloze": ("context", "target"), "open": ("query", "answers"),
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A task by name: its file, the prompt of a question, and the worked examples before it with their own file."""

    file: str
    prompt: str = "Question: {query}\nAnswer:"
    shots: int = 0
    shots_file: str | None = None
    letters: bool = False


KNOWN = {
    "arc_challenge": Known("arc_challenge_test", shots_file="arc_challenge_train"),
    "arc_easy": Known("arc_easy_test", shots_file="arc_easy_train"),
    "sciq": Known("sciq_val"),
    "piqa": Known("piqa_val"),
    "hellaswag": Known("hellaswag_1000", "{query}"),
    "winogrande": Known("winogrande_val"),
    "triviaqa": Known("triviaqa_sm_sub", shots=1),
    "webqs": Known("webquestions_test", shots=1, shots_file="webquestions_trainmodel"),
    "mmlu": Known("mmlu_test", "{query}", 5, "mmlu_dev", letters=True),
    "lambada": Known("lambada_openai"),
    "blimp": Known("blimp"),
    "supported_wikidata_cloze": Known("supported_wikidata_cloze"),
}
GROUPS = {
    "paper": ("arc_challenge", "arc_easy", "sciq", "winogrande", "triviaqa", "webqs", "lambada", "mmlu"),
    "small": ("blimp", "lambada", "sciq", "supported_wikidata_cloze"),
}


@dataclass(frozen=True)
class Item:
    """One question: a model chooses among (context, continuation) or, for an open one, goes on from the only context.
    `gold` counts the right continuation, `group` is what the report groups items by, and `bare` is the question without
    prompt and worked examples, and its right answer where that stands after it."""

    id: str
    kind: str
    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int
    answers: tuple[str, ...] = ()
    group: str = ""
    bare: tuple[str, ...] = ("",)


def names(cfg: config.Evaluate) -> list[str]:
    """The tasks asked for, groups resolved. Raises ConfigError for one that is neither known nor a file."""
    found = [task for name in cfg.tasks for task in GROUPS.get(name, (name,))]
    for name in found:
        stem, shots = _split(name)
        if shots is not None and (stem in GROUPS or stem == WORLD or stem.startswith(LM_EVAL)):
            raise ConfigError(f"evaluate.tasks: {name}: worked examples go with single tasks of ours; drop @{shots}")
        if stem not in KNOWN and stem != WORLD and not stem.startswith(LM_EVAL) and not Path(stem).is_file():
            known = ", ".join([*KNOWN, *GROUPS, WORLD, f"{LM_EVAL}NAME"])
            raise ConfigError(f"evaluate.tasks: {name}: neither a file nor a known task; known are {known}")
    if any(name.startswith(LM_EVAL) for name in found) and find_spec("lm_eval") is None:
        raise ConfigError("evaluate.tasks: lm-eval is not installed: pip install 'synthboot[eval]'")
    return list(dict.fromkeys(found))


def files(cfg: config.Evaluate) -> list[Path]:
    """Every file that the tasks read. Raises ConfigError where one is missing."""
    found: list[Path] = []
    for name in names(cfg):
        if name != WORLD and not name.startswith(LM_EVAL):
            known = _known(name)
            found.append(_place(cfg, name))
            if known.shots and known.shots_file:
                found.append(_file(cfg, name, known.shots_file))
    return list(dict.fromkeys(found))


def read(name: str, cfg: config.Evaluate, seed: int = 0) -> list[Item]:
    """The items of a task that is a file or has one: at most `task_items`, drawn at random, in the file's order."""
    known = _known(name)
    rows = list(_rows(_place(cfg, name)))
    examples: Sequence[tuple[dict[str, Any], str]] = rows
    if known.shots and known.shots_file:
        examples = list(_rows(_file(cfg, name, known.shots_file)))
    rng = np.random.default_rng([seed, 9])
    chosen = sorted(rng.permutation(len(rows))[: cfg.task_items].tolist())
    items = []
    for number in chosen:
        row, where = rows[number]
        item = _item(row, where, known, f"{number}")
        if known.shots:
            worked = _shots(examples, number if examples is rows else -1, row, known, rng)
            item = replace(item, contexts=tuple(worked + context for context in item.contexts))
        items.append(item)
    return items


def of(rows: Sequence[dict[str, Any]], where: str) -> list[Item]:
    """Items of rows that are at hand, such as a world's questions."""
    return [_item(row, f"{where} {i}", Known(where, "{query}"), str(i)) for i, row in enumerate(rows)]


def _split(name: str) -> tuple[str, int | None]:
    """A task's name without the worked examples asked for after an @, and their number."""
    stem, at, shots = name.rpartition("@")
    return (stem, int(shots)) if at and shots.isdecimal() and not Path(name).is_file() else (name, None)


def _known(name: str) -> Known:
    stem, shots = _split(name)
    known = KNOWN.get(stem, Known(stem, "{query}"))
    return known if shots is None else replace(known, shots=shots)


def _place(cfg: config.Evaluate, name: str) -> Path:
    known = _known(name)
    return _file(cfg, name, known.file) if _split(name)[0] in KNOWN else Path(known.file)


def _shots(
    examples: Sequence[tuple[dict[str, Any], str]], itself: int, row: dict[str, Any], known: Known, rng: np.random.Generator
) -> str:
    """Worked examples, of the same subject where there are subjects: the first ones, or drawn at random from the task's own
    items where it has no others."""
    same = [i for i, (e, _) in enumerate(examples) if e.get("subject") == row.get("subject") and i != itself]
    picked = same[: known.shots] if itself < 0 else rng.permutation(same)[: known.shots]
    text = ""
    if known.letters:
        subject = str(row.get("subject", "many things")).replace("_", " ")
        text = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    for number in picked:
        shown = _item(*examples[int(number)], known, "")
        said = f" {shown.answers[0]}" if shown.answers else shown.continuations[shown.gold]
        text += shown.contexts[0] + said + "\n\n"
    return text


def _item(row: dict[str, Any], where: str, known: Known, number: str) -> Item:
    kind = next((k for k, fields in _FIELDS.items() if fields[0] in row and fields[1] in row), None)
    if kind is None:
        wanted = "; or ".join(", ".join(fields) for fields in _FIELDS.values())
        raise DataError(f"{where}: these fields make no question: {', '.join(row)}; needed are {wanted}")
    missing = [f for f in _FIELDS[kind] if f not in row]
    if missing:
        raise DataError(f'{where}: no "{missing[0]}" field')
    identifier, group = str(row.get("id", number)), str(row.get("group", row.get("uid", "")))
    gold, answers, contexts, bare = 0, tuple[str, ...](), tuple[str, ...](), tuple[str, ...]()
    if kind == "pair":
        contexts, said, bare = ("",), [row["good"], row["bad"]], (row["good"],)
    elif kind == "cloze":
        contexts, said, bare = (row["context"],), [" " + row["target"]], (f"{row['context']} {row['target']}",)
    elif kind == "open":
        if not row["answers"]:
            raise DataError(f'{where}: "answers" is empty')
        contexts, said, answers = (known.prompt.format(query=row["query"]),), [], tuple(map(str, row["answers"]))
        bare = (row["query"], answers[0])
    else:
        options, gold = [str(o) for o in (row["context_options"] if kind == "context" else row["choices"])], row["gold"]
        if not isinstance(gold, int) or not 0 <= gold < len(options):
            raise DataError(f'{where}: "gold" is {gold!r}, and there are {len(options)} choices')
        if kind == "context":
            contexts, said = tuple(options), [" " + row["continuation"]] * len(options)
            bare = (f"{options[gold]} {row['continuation']}",)
        else:
            prompt, bare = known.prompt.format(query=row["query"]), (row["query"], options[gold])
            if known.letters:
                marks = _LETTERS[: len(options)]
                prompt = "\n".join([prompt, *(f"{m}. {o}" for m, o in zip(marks, options, strict=True)), "Answer:"])
                options = list(marks)
            contexts, said = (prompt,), [" " + option for option in options]
    return Item(identifier, kind, contexts, tuple(said), gold, answers, group, bare)


def seen(
    items: Sequence[Item], texts: Iterable[str], n: int = SHARED_WORDS
) -> tuple[Bool[np.ndarray, " item"], Bool[np.ndarray, " item"]]:
    """Which items share a run of `n` words with a text; and which are too short to tell.

    A word is what `data/words.py` calls one. Letters of scripts without spaces are less than a word, and a run has as many
    more of them. An item with fewer is looked for whole, its question without the answer where that is enough: at
    least `LEAST_WORDS` words, or words of `LEAST_LETTERS` letters in all. Symbols count where there are too few words without.

    Source: 13-gram decontamination, arXiv:2005.14165 (appendix C).
    """
    numbers: dict[str, int] = {}

    def ids(found: Sequence[str]) -> np.ndarray:
        return np.array([numbers.setdefault(w, len(numbers)) for w in found], np.int64)

    found = np.zeros(len(items), bool)
    wanted: dict[tuple[bool, int], dict[int, np.ndarray]] = {}
    for number, item in enumerate(items):
        looked_for = _needle(item, n)
        if looked_for is not None:
            symbols, size, run = looked_for
            wanted.setdefault((symbols, size), {})[number] = ngrams.hashes(ids(run), size)
    hashed = {key: np.unique(np.concatenate(list(group.values()))) for key, group in wanted.items()}
    met: dict[tuple[bool, int], list[np.ndarray]] = {key: [] for key in wanted}
    for text in texts:
        for symbols in {symbols for symbols, _ in wanted}:
            cut = ids(words.words(text, symbols))
            for key in (key for key in wanted if key[0] == symbols and key[1] <= len(cut)):
                here = ngrams.hashes(cut, key[1])
                met[key].append(here[ngrams.contains(hashed[key], here)])
    for key, group in wanted.items():
        shared = np.unique(np.concatenate([np.empty(0, np.uint64), *met[key]]))
        for number, runs in group.items():
            found[number] = ngrams.contains(shared, runs).any()
    told = {number for group in wanted.values() for number in group}
    return found, np.array([number not in told for number in range(len(items))], bool)


def _needle(item: Item, n: int) -> tuple[bool, int, list[str]] | None:
    """What of an item to look for: whether symbols count, how many words make a run, and the words. None if it is too short."""
    question, whole = item.bare[0], " ".join(item.bare)
    for symbols in (False, True):
        run = words.words(whole, symbols)
        size = round(n / words.weight(run))
        if len(run) > size:
            return symbols, size, run
        for part in (words.words(question, symbols), run):
            if len(part) >= LEAST_WORDS or sum(map(len, part)) >= LEAST_LETTERS:
                return symbols, len(part), part
    return None


def _file(cfg: config.Evaluate, task: str, stem: str) -> Path:
    for suffix in _SUFFIXES:
        path = Path(cfg.task_folder) / (stem + suffix)
        if path.exists():
            return path
    raise ConfigError(f"evaluate.tasks: {task}: no {stem}{_SUFFIXES[0]} in evaluate.task_folder ({cfg.task_folder})")


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(fields, where) of every line."""
    for record in documents.lines(path):
        where = f"{path} line {record.line}"
        try:
            row = json.loads(record.content)
        except (ValueError, TypeError):
            raise DataError(f"{where}: not valid JSON") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object")
        yield row, where
