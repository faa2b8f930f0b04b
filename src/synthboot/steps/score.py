"""score: a model and the test set in, the loss of every token and answers to questions out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthboot.data import tasks
from synthboot.steps import worlds
from synthboot.steps.context import Context, Outcome

if TYPE_CHECKING:
    from synthboot.stages.score import Questions


def score(c: Context) -> Outcome:
    """How one model does at both checkpoints."""
    from synthboot.stages.score import score as stage

    checkpoints = c.model("model").checkpoints
    test_set = c.corpus.test
    scores = stage(
        checkpoints=checkpoints,
        test_set=test_set,
        tokenizer=c.corpus.tokenizer,
        seq_len=c.cfg.model.seq_len,
        device=c.cfg.engine.device,
        questions=_questions(c),
        progress=c.progress,
    )
    scores.save(c.folder)
    counts = {"docs": len(test_set), "items": len(scores.answers)}
    scored = len(set(checkpoints.values()))
    return counts, {"tokens": float(scored * test_set.num_tokens)}


def our_questions(c: Context) -> list[tuple[str, tasks.Item]]:
    """Our questions, each with the name of its task, in the order in which they are asked."""
    items = []
    for name in tasks.names(c.cfg.evaluate):
        if name.startswith(tasks.LM_EVAL):
            continue
        if name == tasks.WORLD:
            of_task = worlds.questions(c)
        else:
            of_task = tasks.read(name, c.cfg.evaluate, c.cfg.seed)
        items += [(name, item) for item in of_task]
    return items


def _questions(c: Context) -> Questions | None:
    """What the model is asked; where that is nothing, none of its settings may be read."""
    from synthboot.stages.score import Questions

    cfg = c.cfg.evaluate
    if not cfg.tasks:
        return None
    harness = []
    for name in tasks.names(cfg):
        if name.startswith(tasks.LM_EVAL):
            harness.append(name.removeprefix(tasks.LM_EVAL))
    return Questions(cfg.checkpoint, our_questions(c), harness, cfg.task_folder)
