"""What the comparison of all arms leaves: figures, the loss of every document, the questions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthboot import notebook
from synthboot.artifacts.scores import CHECKPOINTS, FIGURES
from synthboot.artifacts.store import read_listed, read_table
from synthboot.data.disk import write_json
from synthboot.statistics import Difference, Interval

if TYPE_CHECKING:
    import pandas as pd

_RESULT = "evaluate.json"
_LOSSES = "losses.parquet"
_QUESTIONS = "questions.jsonl"

_OF_ARM = ("loss", "perplexity", "bits_per_byte", "difference", "oracle_share")


@dataclass(frozen=True, repr=False)
class Evaluation:
    """`result` is what `evaluate.json` holds.

    `losses` has a row for every model, checkpoint and test document (arm, seed, checkpoint, doc,
    loss in nats, tokens), `questions` one for every question of ours; both are empty where only the
    result was read.
    """

    result: dict[str, Any]
    losses: Sequence[Mapping[str, object]] = ()
    questions: Sequence[Mapping[str, object]] = ()

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
            loss = scores["loss"]
            lines.append(f"{arm}: test loss {loss.value:.4f} [{loss.low:.4f}, {loss.high:.4f}]")
        lines.append(self.result["verdict"])
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """A row for every arm: its figures, each with the ends of its interval, and its p."""
        rows = []
        for arm, scores in self.arms.items():
            row: dict[str, object] = {"arm": arm, "kind": self.chosen["kinds"][arm]}
            for name in _OF_ARM:
                for end, value in zip(("", "_low", "_high"), scores.get(name) or (), strict=False):
                    row[name + end] = value
            row |= {name: scores[name] for name in ("p", "p_adjusted") if name in scores}
            rows.append(row)
        return notebook.pandas().DataFrame(rows)

    def __repr__(self) -> str:
        return f"Evaluation({', '.join(self.arms)})"

    def _repr_html_(self) -> str:
        rows = []
        for arm, scores in self.arms.items():
            loss = "{:.4f} ({:.4f} to {:.4f})".format(*scores["loss"])
            gap = scores.get("difference")
            difference = "" if gap is None else "{:+.4f} ({:+.4f} to {:+.4f})".format(*gap)
            p = scores.get("p_adjusted", scores.get("p"))
            rows.append([arm, loss, difference, "" if p is None else f"{p:.2g}"])
        header = ["arm", "loss", "difference to repetition", "p, adjusted"]
        return notebook.table(self.result["verdict"], header, rows)

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
        result = read_listed(folder, _RESULT)
        _restore(result)
        return Evaluation(result)


def _restore(result: dict[str, Any]) -> None:
    """Make the lists that JSON has for them intervals and differences again."""
    for checkpoint in CHECKPOINTS:
        for arm in result[checkpoint]["arms"].values():
            _restore_intervals(arm, _OF_ARM)
            for other, figures in arm["against"].items():
                arm["against"][other] = Difference(*figures)
        for by_arm in result[checkpoint]["groups"].values():
            _restore_intervals(by_arm, by_arm)

    for task in result["questions"].values():
        for by_arm in task["groups"].values():
            for answers in by_arm.values():
                _restore_intervals(answers, FIGURES)
                answers["difference"] = Difference(*answers["difference"])
    for by_arm in result.get("parts", {}).values():
        for by_part in by_arm.values():
            _restore_intervals(by_part, by_part)


def _restore_intervals(figures: dict[str, Any], names: Iterable[str]) -> None:
    for name in names:
        if figures.get(name) is not None:
            figures[name] = Interval(*figures[name])


def read_losses(folder: Path) -> list[dict[str, Any]]:
    """The rows of `losses.parquet`; none where there is no such file."""
    path = folder / _LOSSES
    return read_table(path).to_pylist() if path.exists() else []
