"""Ask a model questions: multiple choice, minimal pairs, last-word cloze and open ones, as lm-eval's Hugging Face backend does.

A continuation is tokenized together with its context and cut off where the context's own tokens end; spaces at the end of a
context belong to the continuation; an empty context is the end token. What does not fit the window loses its beginning.

Source: EleutherAI's lm-evaluation-harness; tests hold both to the same answers.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from synthboot.data.tasks import Item
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import ConfigError
from synthboot.lm import score
from synthboot.lm.batches import IGNORE
from synthboot.lm.sample import Request, sampler

ANSWER_TOKENS = 32
_RIGHT = ("acc", "exact_match", "f1")
_STOPS = re.compile(r"[\n.,]")


@dataclass(frozen=True)
class Answer:
    """What a model made of an item. `right`: the likeliest continuation is the right one, a cloze's target is what the
    model would say, or an open answer matches; `acc_norm`: the same by likelihood per character of the choice. `nats`
    is the negative log-likelihood of the right continuation, 0 for open questions; `choice_nll` that of the right choice
    among those there are, 0 where there is none to make: unlike `right` it tells doubt from error."""

    right: bool
    acc_norm: bool
    nats: float
    choice_nll: float


def ask(model: Any, tokenizer: Tokenizer, items: Sequence[Item], window: int) -> list[Answer]:
    """An answer to every item, in order."""
    asked = [(i, j) for i, item in enumerate(items) for j in range(len(item.continuations))]
    contexts = [items[i].contexts[min(j, len(items[i].contexts) - 1)] for i, j in asked]
    rows = _rows(tokenizer, contexts, [items[i].continuations[j] for i, j in asked], window)
    losses, first = score.row_choices(model, rows)
    said = iter(
        _said(model, tokenizer, [item.contexts[0] for item in items if item.kind == "open"], window)
    )
    answers, start = [], 0
    for item in items:
        count = len(item.continuations)
        here, greedy = losses[start : start + count], first[start : start + count]
        start += count
        if item.kind == "open":
            right = _plain(next(said)) in map(_plain, item.answers)
            answers.append(Answer(right, right, 0.0, 0.0))
        elif item.kind == "cloze":
            answers.append(Answer(bool(greedy[0]), bool(greedy[0]), float(here[0]), 0.0))
        else:
            sizes = np.array([len(c) - c.startswith(" ") for c in item.continuations])
            best, by_char = int(here.argmin()), int((here / np.maximum(1, sizes)).argmin())
            among = float(here[item.gold] + np.logaddexp.reduce(-here))
            answers.append(
                Answer(best == item.gold, by_char == item.gold, float(here[item.gold]), among)
            )
    return answers


def known_to_harness(tasks: Sequence[str], include: str) -> Any:
    """lm-eval's task manager. Raises ConfigError where it does not know a task."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"evaluate.tasks: lm-eval knows no task {unknown[0]!r}")
    return manager


def harness(
    folder: Path, tasks: Sequence[str], include: str, device: str
) -> dict[str, Float64[np.ndarray, "item 4"]]:
    """The same by lm-eval, for tasks it knows or that `include`, a folder, describes: right, right per character, and 0
    twice, for every item. Raises ConfigError where lm-eval does not know a task."""
    from lm_eval import simple_evaluate

    manager = known_to_harness(tasks, include)
    found = simple_evaluate(
        model="hf", model_args={"pretrained": str(folder), "dtype": "float32", "trust_remote_code": False},
        tasks=list(tasks), device=device, confirm_run_unsafe_code=False,
        task_manager=manager, log_samples=True, bootstrap_iters=0, verbosity="ERROR",
    )  # fmt: skip
    answers = {}
    for task, samples in found["samples"].items():
        kinds = [
            next((k for k in names if k in samples[0]), None)
            for names in (_RIGHT, ("acc_norm", *_RIGHT))
        ]
        if None in kinds:
            raise ConfigError(
                f"evaluate.tasks: lm-eval's {task} has none of the figures {', '.join(_RIGHT)}"
            )
        answers[task] = np.array(
            [[float(sample[k]) for k in kinds] + [0.0, 0.0] for sample in samples]
        )
    return answers


def _rows(
    tokenizer: Tokenizer, contexts: Sequence[str], continuations: Sequence[str], window: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets) of each continuation after its context."""
    moved = [context[len(context.rstrip()) :] if context.strip() else "" for context in contexts]
    kept = [
        context.rstrip() if space else context
        for context, space in zip(contexts, moved, strict=True)
    ]
    said = [space + continuation for space, continuation in zip(moved, continuations, strict=True)]
    before = tokenizer.encode(kept)
    whole = tokenizer.encode([context + text for context, text in zip(kept, said, strict=True)])
    rows = []
    for context, both in zip(before, whole, strict=True):
        tail = both[len(context) :]
        tokens = np.array(((context or [tokenizer.end]) + tail)[-(window + 1) :], np.int64)
        targets = tokens[1:].copy()
        targets[: max(0, len(targets) - len(tail))] = IGNORE
        rows.append((tokens[:-1], targets))
    return rows


def _said(model: Any, tokenizer: Tokenizer, contexts: Sequence[str], window: int) -> list[str]:
    """What the model says next, one likeliest token after the other, until a line, a sentence or a clause ends."""
    if not contexts:
        return []
    prompts = [tuple(ids[-(window - ANSWER_TOKENS) :]) for ids in tokenizer.encode(contexts)]
    engine = sampler(model, tokenizer.end, temperature=0.0, top_p=1.0)
    results = engine.sample([Request(prompt, 0, ANSWER_TOKENS) for prompt in prompts])
    return [_STOPS.split(tokenizer.decode(result.tokens), maxsplit=1)[0] for result in results]


def _plain(text: str) -> str:
    """As exact match compares: no case, no punctuation."""
    return text.strip().lower().translate(str.maketrans("", "", string.punctuation))
