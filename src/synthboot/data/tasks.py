"""Questions from JSON lines: what `evaluate.tasks` names, as items that a model can be scored on.

Fields of a line (`items.py`) decide what kind of question it is: `query, choices, gold` (multiple choice),
`context_options, continuation, gold` (one continuation of several contexts, as winogrande has), `good, bad` (minimal pairs),
`context, target` (last-word cloze), `query, answers` (open, by exact match). Known tasks name a file in `task_folder`, a
prompt and how many worked examples stand before a question; `NAME@5` puts five there. Prompts follow lm-eval's.

Source: arXiv:2509.15248 asks ARC, SciQ, WinoGrande (0-shot), TriviaQA, WebQuestions (1-shot), and takes perplexities on
LAMBADA and on 5-shot MMLU answers. Deviation: SciQ without its support text, since the file at hand has none for most items.
"""

from __future__ import annotations

import difflib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from synthboot import config
from synthboot.data import documents, items, ngrams, words
from synthboot.data.items import Item
from synthboot.errors import ConfigError, DataError

WORLD, LM_EVAL = "world", "lm-eval:"
SHARED_WORDS = 13
LEAST_WORDS, LEAST_LETTERS = 8, 24
_SUFFIXES = (".jsonl.zst", ".jsonl.gz", ".jsonl")


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
    "paper": (
        "arc_challenge",
        "arc_easy",
        "sciq",
        "winogrande",
        "triviaqa",
        "webqs",
        "lambada",
        "mmlu",
    ),
    "small": ("blimp", "lambada", "sciq", "supported_wikidata_cloze"),
}


def names(cfg: config.Evaluate) -> list[str]:
    """The tasks asked for, groups resolved. Raises ConfigError for one that is neither known nor a file."""
    found = [task for name in cfg.tasks for task in GROUPS.get(name, (name,))]
    for name in found:
        stem, shots = _split(name)
        if shots is not None and (stem in GROUPS or stem == WORLD or stem.startswith(LM_EVAL)):
            raise ConfigError(
                f"evaluate.tasks: {name}: worked examples go with single tasks of ours; drop @{shots}"
            )
        if (
            stem not in KNOWN
            and stem != WORLD
            and not stem.startswith(LM_EVAL)
            and not Path(stem).is_file()
        ):
            known = [*KNOWN, *GROUPS, WORLD, f"{LM_EVAL}NAME"]
            near = "".join(
                f"; did you mean {n}?" for n in difflib.get_close_matches(stem, known, n=1)
            )
            raise ConfigError(
                f"evaluate.tasks: {name}: neither a file nor a known task; known are {', '.join(known)}{near}"
            )
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
    """The items of a task that is a file or has one: at most `task_items`, drawn at random, in the file's order. Raises
    DataError, naming the first, where a line is no question: a test set that shrinks unseen is none."""
    known = _known(name)
    asked = examples = _questions(_place(cfg, name), known)
    if known.shots and known.shots_file:
        examples = _questions(_file(cfg, name, known.shots_file), known)
    subjects: dict[str | None, list[int]] = {}
    for number, example in enumerate(examples):
        subjects.setdefault(example.subject, []).append(number)
    rng = np.random.default_rng([seed, 9])
    chosen = sorted(rng.permutation(len(asked))[: cfg.task_items].tolist())
    found = []
    for number in chosen:
        item = asked[number].item
        if known.shots:
            same = subjects.get(asked[number].subject, [])
            others = [i for i in same if i != number] if examples is asked else same
            if len(others) < known.shots:
                what = f"{known.shots} worked examples are asked for, and there are {len(others)}"
                raise DataError(f"{asked[number].where}: {what}; evaluate.tasks: {name}")
            picked = others if examples is not asked else rng.permutation(others).tolist()
            worked = _worked(
                [examples[i].item for i in picked[: known.shots]], asked[number].subject, known
            )
            item = replace(item, contexts=tuple(worked + context for context in item.contexts))
        found.append(item)
    return found


def of(rows: Sequence[dict[str, Any]], where: str) -> list[Item]:
    """Items of rows that are at hand, such as a world's questions."""
    return [
        question.item
        for question in _checked(
            ((row, f"{where} {i}") for i, row in enumerate(rows)), Known(where, "{query}")
        )
    ]


def _split(name: str) -> tuple[str, int | None]:
    """A task's name without the worked examples asked for after an @, and their number."""
    stem, at, shots = name.rpartition("@")
    return (
        (stem, int(shots))
        if at and shots.isdecimal() and not Path(name).is_file()
        else (name, None)
    )


def _known(name: str) -> Known:
    stem, shots = _split(name)
    known = KNOWN.get(stem, Known(stem, "{query}"))
    return known if shots is None else replace(known, shots=shots)


def _place(cfg: config.Evaluate, name: str) -> Path:
    known = _known(name)
    return _file(cfg, name, known.file) if _split(name)[0] in KNOWN else Path(known.file)


@dataclass(frozen=True)
class _Question:
    """An item, where it stands, and its subject where it has one."""

    item: Item
    where: str
    subject: str | None


def _worked(examples: Sequence[Item], subject: str | None, known: Known) -> str:
    """Worked examples as they stand before a question."""
    text = ""
    if known.letters:
        about = (subject or "many things").replace("_", " ")
        text = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    for shown in examples:
        said = f" {shown.answers[0]}" if shown.answers else shown.continuations[shown.gold]
        text += shown.contexts[0] + said + "\n\n"
    return text


def _questions(path: Path, known: Known) -> list[_Question]:
    found = _checked(_rows(path), known)
    if not found:
        raise DataError(f"{path}: holds no questions")
    return found


def _checked(rows: Iterable[tuple[Any, str]], known: Known) -> list[_Question]:
    """All rows as questions. Raises DataError that says what is wrong with the first that is none, and how many there are."""
    found: list[_Question] = []
    bad: list[str] = []
    for number, (row, where) in enumerate(rows):
        try:
            if not isinstance(row, dict):
                raise items.NoItem(row if isinstance(row, str) else "not a JSON object")
            item = items.item(row, str(number), known.prompt, known.letters)
        except items.NoItem as error:
            bad.append(f"{where}: {error}")
            continue
        subject = row.get("subject")
        found.append(_Question(item, where, None if subject is None else str(subject)))
    if bad:
        raise DataError(
            bad[0]
            + (
                f"; {len(bad):,} of {len(bad) + len(found):,} are no questions"
                if len(bad) > 1
                else ""
            )
        )
    return found


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
    raise ConfigError(
        f"evaluate.tasks: {task}: no {stem}{_SUFFIXES[0]} in evaluate.task_folder ({cfg.task_folder})"
    )


def _rows(path: Path) -> Iterator[tuple[Any, str]]:
    """What every line holds, or text that says why it holds nothing; and where it stands."""
    try:
        for record in documents.lines(path):
            where = f"{path} line {record.line}"
            if not isinstance(record.content, bytes):
                yield record.problem, where
                continue
            try:
                row = json.loads(
                    record.content.decode("utf-8-sig" if record.line == 1 else "utf-8")
                )
            except (ValueError, RecursionError):
                yield "not valid JSON", where
                continue
            yield (row if isinstance(row, dict) else "not a JSON object"), where
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}") from None
