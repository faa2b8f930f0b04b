"""What writing from related documents bought beside what they were worth to the writer, as a picture in docs/pictures.

python experiments/relation.py     # make docs writes it too
"""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from synthboot import statistics

HERE = Path(__file__).parent
TABLE = runpy.run_path(str(HERE / "table.py"))
PICTURE = HERE.parent / "docs" / "pictures" / "relation.svg"


@dataclass(frozen=True)
class Difference:
    """Of two arms' test losses, in nats a token, with a 95 % interval; `by` says by how many seeds or models."""

    value: float
    low: float
    high: float
    p: float
    by: str


@dataclass(frozen=True)
class Compared:
    """An arm of related pairs held against one that differs from it in the relation alone.

    The writer's net worth is in the row `reader` of a table of `read_in`, or of the experiment itself.
    """

    name: str
    experiment: str
    arm: str
    control: str
    reader: str
    read_in: str = ""

    def net_worth(self) -> tuple[float, float]:
        """In nats a token of d2, with its standard error."""
        found = json.loads((HERE / (self.read_in or self.experiment) / "result.json").read_text("utf-8"))
        for table in found["tables"]:
            if "net worth" not in table["columns"]:
                continue
            column = table["columns"].index("net worth")
            for row in table["rows"]:
                if row[0] == self.reader:
                    value, error = row[column].split(" +- ")
                    return float(value), float(error)
        raise ValueError(f"{self.experiment}: no net worth of {self.reader!r}")

    def difference(self) -> Difference:
        """The arm's test loss less its control's: by the same seeds, or by models where hardly a seed is shared."""
        by_arm, tokens = TABLE["losses"](pq.read_table(HERE / self.experiment / "losses.parquet"))
        ours, theirs = by_arm[self.arm], by_arm[self.control]
        shared = len(set(ours.seeds) & set(theirs.seeds))
        if shared > 1:
            found = ours.against(theirs, tokens)
            return Difference(found.value, found.low, found.high, found.p, f"{shared} seeds")

        means = [np.array(statistics.estimate(arm.loss, tokens).by_seed) for arm in (ours, theirs)]
        welch = stats.ttest_ind(*means, equal_var=False)
        low, high = welch.confidence_interval()
        models = f"{len(ours.seeds)} models and {len(theirs.seeds)}"
        return Difference(means[0].mean() - means[1].mean(), low, high, welch.pvalue, models)


COMPARED = (
    Compared("a known world", "2026-11-27-world-own-texts", "sbp", "self", "tuned on related pairs"),
    Compared("a known world", "2026-11-27-world-own-texts", "sbp", "random", "tuned on related pairs"),
    Compared(
        "articles, a pointer over four d1",
        "2026-11-26-pointer-four",
        "sbp",
        "self",
        "base and a pointer over four d1",
        "2026-11-26-pointer",
    ),
    Compared(
        "worn-out articles, a pointer over four d1",
        "2026-11-27-worn-articles",
        "sbp",
        "self",
        "related, base and a pointer over four d1",
    ),
    Compared("worn-out articles, a tenth by SmolLM2-135M", "2026-11-27-external-articles", "sbp", "self", "related pairs"),
    Compared("worn-out articles, a quarter by SmolLM2-135M", "2026-11-27-tuned-writer", "sbp", "self", "related pairs"),
    Compared("worn-out articles, a quarter by SmolLM2-135M", "2026-11-27-tuned-writer", "sbp", "random", "related pairs"),
    Compared("the same, tuned again, a text for each", "2026-11-27-tuned-again", "sbp", "self", "related pairs"),
    Compared("articles, a pointer over one d1", "2026-11-26-pointer", "sbp", "self", "base and a pointer over one d1"),
    Compared("articles, tuned on pairs", "2026-11-26-articles-controls", "sbp", "self", "related pairs"),
    Compared(
        "abstracts, a pointer over four d1",
        "2026-11-26-pointer-abstracts",
        "sbp",
        "random",
        "related, base and a pointer over four d1",
    ),
    Compared("abstracts, written by SmolLM2-135M", "2026-11-26-external-writer", "sbp", "random_pairs", "related pairs"),
    Compared("abstracts, SmolLM2-135M continued", "2026-11-26-continue", "sbp", "self", "related pairs"),
)

WIDTH, ROW, TOP = 860, 38, 66
ZERO, SCALE = 640, 2_000  # where no difference is, and the width of a nat, both in pixels
TICKS = (-0.08, -0.04, 0.0, 0.04, 0.08)
INK, FAINT, MARK = "#111827", "#6b7280", "#2563eb"


def svg() -> str:
    """A row for each comparison, the most that was read first: the difference with its interval, below zero in favour."""
    rows = sorted(((c.net_worth(), c) for c in COMPARED), key=lambda row: -row[0][0])
    height = TOP + ROW * len(rows) + 34
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(16, 24, "Read, and worth what?", 16),
        _text(16, 48, "written from related documents", 12, FAINT),
        _text(290, 48, "net worth of d1", 12, FAINT),
        _text(ZERO, 48, "test loss less the control's, nats a token, 95 %", 12, FAINT, "middle"),
    ]
    bottom = TOP + ROW * len(rows)
    for tick in TICKS:
        x = ZERO + tick * SCALE
        color = INK if tick == 0 else "#e5e7eb"
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{color}"/>')
        parts.append(_text(x, bottom + 18, f"{tick:+.2f}" if tick else "0", 12, FAINT, "middle"))
    for number, ((worth, error), compared) in enumerate(rows):
        y = TOP + ROW * number + 14
        found = compared.difference()
        low, high = ZERO + found.low * SCALE, ZERO + found.high * SCALE
        parts += [
            _text(16, y, compared.name),
            _text(16, y + 14, f"against {compared.control}, {found.by}, p = {found.p:.2g}", 11, FAINT),
            _text(290, y + 4, f"{worth:+.3f} ± {error:.3f}"),
            f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="{MARK}" stroke-width="2"/>',
            f'<circle cx="{ZERO + found.value * SCALE:.1f}" cy="{y}" r="4" fill="{MARK}"/>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str, size: int = 13, color: str = INK, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}">{words}</text>'


if __name__ == "__main__":
    PICTURE.write_text(svg(), "utf-8")
