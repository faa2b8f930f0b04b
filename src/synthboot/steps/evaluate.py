"""evaluate: the scores of all models in, what they show out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
from jaxtyping import UInt8
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from synthboot import config
from synthboot.artifacts.corpus import PRETRAIN
from synthboot.artifacts.evaluation import (
    REPETITION,
    ArmComparison,
    ArmResult,
    Contamination,
    DataEfficiency,
    DocumentLoss,
    Evaluation,
    TaskResult,
)
from synthboot.artifacts.model import Model, Sweep, TokenCounts
from synthboot.artifacts.scores import CHECKPOINTS, Answers, Scores
from synthboot.artifacts.store import content, typed
from synthboot.data import documents, tasks, words
from synthboot.data.disk import read_json, write_json
from synthboot.data.items import Item, chance
from synthboot.errors import ConfigError, CorruptArtifact
from synthboot.steps import worlds
from synthboot.steps.context import Context, Outcome
from synthboot.steps.score import our_questions
from synthboot.worlds.generator import PARTS

Losses = dict[str, dict[str, list[np.ndarray]]]
"""By checkpoint and arm, for every seed: (test document, part of it), summed nats."""

Counts = Mapping[str, Mapping[int, TokenCounts]]
"""By arm and seed."""

Asked = Sequence[tuple[str, Item]]
"""Our questions with the names of their tasks, in the order in which they were asked."""

NEAR = "with a neighbour"
FAR = "without a neighbour"
"""Groups of test documents: whether D_pretrain has one that they would be paired with."""

_LOOKS = "looks.json"


class _OwnTexts(TypedDict):
    """A look at seeds that each had a text of its own."""

    text_per_seed: list[int]


_Look = int | list[int] | _OwnTexts
_Looks = dict[str, list[_Look]]
"""By experiment the seeds of each look at it, or their number, which is all that an older version
kept."""


def evaluate(c: Context) -> Outcome:
    """Every arm against repetition, in test loss and in answers, and the verdict."""
    from synthboot.stages import evaluate as stage

    models = c.models
    token_counts = {}
    for arm, by_seed in models.items():
        token_counts[arm] = {seed: model.token_counts for seed, model in by_seed.items()}
    stage.check_comparable(token_counts)

    test_set = list(c.corpus.texts("test"))
    groups = _groups(c, test_set)
    names, part = _parts(c, test_set)
    losses, answers = _scores(c, models, part, len(names))
    asked = _asked(c)
    questions, contamination, seen = _contaminated(c, asked, answers)

    checkpoint = c.cfg.evaluate.checkpoint
    compared = _compared(c, models, losses, test_set, groups)
    by_part = {arm: np.stack(by_seed) for arm, by_seed in losses[checkpoint].items()}
    bounds = None
    if worlds.is_world(c):
        bounds = worlds.bounds(c, test_set, c.corpus.test.lengths, groups)
    evaluation = Evaluation(
        checkpoint=checkpoint,
        token_counts=token_counts,
        best=compared["best"],
        last=compared["last"],
        efficiency=_efficiency(c, token_counts, compared[checkpoint].arms),
        contamination=contamination,
        questions=_answered(c, asked, answers, seen),
        parts=stage.parted(by_part, names, groups, c.cfg.evaluate),
        world=bounds,
        sweeps=_sweeps(models),
    )
    evaluation.save(c.folder, _rows(losses, models, c.corpus.test.lengths), questions)
    return {
        "models": sum(map(len, models.values())),
        "docs": len(test_set),
        "items": int((~seen).sum()),
    }, {}


def _groups(
    c: Context,
    test_set: Sequence[documents.Document],
) -> list[str]:
    """The group of each test document: what its `evaluate.group_field` says, or its topic, or
    whether D_pretrain has a document that it would be paired with; none where there is nothing.

    Raises ConfigError where no document has the field.
    """
    field = c.cfg.evaluate.group_field
    if not field:
        return _by_neighbors(c, test_set)
    groups = [group_of(document, field) for document in test_set]
    if groups and not any(groups):
        raise ConfigError(f"evaluate.group_field: no test document has a field {field!r}")
    return groups


def group_of(document: documents.Document, field: str) -> str:
    """What a field of a document says; empty where it has none, or null in it."""
    value = document.metadata.get(field)
    return "" if value is None else str(value)


def _by_neighbors(
    c: Context,
    test_set: Sequence[documents.Document],
) -> list[str]:
    """What D_pretrain has near each test document: its topic, where `evaluate.topics` asks for
    some, else whether the most similar document is as similar as those of a pair are.

    None where no pairs were made, or where vectors are the user's, who has none for the test set.
    """
    if c.embeddings is None or c.embedder is None or "pair/related" not in c.parents:
        return []
    from synthboot.neighbors import join
    from synthboot.stages import embed, topics

    c.progress(0.0, "looking for neighbours of the test set")
    vectors = embed.embed((document.text for document in test_set), c.embedder)
    real = c.embeddings.pretrain
    if c.cfg.evaluate.topics:
        centres = topics.topics(real, c.cfg.evaluate.topics, c.cfg.seed, c.device)
        texts = (document.text for document in c.corpus.texts(PRETRAIN))
        names = topics.named(texts, topics.assigned(real, centres), len(centres))
        return [names[topic] for topic in topics.assigned(vectors, centres)]
    _, similarity = join.exact(vectors, real, 1, device=c.device)  # (doc, 1)
    alpha = c.pairs("pair/related").alpha
    return [NEAR if best >= alpha else FAR for best in similarity[:, 0].tolist()]


def _parts(
    c: Context,
    test_set: Sequence[documents.Document],
) -> tuple[Sequence[str], UInt8[np.ndarray, " token"]]:
    """The names of the parts of a document, and which of them each token of the test set is in."""
    names: Sequence[str] = words.KINDS
    parts_of: Callable[[str], np.ndarray] = words.kinds
    if worlds.is_world(c):
        names = PARTS
        parts_of = worlds.parts(c)

    parts = []
    for document in test_set:
        part_of_character = parts_of(document.text)
        # a token belongs to the part in which its first letter stands
        for start in c.corpus.tokenizer.starts(document.text):
            parts.append(int(part_of_character[start]))
        parts.append(names.index("form"))  # its end
    return names, np.array(parts, np.uint8)


def _scores(
    c: Context,
    models: Mapping[str, Mapping[int, Model]],
    part: UInt8[np.ndarray, " token"],
    parts: int,
) -> tuple[Losses, dict[str, list[Answers]]]:
    """The losses of every model by document and part of it, and by arm its answers."""
    from synthboot.stages.evaluate import summed

    losses: Losses = {checkpoint: {} for checkpoint in CHECKPOINTS}
    answers: dict[str, list[Answers]] = {}
    for arm, seeds in models.items():
        for seed in seeds:
            scores = Scores.open(c.parents[f"score/{arm}/{seed}"])
            answers.setdefault(arm, []).append(scores.answers)
            for checkpoint in CHECKPOINTS:
                by_part = summed(scores.losses[checkpoint], scores.document, part, parts)
                losses[checkpoint].setdefault(arm, []).append(by_part)
    return losses, answers


def _asked(c: Context) -> Asked:
    """Our questions; those that name documents which tell the answer are grouped by whether
    D_pretrain has one, as those of a known world are."""
    named = our_questions(c)
    told = tasks.told([item for _, item in named], c.corpus.texts(PRETRAIN))
    questions = []
    any_told: dict[str, bool] = {}  # by task
    for (name, item), is_told in zip(named, told.tolist(), strict=True):
        if item.support:
            status = "told" if is_told else "untold"
            group = f"{item.group}, {status}" if item.group else status
            item = replace(item, group=group)
            any_told[name] = any_told.get(name, False) or is_told
        questions.append((name, item))

    for name in any_told:
        if not any_told[name]:
            c.note(
                f"evaluate.tasks: {name}: D_pretrain has none of the documents that tell the "
                "answers (`support`), so that all questions are of what it does not tell"
            )
    return questions


def _contaminated(
    c: Context,
    items: Asked,
    answers: Mapping[str, Sequence[Answers]],
) -> tuple[list[dict[str, object]], dict[str, Contamination], np.ndarray]:
    """Records of our questions; by task how many of them the training text holds; and of every
    answer whether its question is one that the text holds.

    Raises CorruptArtifact where these are not the questions that were asked.
    """
    names = np.array([name for name, _ in items], str)
    digests = [item.digest for _, item in items]
    # lm-eval's questions come after ours; their texts are not at hand
    first = next(iter(answers.values()))[0]
    seen = np.zeros(len(first), bool)
    short = np.zeros(len(first), bool)
    for by_seed in answers.values():
        for of_model in by_seed:
            if of_model.item != first.item or list(of_model.item[: len(items)]) != digests:
                raise CorruptArtifact(
                    "evaluate.tasks: files of questions have changed since the models were asked; "
                    "run again"
                )

    # what the world asks is said in the corpus on purpose
    checked = np.flatnonzero(names != tasks.WORLD)
    if len(checked):
        c.progress(0.0, "looking for the questions in the training text")
        questions = [items[number][1] for number in checked.tolist()]
        seen[checked], short[checked] = tasks.seen(questions, _training_texts(c))

    counts = {}
    for name in dict.fromkeys(names.tolist()):
        of_name = np.flatnonzero(names == name)
        counts[name] = Contamination(
            items=len(of_name),
            seen=int(seen[of_name].sum()),
            short=int(short[of_name].sum()),
            chance=chance([item for task, item in items if task == name]),
        )

    records = []
    for (name, item), is_seen in zip(items, seen.tolist(), strict=False):
        record = {"task": name, "seen": is_seen, "item": item.digest}
        records.append(record | asdict(item))
    return records, counts, seen


def _training_texts(c: Context) -> Iterator[str]:
    """All that any arm may have read: real text, and all synthetic text."""
    for name in ("pool", "replay") if c.corpus.has_replay else ("pool",):
        for document in c.corpus.texts(name):
            yield document.text
    for synthetic in c.synthetic.values():
        yield from synthetic.texts()


def _compared(
    c: Context,
    models: Mapping[str, Mapping[int, Model]],
    losses: Losses,
    test_set: Sequence[documents.Document],
    groups: Sequence[str],
) -> dict[str, ArmComparison]:
    """All arms at both checkpoints."""
    from synthboot.stages import evaluate as stage

    cfg = c.cfg.evaluate
    tokens = c.corpus.test.lengths
    size_bytes = np.array([len(document.text.encode()) for document in test_set])
    repeated = models[REPETITION]
    wrote = any(arm.synthetic is not None for arm in c.cfg.arms.values())
    seeds = sorted(repeated)
    # of one seed, or without synthetic text, it makes no difference
    own_texts = wrote and c.cfg.pretrain.text_per_seed and len(seeds) > 1
    looks = _looks(c, next(iter(repeated.values())), seeds, own_texts)
    external = c.cfg.tune.init_from if wrote else None

    result = {}
    for checkpoint, by_arm in losses.items():
        by_document = {}
        for arm, by_seed in by_arm.items():
            by_document[arm] = np.stack(by_seed).sum(2)  # (seed, doc, part) -> (seed, doc)
        result[checkpoint] = stage.evaluate(
            losses=by_document,
            tokens=tokens,
            size_bytes=size_bytes,
            recipes=c.cfg.arms,
            cfg=cfg,
            groups=groups,
            looks=looks,
            external=external,
            text_per_seed=c.cfg.pretrain.text_per_seed,
        )
    return result


def _looks(
    c: Context,
    first_model: Model,
    seeds: list[int],
    own_texts: bool,
) -> list[int]:
    """With how many seeds this experiment has been evaluated each time, this time last.

    The seeds, and whether they had `own_texts`, are kept beside the artifacts, since to look again
    is to try again, whatever became of the first look. Another base is another experiment; one that
    was made again of the same settings is not, nor one that was kept under a newer version.
    """
    path = c.folder.parent / _LOOKS
    base = first_model.manifest
    known_by = (base.fingerprint, content(base))
    try:
        all_looks = typed(read_json(path), _Looks, path) if path.exists() else {}
    except CorruptArtifact:
        raise CorruptArtifact(f"{path}: unreadable; delete it, and looks count anew") from None
    before = max((all_looks.get(name, []) for name in known_by), key=len)
    now: _Look = {"text_per_seed": seeds} if own_texts else seeds
    same = (now,) if own_texts else (now, len(seeds))
    looks = [look for look in before if look not in same]
    looks.append(now)
    write_json(path, all_looks | dict.fromkeys(known_by, looks))
    return [_num_seeds(look) for look in looks]


def _num_seeds(look: _Look) -> int:
    if isinstance(look, int):
        return look
    return len(look["text_per_seed"] if isinstance(look, dict) else look)


def _efficiency(
    c: Context,
    token_counts: Counts,
    arms: Mapping[str, ArmResult],
) -> DataEfficiency:
    """The curve of loss over unique real tokens, from arms of real text alone, and how many of
    these tokens each other arm is worth."""
    from synthboot.stages.evaluate import efficiency

    plain = []
    for arm in token_counts:
        # an arm of real text is repetition but for how much text it has, and its sweep
        recipe = c.cfg.arms[arm].model_copy(
            update={
                "unique_tokens": None,
                "sweep": {},
            }
        )
        if recipe == config.Arm():
            plain.append(arm)

    points = []
    for arm in plain:
        counts = next(iter(token_counts[arm].values()))  # the seeds of an arm read the same text
        points.append((counts.unique_real_tokens, arms[arm].loss.value))

    worth = {}
    for arm, result in arms.items():
        if arm not in plain:
            worth[arm] = efficiency(points, result.loss.value)
    return DataEfficiency(tuple(sorted(points)), worth)


def _answered(
    c: Context,
    items: Asked,
    answers: Mapping[str, Sequence[Answers]],
    seen: np.ndarray,
) -> dict[str, TaskResult]:
    """The figures of every task, ours and those of lm-eval."""
    from synthboot.stages import evaluate as stage

    stacked = {}
    for arm, by_seed in answers.items():
        stacked[arm] = np.stack([of_seed.figures for of_seed in by_seed])  # (seed, item, figure)
    first = next(iter(answers.values()))[0]
    groups = [item.group for _, item in items]
    groups += first.group[len(items) :]  # lm-eval's come after ours
    return stage.answered(stacked, first.task, groups, c.cfg.evaluate, seen)


def _sweeps(models: Mapping[str, Mapping[int, Model]]) -> dict[str, Sweep]:
    """What the trials of every arm with a sweep reached; the first seed has the record."""
    sweeps = {}
    for arm, by_seed in models.items():
        sweep = next(iter(by_seed.values())).sweep
        if sweep is not None:
            sweeps[arm] = sweep
    return sweeps


def _rows(
    losses: Losses,
    models: Mapping[str, Mapping[int, Model]],
    tokens: np.ndarray,
) -> list[DocumentLoss]:
    """A row for every model, checkpoint and test document."""
    rows = []
    for checkpoint, by_arm in losses.items():
        for arm, by_seed in by_arm.items():
            for seed, by_part in zip(models[arm], by_seed, strict=True):
                for doc, loss in enumerate(by_part.sum(1).tolist()):
                    size = int(tokens[doc])
                    rows.append(DocumentLoss(arm, seed, checkpoint, doc, loss, size))
    return rows
