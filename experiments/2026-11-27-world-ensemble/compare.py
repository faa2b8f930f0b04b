"""What the table cannot say: answers, whether two cores train what an H100 does, and each arm beside all ten seeds of sbp.

python experiments/2026-11-27-world-ensemble/compare.py --run runs/world-ensemble --check runs/world-own-texts-dropout
python experiments/2026-11-27-world-ensemble/compare.py    # again from what was kept

No seed is shared in the last, so that a difference is one of means (Welch's t-test over models).
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from synthboot import statistics
from synthboot.artifacts.scores import Scores
from synthboot.recipes import folder_of

HERE = Path(__file__).parent
BEFORE = HERE.parent / "2026-11-27-world-own-texts"
CHECK = HERE / "check.parquet"
"""Repetition of the first seed, trained on two cores for the dropout of BEFORE."""
ANSWERS = HERE / "answers.parquet"
"""arm, seed, right: the share of closed-book questions that a model answers right."""

TABLE = runpy.run_path(str(HERE.parent / "table.py"))


def answers(run: Path) -> pa.Table:
    """The same, of a run."""
    rows = []
    for folder in sorted(folder_of(run, "score").glob("*/seed-*")):
        asked = Scores.open(folder).answers
        rows.append((folder.parent.name, int(folder.name.removeprefix("seed-")), asked.figures[:, 0].mean()))
    return pa.table(dict(zip(("arm", "seed", "right"), zip(*rows, strict=True), strict=True)))


def main() -> None:
    """Keep the losses where a run is given, and print what they show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--check", type=Path)
    args = parser.parse_args()
    if args.run:
        pq.write_table(answers(args.run), ANSWERS)
    if args.check:
        pq.write_table(TABLE["kept"]([args.check]), CHECK, compression="zstd")
    arms, tokens = TABLE["losses"](pq.read_table(HERE / "losses.parquet"))
    before, _ = TABLE["losses"](pq.read_table(BEFORE / "losses.parquet"))

    for row in (
        pq.read_table(ANSWERS).group_by("arm").aggregate([("right", "mean"), ("right", "min"), ("right", "max")]).to_pylist()
    ):
        least, most = row["right_min"], row["right_max"]
        print(f"{row['arm']}: {row['right_mean']:.1%} of the questions right ({least:.1%} to {most:.1%} by model)")

    on_cores = TABLE["losses"](pq.read_table(CHECK))[0]["repetition"]
    on_card = before["repetition"].loss[before["repetition"].seeds.index(on_cores.seeds[0])]
    print(
        f"largest difference of a document's loss, two cores and an H100: {np.abs(on_cores.loss[0] - on_card).max():.1g} nats"
    )

    means = {
        name: np.array(statistics.estimate(arm.loss, tokens).by_seed) for name, arm in {**arms, "sbp": before["sbp"]}.items()
    }
    for name in arms:
        found = stats.ttest_ind(means[name], means["sbp"], equal_var=False)
        low, high = found.confidence_interval()
        value = means[name].mean() - means["sbp"].mean()
        print(f"{name} against all ten of sbp: {value:+.4f} ({low:+.4f} to {high:+.4f}), p = {found.pvalue:.2g}")


if __name__ == "__main__":
    main()
