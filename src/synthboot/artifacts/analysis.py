"""Measures of real and synthetic text, and examples of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from synthboot.artifacts.store import read_listed, read_table
from synthboot.data.disk import write_json

_JUDGED = "judged.parquet"


@dataclass(frozen=True)
class JudgedText:
    """What one judge gave one text, as it read it (cut, with its d1 or the real documents nearest
    to it): faulty above the `threshold`. `refused` says why the judge is not believed; a score that
    is not-a-number is no answer."""

    judge: str
    question: str
    kind: str
    score: float
    threshold: float
    refused: str
    text: str
    d1: str
    references: tuple[str, ...]

    @property
    def is_faulty(self) -> bool:
        """Whether the judge calls it so."""
        return self.score > self.threshold


_SCHEMA = pa.schema(
    {
        "judge": pa.string(),
        "question": pa.string(),
        "kind": pa.string(),
        "score": pa.float64(),
        "threshold": pa.float64(),
        "refused": pa.string(),
        "text": pa.string(),
        "d1": pa.string(),
        "references": pa.list_(pa.string()),
    }
)


def judged_texts(folder: Path) -> list[JudgedText]:
    """What judges gave every text, in the order in which they were asked; nothing where nobody
    was."""
    if not (folder / _JUDGED).exists():
        return []
    rows = read_table(folder / _JUDGED).to_pylist()
    return [JudgedText(**row | {"references": tuple(row["references"])}) for row in rows]


@dataclass(frozen=True)
class Analysis:
    """`result` are the measures; `examples` show sampled documents beside their d1, `spread` pairs
    of all similarities."""

    result: dict[str, Any]
    examples: list[dict[str, Any]]
    spread: list[dict[str, Any]]

    def save(self, folder: Path, judged: Sequence[JudgedText] = ()) -> None:
        """Write `analyze.json`, `examples.json` and `spread.json`, and what was judged, if anything
        was, to `judged.parquet`."""
        if judged:
            table = pa.Table.from_pylist([vars(row) for row in judged], _SCHEMA)
            pq.write_table(table, folder / _JUDGED, compression="zstd")
        write_json(folder / "analyze.json", self.result)
        write_json(folder / "examples.json", self.examples)
        write_json(folder / "spread.json", self.spread)

    @staticmethod
    def open(folder: Path) -> Analysis:
        """Read what `save` wrote. Raises CorruptArtifact where it is not what was recorded."""
        return Analysis(
            result=read_listed(folder, "analyze.json"),
            examples=read_listed(folder, "examples.json"),
            spread=read_listed(folder, "spread.json"),
        )
