"""Ask a model questions, as lm-eval's Hugging Face backend does.

Multiple choice, minimal pairs, last-word cloze and open ones. A continuation is tokenized together
with its context and cut off where the context's own tokens end; spaces at the end of a context
belong to the continuation; an empty context is the end token. What does not fit the context length
loses its beginning.

Source: EleutherAI's lm-evaluation-harness; tests hold both to the same answers.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from synthboot.artifacts.store import Progress, silent
from synthboot.data.items import Item
from synthboot.data.tokenizer import Tokenizer
from synthboot.errors import ConfigError
from synthboot.lm import score
from synthboot.lm.batches import IGNORE
from synthboot.lm.sampling.engines import sampler
from synthboot.lm.sampling.protocol import Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ANSWER_TOKENS = 32
"""The most tokens of an answer to an open question."""

_ACC = ("acc", "exact_match", "f1")
"""lm-eval's figures that say whether an answer is right, by kind of task."""

_STOPS = re.compile(r"[\n.,]")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answer:
    """What a model made of an item.

    `acc`: the likeliest continuation is the right one, a cloze's target is what the model would
    say, or an open answer matches. `acc_norm`: the same by likelihood per character of the choice.
    `nll` is the negative log-likelihood of the right continuation, 0 for open questions;
    `choice_nll` that of the right choice among those there are, 0 where there is none to make:
    unlike `acc` it tells doubt from error.
    """

    acc: bool
    acc_norm: bool
    nll: float
    choice_nll: float


def ask(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    seq_len: int,
    progress: Progress = silent,
) -> list[Answer]:
    """An answer to every item, in order."""
    # all continuations of all items at once, so that rows of like length share a batch
    contexts: list[str] = []
    continuations: list[str] = []
    questions: list[str] = []
    for item in items:
        for number, continuation in enumerate(item.continuations):
            # minimal pairs have a context each, choices one together
            contexts.append(item.contexts[min(number, len(item.contexts) - 1)])
            continuations.append(continuation)
        if item.kind == "open":
            questions.append(item.contexts[0])
    rows = _rows(tokenizer, contexts, continuations, seq_len)
    losses, first = score.row_choices(model, rows, progress=progress)
    open_answers = iter(greedy_answers(model, tokenizer, questions, seq_len))

    answers = []
    start = 0
    for item in items:
        part = slice(start, start + len(item.continuations))
        start = part.stop
        if item.kind == "open":
            acc = _plain(next(open_answers)) in map(_plain, item.answers)
            answers.append(Answer(acc, acc, 0.0, 0.0))
        elif item.kind == "cloze":
            greedy = bool(first[part][0])
            nll = float(losses[part][0])
            answers.append(Answer(greedy, greedy, nll, 0.0))
        else:
            answers.append(_choice(item, losses[part]))
    return answers


def _choice(item: Item, losses: np.ndarray) -> Answer:
    """The answer to multiple choice or a minimal pair, by the loss of each continuation."""
    # without the space before it, which belongs to the text around
    sizes = np.array([len(text) - text.startswith(" ") for text in item.continuations])
    per_character = losses / np.maximum(1, sizes)
    best = int(losses.argmin())
    best_norm = int(per_character.argmin())
    # -log softmax over the choices
    gold_loss = losses[item.gold]
    choice_nll = float(gold_loss + np.logaddexp.reduce(-losses))
    return Answer(
        best == item.gold,
        best_norm == item.gold,
        float(gold_loss),
        choice_nll,
    )


def known_to_harness(tasks: Sequence[str], include: str) -> Any:
    """lm-eval's task manager, which knows the tasks of `include`, a folder, too.

    Raises ConfigError where it does not know a task.
    """
    from lm_eval.tasks import TaskManager

    # Its own tasks are fourteen thousand files, half a minute to read. A group may name any of
    # them, a task is complete in itself.
    manager = TaskManager(include_path=include, include_defaults=False)
    if set(tasks) <= set(manager.all_subtasks):
        return manager
    manager = TaskManager(include_path=include)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"evaluate.tasks: lm-eval knows no task {unknown[0]!r}")
    return manager


def harness(
    folder: Path, tasks: Sequence[str], include: str, device: str
) -> dict[str, Float64[np.ndarray, "item 4"]]:
    """The same by lm-eval, for tasks it knows or that `include`, a folder, describes.

    For every item: right, right per character, and 0 twice. Raises ConfigError where lm-eval does
    not know a task.
    """
    from lm_eval import simple_evaluate

    manager = known_to_harness(tasks, include)
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32", "trust_remote_code": False},
        tasks=list(tasks),
        device=device,
        confirm_run_unsafe_code=False,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,  # intervals are ours, over arms and seeds
        verbosity="ERROR",
    )
    answers = {}
    for task, samples in results["samples"].items():
        # not every task has `acc_norm`: there right per character is right
        acc = _first_in(samples[0], _ACC)
        norm = _first_in(samples[0], ("acc_norm", *_ACC))
        if acc is None or norm is None:
            raise ConfigError(
                f"evaluate.tasks: lm-eval's {task} has none of the figures {', '.join(_ACC)}"
            )
        rows = [[float(sample[acc]), float(sample[norm]), 0.0, 0.0] for sample in samples]
        answers[task] = np.array(rows)
    return answers


def _first_in(sample: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in sample), None)


def _rows(
    tokenizer: Tokenizer,
    contexts: Sequence[str],
    continuations: Sequence[str],
    seq_len: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(inputs, targets) of each continuation after its context."""
    heads: list[str] = []
    texts: list[str] = []
    for context, continuation in zip(contexts, continuations, strict=True):
        # spaces at the end of a context belong to the continuation, as tokenizers have them; a
        # context of nothing but spaces is left alone
        head = context.rstrip() or context
        heads.append(head)
        texts.append(context + continuation)
    encoded_heads = tokenizer.encode(heads)
    encoded_texts = tokenizer.encode(texts)

    rows = []
    for before, both in zip(encoded_heads, encoded_texts, strict=True):
        # together, since a tokenizer may merge across the seam; cut where the context ends alone
        continuation_ids = both[len(before) :]
        ids = (before or [tokenizer.end]) + continuation_ids
        tokens = np.array(ids[-(seq_len + 1) :], np.int64)
        targets = tokens[1:].copy()
        targets[: max(0, len(targets) - len(continuation_ids))] = IGNORE
        rows.append((tokens[:-1], targets))
    return rows


def greedy_answers(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    contexts: Sequence[str],
    seq_len: int,
) -> list[str]:
    """What the model says next, one likeliest token after the other.

    Cut where a line, a sentence or a clause ends.
    """
    if not contexts:
        return []
    # of a short window half is for the question
    answer_tokens = min(ANSWER_TOKENS, seq_len // 2)
    room = seq_len - answer_tokens
    requests = []
    for ids in tokenizer.encode(contexts):
        requests.append(Request(tuple(ids[-room:]), 0, answer_tokens))
    greedy = Sampling(temperature=0.0, top_p=1.0)
    results = sampler(model, tokenizer.end, greedy).sample(requests)

    answers = []
    for result in results:
        text = tokenizer.decode(result.tokens)
        answers.append(_STOPS.split(text, maxsplit=1)[0])
    return answers


def _plain(text: str) -> str:
    """As exact match compares: no case, no punctuation."""
    return text.strip().lower().translate(_NO_PUNCTUATION)
