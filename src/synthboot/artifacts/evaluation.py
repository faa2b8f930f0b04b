"""What the comparison of all arms leaves: figures, the loss of every document, the questions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from synthboot import notebook
from synthboot.artifacts.model import Sweep, TokenCounts
from synthboot.artifacts.store import declared, plain, read_listed, read_table, typed
from synthboot.data.disk import write_json
from synthboot.statistics import Components, Difference, Estimate, Interval

if TYPE_CHECKING:
    import pandas as pd

REPETITION = "repetition"
"""The arm that every other is compared with."""

_RESULT = "evaluate.json"
_LOSSES = "losses.parquet"
_QUESTIONS = "questions.jsonl"


@dataclass(frozen=True)
class ArmResult:
    """The test loss of an arm in nats per token, and what it is beside others'.

    `against` has the difference to every other arm. `difference` is the one to repetition in full,
    None for repetition itself. `p_adjusted` is its p-value, adjusted for the number of arms and of
    looks; None for oracles and ensembles, of which it is no claim that they are better.
    `oracle_share` is (arm - repetition) / (oracle - repetition): None where there is no other arm
    that is the oracle, and where the oracle's own gain is not shown.
    """

    loss: Interval
    perplexity: Interval
    bits_per_byte: Interval
    loss_by_seed: tuple[float, ...]
    against: dict[str, Difference]
    difference: Estimate | None = None
    p_adjusted: float | None = None
    oracle_share: Interval | None = None


@dataclass(frozen=True)
class Power:
    """What the noise of a run lets one see: the variance components of the difference between
    `subject` and repetition, over so many items, and by number of seeds the smallest true
    difference that is shown four times in five."""

    subject: str
    noise: Components
    items: int
    detectable: dict[int, float]


@dataclass(frozen=True)
class ArmComparison:
    """All arms at one checkpoint.

    `kinds` says what each arm is by its recipe, `subject` which one the verdict is about, `oracle`
    which one shares are of, `more_compute` which had more of it, in a sentence. `looks` are the
    numbers of seeds at which this run was evaluated, this one last. `groups` has the loss by group
    of documents and arm. `power` is None without a subject or a second seed.
    """

    arms: dict[str, ArmResult]
    kinds: dict[str, str]
    subject: str | None
    oracle: str | None
    more_compute: str
    seeds: int
    looks: tuple[int, ...]
    docs: int
    tokens: int
    confidence: float
    groups: dict[str, dict[str, Interval]]
    power: Power | None
    verdict: str

    def has_share(self, arm: str) -> bool:
        """Whether there is an oracle whose gain the arm may have a share of."""
        return self.oracle is not None and arm not in (self.oracle, REPETITION)


@dataclass(frozen=True)
class AnswerResult:
    """The answers of an arm to some items: the share answered right, the same by likelihood per
    character, the nats of the right continuation, and those of the right choice among all (None
    where nothing is to choose); and the difference of the first to repetition's."""

    items: int
    acc: Interval
    acc_norm: Interval
    nll: Interval
    choice_nll: Interval | None
    difference: Difference


@dataclass(frozen=True)
class TaskResult:
    """The answers to a task by group of its items, `all` first, and arm; `items` counts those that
    no training text holds."""

    items: int
    groups: dict[str, dict[str, AnswerResult]]


@dataclass(frozen=True)
class Contamination:
    """Of a task of ours: its items, how many of them a training text holds, how many are too short
    to tell, and what guessing gets, if that is known."""

    items: int
    seen: int
    short: int
    chance: float | None


@dataclass(frozen=True)
class LossBounds:
    """The least loss there is in a known world, in nats per token: for one who knows the world, and
    for one who knows how worlds are made and has read D_pretrain."""

    knows_world: float
    read_corpus: float


@dataclass(frozen=True)
class DataEfficiency:
    """(unique real tokens, loss) of the arms of real text alone, and how many of these tokens each
    other arm is `worth`; None beyond what was measured."""

    points: tuple[tuple[int, float], ...]
    worth: dict[str, float | None]


class DocumentLoss(NamedTuple):
    """The loss of a test document by one model at one checkpoint, in nats, and its tokens."""

    arm: str
    seed: int
    checkpoint: str
    doc: int
    loss: float
    tokens: int


@declared
@dataclass(frozen=True, repr=False)
class Evaluation:
    """All arms compared, at both checkpoints.

    `checkpoint` is the one that the verdict is about. `questions` has the answers by task,
    `contamination` what was left out of them. `parts` has nats per document by group of documents
    (`all` first), arm and part of a document; `world` the least losses by group, where the corpus
    is a known world; `sweeps` the trials of every arm that has some.
    """

    checkpoint: Literal["best", "last"]
    token_counts: dict[str, dict[int, TokenCounts]]
    best: ArmComparison
    last: ArmComparison
    efficiency: DataEfficiency
    contamination: dict[str, Contamination]
    questions: dict[str, TaskResult]
    parts: dict[str, dict[str, dict[str, Interval]]]
    world: dict[str, LossBounds] | None
    sweeps: dict[str, Sweep]

    @property
    def chosen(self) -> ArmComparison:
        """The arms at the checkpoint of the verdict."""
        return self.best if self.checkpoint == "best" else self.last

    @property
    def other(self) -> ArmComparison:
        """The arms at the other checkpoint."""
        return self.last if self.checkpoint == "best" else self.best

    @property
    def other_checkpoint(self) -> str:
        """The name of the other checkpoint."""
        return "last" if self.checkpoint == "best" else "best"

    @property
    def arms(self) -> dict[str, ArmResult]:
        """The figures of the arms at the checkpoint of the verdict."""
        return self.chosen.arms

    @property
    def verdict(self) -> str:
        """What all of it shows, in a sentence or two."""
        return self.chosen.verdict

    @property
    def counts_by_arm(self) -> dict[str, TokenCounts]:
        """The token counts of each arm's first seed; those of the others are alike."""
        return {arm: next(iter(by_seed.values())) for arm, by_seed in self.token_counts.items()}

    def summary(self) -> str:
        """A line per arm and the verdict."""
        lines = []
        for arm, result in self.arms.items():
            loss = result.loss
            lines.append(f"{arm}: test loss {loss.value:.4f} [{loss.low:.4f}, {loss.high:.4f}]")
        lines.append(self.verdict)
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """A row for every arm: its figures, each with the ends of its interval, and its p."""
        rows = []
        for arm, result in self.arms.items():
            row: dict[str, object] = {"arm": arm, "kind": self.chosen.kinds[arm]}
            row |= _columns("loss", result.loss)
            row |= _columns("perplexity", result.perplexity)
            row |= _columns("bits_per_byte", result.bits_per_byte)
            if result.difference is not None:
                row |= _columns("difference", result.difference.interval)
                row["p"] = result.difference.p
            if result.p_adjusted is not None:
                row["p_adjusted"] = result.p_adjusted
            if result.oracle_share is not None:
                row |= _columns("oracle_share", result.oracle_share)
            rows.append(row)
        return notebook.pandas().DataFrame(rows)

    def __repr__(self) -> str:
        return f"Evaluation({', '.join(self.arms)})"

    def _repr_html_(self) -> str:
        rows = []
        for arm, result in self.arms.items():
            loss = "{:.4f} ({:.4f} to {:.4f})".format(*result.loss)
            gap = ""
            p = ""
            if result.difference is not None:
                gap = "{:+.4f} ({:+.4f} to {:+.4f})".format(*result.difference.interval)
                p = f"{result.difference.p if result.p_adjusted is None else result.p_adjusted:.2g}"
            rows.append([arm, loss, gap, p])
        header = ["arm", "loss", "difference to repetition", "p, adjusted"]
        return notebook.table(self.verdict, header, rows)

    def as_json(self) -> dict[str, Any]:
        """It as `evaluate.json` has it."""
        return dict(plain(self))

    def save(
        self,
        folder: Path,
        losses: Iterable[DocumentLoss],
        questions: Sequence[Mapping[str, object]],
    ) -> None:
        """Write `evaluate.json`, `losses.parquet`, and `questions.jsonl` with a line for every
        question of ours."""
        lines = [json.dumps(question) + "\n" for question in questions]
        (folder / _QUESTIONS).write_text("".join(lines), "utf-8")
        table = pa.Table.from_pylist([row._asdict() for row in losses])
        pq.write_table(table, folder / _LOSSES, compression="zstd")
        write_json(folder / _RESULT, self.as_json())

    @staticmethod
    def open(folder: Path) -> Evaluation:
        """The figures. Raises CorruptArtifact where they are not what the manifest lists."""
        return typed(read_listed(folder, _RESULT), Evaluation, folder / _RESULT)


def _columns(name: str, figure: Interval) -> dict[str, float]:
    return {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}


def read_losses(folder: Path) -> list[DocumentLoss]:
    """The rows of `losses.parquet`; none where there is no such file.

    Raises CorruptArtifact where it is damaged.
    """
    path = folder / _LOSSES
    if not path.exists():
        return []
    table = read_table(path, DocumentLoss._fields)
    return [DocumentLoss(**row) for row in table.to_pylist()]
