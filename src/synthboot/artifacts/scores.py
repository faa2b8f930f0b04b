"""How one model did on the test set and on questions, and the files that lie in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Float64, Int64

from synthboot.artifacts.store import read_table

CHECKPOINTS = ("best", "last")
FIGURES = ("acc", "acc_norm", "nll", "choice_nll")
_LOSSES = "losses.parquet"
_ANSWERS = "answers.parquet"


@dataclass(frozen=True)
class Answers:
    """What a model made of each question, in the order in which they were asked.

    `task` names the task of a question, `item` what is asked in it (its hash, or its number in a
    task of lm-eval), `group` what it is grouped by. Columns of `figures` are FIGURES: answered
    right, right by likelihood per character, the nats of the right continuation, and those of the
    right choice among all.
    """

    task: tuple[str, ...]
    item: tuple[str, ...]
    group: tuple[str, ...]
    figures: Float64[np.ndarray, "item 4"]

    def __len__(self) -> int:
        return len(self.task)


@dataclass(frozen=True)
class Scores:
    """By checkpoint the loss of every token of the test set in nats, and answers at one of them.

    `document` says of each token to which document of the test set it belongs, from 0.
    """

    document: Int64[np.ndarray, " token"]
    losses: Mapping[str, Float32[np.ndarray, " token"]]
    answers: Answers

    def by_document(
        self, checkpoint: str
    ) -> tuple[Float64[np.ndarray, " doc"], Int64[np.ndarray, " doc"]]:
        """The summed loss of every document, in nats, and its number of tokens."""
        return np.bincount(self.document, self.losses[checkpoint]), np.bincount(self.document)

    def save(self, folder: Path) -> None:
        """Write `losses.parquet`, a row for each token, and `answers.parquet`, one for each
        question."""
        losses = {name: self.losses[name] for name in CHECKPOINTS}
        pq.write_table(
            pa.table({"document": self.document, **losses}),
            folder / _LOSSES,
            compression="zstd",
        )
        table = {
            "task": pa.array(self.answers.task, pa.string()),
            "item": pa.array(self.answers.item, pa.string()),
            "group": pa.array(self.answers.group, pa.string()),
        }
        for column, name in enumerate(FIGURES):
            table[name] = pa.array(self.answers.figures[:, column])
        pq.write_table(pa.table(table), folder / _ANSWERS, compression="zstd")

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder holds scores."""
        return (folder / _LOSSES).is_file() and (folder / _ANSWERS).is_file()

    @staticmethod
    def open(folder: Path) -> Scores:
        """Read what `save` wrote."""
        losses = read_table(folder / _LOSSES)
        answers = read_table(folder / _ANSWERS)
        figures = [answers[name].to_numpy() for name in FIGURES]
        return Scores(
            document=losses["document"].to_numpy(),
            losses={name: losses[name].to_numpy() for name in CHECKPOINTS},
            answers=Answers(
                task=tuple(answers["task"].to_pylist()),
                item=tuple(answers["item"].to_pylist()),
                group=tuple(answers["group"].to_pylist()),
                figures=np.stack(figures, axis=1),  # (item, figure)
            ),
        )
