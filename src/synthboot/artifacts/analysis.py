"""Measures of real and synthetic text, and examples of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthboot.data.disk import read_json, write_json


@dataclass(frozen=True)
class Analysis:
    """`result` are the measures; `examples` show sampled documents beside their d1, `spread` pairs
    of all similarities."""

    result: dict[str, Any]
    examples: list[dict[str, Any]]
    spread: list[dict[str, Any]]

    def save(self, folder: Path) -> None:
        """Write `analyze.json`, `examples.json` and `spread.json`."""
        write_json(folder / "analyze.json", self.result)
        write_json(folder / "examples.json", self.examples)
        write_json(folder / "spread.json", self.spread)

    @staticmethod
    def open(folder: Path) -> Analysis:
        """Read what `save` wrote."""
        return Analysis(
            result=read_json(folder / "analyze.json"),
            examples=read_json(folder / "examples.json"),
            spread=read_json(folder / "spread.json"),
        )
