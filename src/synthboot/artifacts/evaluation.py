"""What the comparison of all arms leaves: figures, the loss of every document, the questions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthboot.artifacts.store import read_listed, read_table
from synthboot.data.disk import write_json

_RESULT = "evaluate.json"
_LOSSES = "losses.parquet"
_QUESTIONS = "questions.jsonl"


@dataclass(frozen=True)
class Evaluation:
    """`result` is what `evaluate.json` holds.

    `losses` has a row for every model, checkpoint and test document (arm, seed, checkpoint, doc,
    loss in nats, tokens), `questions` one for every question of ours; both are empty where only the
    result was read.
    """

    result: dict[str, Any]
    losses: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    questions: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    @property
    def checkpoint(self) -> str:
        """The checkpoint that the verdict is about."""
        return str(self.result["checkpoint"])

    @property
    def chosen(self) -> dict[str, Any]:
        """The figures at that checkpoint."""
        return dict(self.result[self.checkpoint])

    @property
    def arms(self) -> dict[str, Any]:
        """Scores by arm, at that checkpoint."""
        return dict(self.chosen["arms"])

    def summary(self) -> str:
        """A line per arm and the verdict."""
        lines = []
        for arm, scores in self.arms.items():
            loss, low, high = scores["loss"]
            lines.append(f"{arm}: test loss {loss:.4f} [{low:.4f}, {high:.4f}]")
        lines.append(self.result["verdict"])
        return "\n".join(lines)

    def save(self, folder: Path) -> None:
        """Write `evaluate.json`, `losses.parquet` and `questions.jsonl`."""
        lines = [json.dumps(question) + "\n" for question in self.questions]
        (folder / _QUESTIONS).write_text("".join(lines), "utf-8")
        table = pa.Table.from_pylist([dict(row) for row in self.losses])
        pq.write_table(table, folder / _LOSSES, compression="zstd")
        write_json(folder / _RESULT, self.result)

    @staticmethod
    def open(folder: Path) -> Evaluation:
        """The result. Raises CorruptArtifact where it is not what the manifest lists."""
        return Evaluation(read_listed(folder, _RESULT))


def read_losses(folder: Path) -> list[dict[str, Any]]:
    """The rows of `losses.parquet`; none where there is no such file."""
    path = folder / _LOSSES
    return read_table(path).to_pylist() if path.exists() else []
