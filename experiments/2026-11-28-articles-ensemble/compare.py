"""What the table cannot say: each arm beside text that a model from outside wrote, whose models read the same documents.

python experiments/2026-11-28-articles-ensemble/compare.py
"""

from __future__ import annotations

import runpy
from pathlib import Path

import pyarrow.parquet as pq

HERE = Path(__file__).parent
WRITTEN = HERE.parent / "2026-11-27-tuned-writer"
"""Arms with a quarter of text by SmolLM2-135M, tuned on related articles, on random ones or on d2 alone."""

TABLE = runpy.run_path(str(HERE.parent / "table.py"))


def main() -> None:
    """Print a row for each arm here and each there, by the seeds of both."""
    here, tokens = TABLE["losses"](pq.read_table(HERE / "losses.parquet"))
    there, _ = TABLE["losses"](pq.read_table(WRITTEN / "losses.parquet"))
    print("| arm | against, by an external synthesizer | difference | p | seeds |\n|---|---|---|--:|--:|")
    for ours in here:
        for theirs in ("sbp", "self", "random"):
            found = here[ours].against(there[theirs], tokens)
            seeds = len(set(here[ours].seeds) & set(there[theirs].seeds))
            difference = f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
            print(f"| {ours} | {theirs} | {difference} | {found.p:.2g} | {seeds} |")


if __name__ == "__main__":
    main()
