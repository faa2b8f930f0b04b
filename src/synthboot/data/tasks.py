"""Questions from JSON lines: what `evaluate.tasks` names, as items that a model can be scored on.

Fields of a line (`items.py`) decide what kind of question it is: `query, choices, gold` (multiple
choice), `context_options, continuation, gold` (one continuation of several contexts, as winogrande
has), `good, bad` (minimal pairs), `context, target` (last-word cloze), `query, answers` (open, by
exact match). Known tasks name a file in `task_folder`, a prompt and how many worked examples stand
before a question; `NAME@5` puts five there. Prompts follow lm-eval's.

Source: arXiv:2509.15248 asks ARC, SciQ, WinoGrande (0-shot), TriviaQA, WebQuestions (1-shot), and
takes perplexities on LAMBADA and on 5-shot MMLU answers. Deviation: SciQ without its support text,
since the file at hand has none for most items.
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
from synthboot.data.files import seen_from
from synthboot.data.items import Item, Support
from synthboot.errors import ConfigError, DataError
from synthboot.rng import rng

WORLD = "world"
LM_EVAL = "lm-eval:"
SHARED_WORDS = 13
LEAST_WORDS = 8
LEAST_LETTERS = 24


@dataclass(frozen=True)
class Task:
    """A task by name: its file, the prompt of a question, and its worked examples.

    Worked examples stand before a question, and may have a file of their own.
    """

    file: str
    prompt: str = "Question: {query}\nAnswer:"
    shots: int = 0
    shots_file: str | None = None
    letters: bool = False


TASKS = {
    "arc_challenge": Task("arc_challenge_test", shots_file="arc_challenge_train"),
    "arc_easy": Task("arc_easy_test", shots_file="arc_easy_train"),
    "sciq": Task("sciq_val"),
    "piqa": Task("piqa_val"),
    "hellaswag": Task("hellaswag_1000", "{query}"),
    "winogrande": Task("winogrande_val"),
    "triviaqa": Task("triviaqa_sm_sub", shots=1),
    "webqs": Task("webquestions_test", shots=1, shots_file="webquestions_trainmodel"),
    "mmlu": Task("mmlu_test", "{query}", 5, "mmlu_dev", letters=True),
    "lambada": Task("lambada_openai"),
    "blimp": Task("blimp"),
    "supported_wikidata_cloze": Task("supported_wikidata_cloze"),
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
    """The tasks asked for, groups resolved.

    Raises ConfigError for one that is neither known nor a file.
    """
    wanted: list[str] = []
    for name in cfg.tasks:
        wanted.extend(GROUPS.get(name, (name,)))

    for name in wanted:
        stem, shots = _split(name)
        is_ours = stem != WORLD and not stem.startswith(LM_EVAL)
        if shots is not None and (stem in GROUPS or not is_ours):
            raise ConfigError(
                f"evaluate.tasks: {name}: worked examples go with single tasks of ours; "
                f"drop @{shots}"
            )
        if is_ours and stem not in TASKS and not Path(stem).is_file():
            valid = [*TASKS, *GROUPS, WORLD, f"{LM_EVAL}NAME"]
            close = difflib.get_close_matches(stem, valid, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            looked_for = "" if close else seen_from(stem)  # a name misspelled was no path
            raise ConfigError(
                f"evaluate.tasks: {name}{looked_for}: neither a file nor a known task; "
                f"known are {', '.join(valid)}{hint}"
            )
    needs_lm_eval = any(name.startswith(LM_EVAL) for name in wanted)
    if needs_lm_eval and find_spec("lm_eval") is None:
        raise ConfigError("evaluate.tasks: lm-eval is not installed: pip install 'synthboot[eval]'")
    return list(dict.fromkeys(wanted))


def files(cfg: config.Evaluate) -> list[Path]:
    """Every file that the tasks read. Raises ConfigError where one is missing."""
    paths: list[Path] = []
    for name in names(cfg):
        if name == WORLD or name.startswith(LM_EVAL):
            continue
        task = _task(name)
        paths.append(_path(cfg, name))
        if task.shots and task.shots_file:
            paths.append(_file(cfg, name, task.shots_file))
    return list(dict.fromkeys(paths))


def read(
    name: str,
    cfg: config.Evaluate,
    seed: int = 0,
) -> list[Item]:
    """The items of a task that is a file or has one: at most `task_items`, sampled, in file order.

    Raises DataError, naming the first, where a line is no question: a test set that shrinks unseen
    is none.
    """
    task = _task(name)
    questions = _questions(_path(cfg, name), task)
    examples = questions
    if task.shots and task.shots_file:
        examples = _questions(_file(cfg, name, task.shots_file), task)
    subjects: dict[str | None, list[int]] = {}
    for number, example in enumerate(examples):
        subjects.setdefault(example.subject, []).append(number)

    random = rng(seed, "tasks.items")
    chosen = sorted(random.permutation(len(questions))[: cfg.task_items].tolist())
    result = []
    for number in chosen:
        question = questions[number]
        item = question.item
        if task.shots:
            numbers = subjects.get(question.subject, [])
            if examples is questions:
                # No file of examples: they are sampled from the other questions.
                numbers = [i for i in numbers if i != number]
            if len(numbers) < task.shots:
                raise DataError(
                    f"{question.where}: {task.shots} worked examples are asked for, "
                    f"and there are {len(numbers)}; evaluate.tasks: {name}"
                )
            if examples is questions:
                numbers = random.permutation(numbers).tolist()
            shown = [examples[i].item for i in numbers[: task.shots]]
            worked = _worked(shown, question.subject, task)
            item = replace(item, contexts=tuple(worked + context for context in item.contexts))
        result.append(item)
    return result


def of(rows: Sequence[dict[str, Any]], where: str) -> list[Item]:
    """Items of rows that are at hand, such as a world's questions."""
    numbered = ((row, f"{where} {i}") for i, row in enumerate(rows))
    questions = _checked(numbered, Task(where, "{query}"))
    return [question.item for question in questions]


def _split(name: str) -> tuple[str, int | None]:
    """A task's name without the worked examples asked for after an @, and their number."""
    stem, at, shots = name.rpartition("@")
    # A file may have an @ in its name.
    if at and shots.isdecimal() and not Path(name).is_file():
        return stem, int(shots)
    return name, None


def _task(name: str) -> Task:
    stem, shots = _split(name)
    task = TASKS.get(stem, Task(stem, "{query}"))
    if shots is None:
        return task
    return replace(task, shots=shots)


def _path(cfg: config.Evaluate, name: str) -> Path:
    task = _task(name)
    stem, _ = _split(name)
    if stem in TASKS:
        return _file(cfg, name, task.file)
    return Path(task.file)


@dataclass(frozen=True)
class _Question:
    """An item, where it stands, and its subject where it has one."""

    item: Item
    where: str
    subject: str | None


def _worked(
    examples: Sequence[Item],
    subject: str | None,
    task: Task,
) -> str:
    """Worked examples as they stand before a question."""
    text = ""
    if task.letters:
        about = (subject or "many things").replace("_", " ")
        text = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    for example in examples:
        if example.answers:
            answer = f" {example.answers[0]}"
        else:
            answer = example.continuations[example.gold]
        text += example.contexts[0] + answer + "\n\n"
    return text


def _questions(path: Path, task: Task) -> list[_Question]:
    questions = _checked(_rows(path), task)
    if not questions:
        raise DataError(f"{path}: holds no questions")
    return questions


def _checked(rows: Iterable[tuple[Any, str]], task: Task) -> list[_Question]:
    """All rows as questions.

    Raises DataError that says what is wrong with the first that is none, and how many there are.
    """
    questions: list[_Question] = []
    bad: list[str] = []
    for number, (row, where) in enumerate(rows):
        try:
            if isinstance(row, str):
                raise items.NoItem(row)
            item = items.item(row, str(number), task.prompt, task.letters)
        except items.NoItem as error:
            bad.append(f"{where}: {error}")
            continue
        subject = row.get("subject")
        questions.append(_Question(item, where, None if subject is None else str(subject)))
    if bad:
        problem = bad[0]
        if len(bad) > 1:
            problem += f"; {len(bad):,} of {len(bad) + len(questions):,} are no questions"
        raise DataError(problem)
    return questions


def seen(
    items: Sequence[Item],
    texts: Iterable[str],
) -> tuple[Bool[np.ndarray, " item"], Bool[np.ndarray, " item"]]:
    """Which items share a run of 13 words with a text; and which are too short to tell.

    A word is what `data/words.py` calls one. Letters of scripts without spaces are less than a
    word, and a run has as many more of them. An item with fewer is looked for whole, its question
    without the answer where that is enough: at least `LEAST_WORDS` words, or words of
    `LEAST_LETTERS` letters in all. Symbols count where there are too few words without.

    Source: 13-gram decontamination, arXiv:2005.14165 (appendix C).
    """
    vocabulary: dict[str, int] = {}

    def ids(cut: Sequence[str]) -> np.ndarray:
        return np.array([vocabulary.setdefault(w, len(vocabulary)) for w in cut], np.int64)

    # (symbols count, words in a run) -> item -> the hashes of its runs
    wanted: dict[tuple[bool, int], dict[int, np.ndarray]] = {}
    too_short = np.ones(len(items), bool)
    for number, item in enumerate(items):
        needle = _needle(item)
        if needle is not None:
            symbols, size, run = needle
            wanted.setdefault((symbols, size), {})[number] = ngrams.hashes(ids(run), size)
            too_short[number] = False
    unknown = len(vocabulary)  # a word that no item has matches none, whichever it is

    # Each text is cut once for each way of cutting, and searched for all runs of a size at once.
    hashed = {}
    matches: dict[tuple[bool, int], list[np.ndarray]] = {}
    for key, group in wanted.items():
        hashed[key] = np.unique(np.concatenate(list(group.values())))
        matches[key] = [np.empty(0, np.uint64)]
    ways = {symbols for symbols, _ in wanted}
    for text in texts:
        for symbols in ways:
            pieces = words.words(text, symbols)
            cut = np.array([vocabulary.get(word, unknown) for word in pieces], np.int64)
            for key in wanted:
                if key[0] != symbols or key[1] > len(cut):
                    continue
                runs = ngrams.hashes(cut, key[1])
                found = runs[ngrams.contains(hashed[key], runs)]
                if len(found):
                    matches[key].append(found)

    result = np.zeros(len(items), bool)
    for key, group in wanted.items():
        shared = np.unique(np.concatenate(matches[key]))
        for number, runs in group.items():
            result[number] = ngrams.contains(shared, runs).any()
    return result, too_short


def told(
    items: Sequence[Item],
    texts: Iterable[documents.Document],
) -> Bool[np.ndarray, " item"]:
    """Of which items one of the documents that tell the answer is among these.

    Where question and document both have a title it has to be the same: an id that is a number may
    stand for anything in another corpus.
    """
    wanted: dict[str, set[Support]] = {}
    for item in items:
        for support in item.support:
            wanted.setdefault(support.id, set()).add(support)

    held: set[Support] = set()
    for document in texts if wanted else ():
        title = document.metadata.get("title")
        for support in wanted.get(document.id, ()):
            if title is None or support.title in ("", title):
                held.add(support)
    return np.array([not held.isdisjoint(item.support) for item in items], bool)


def _needle(item: Item) -> tuple[bool, int, list[str]] | None:
    """What of an item to look for, or None if it is too short.

    That is whether symbols count, how many words make a run, and the words.
    """
    question = item.bare[0]
    with_answer = " ".join(item.bare)
    for symbols in (False, True):
        run = words.words(with_answer, symbols)
        size = round(SHARED_WORDS / words.weight(run))
        if len(run) > size:
            return symbols, size, run
        # All of it, without the answer where that is enough.
        for part in (words.words(question, symbols), run):
            letters = sum(len(word) for word in part)
            if len(part) >= LEAST_WORDS or letters >= LEAST_LETTERS:
                return symbols, len(part), part
    return None


def _file(cfg: config.Evaluate, task: str, stem: str) -> Path:
    for suffix in items.FILES:
        path = Path(cfg.task_folder) / (stem + suffix)
        if path.exists():
            return path
    raise ConfigError(
        f"evaluate.tasks: {task}: no {stem}{items.FILES[0]} "
        f"in evaluate.task_folder ({cfg.task_folder})"
    )


def _rows(path: Path) -> Iterator[tuple[Any, str]]:
    """What every line holds, or text that says why it holds nothing; and where it stands."""
    try:
        for record in documents.lines(path):
            where = f"{path} line {record.line}"
            if not isinstance(record.content, bytes):
                yield record.problem, where
                continue
            encoding = "utf-8-sig" if record.line == 1 else "utf-8"
            try:
                row = json.loads(record.content.decode(encoding))
            except (ValueError, RecursionError):
                yield "not valid JSON", where
                continue
            if not isinstance(row, dict):
                row = "not a JSON object"
            yield row, where
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}") from None
