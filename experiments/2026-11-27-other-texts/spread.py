"""How far arms of other texts are apart, beside arms of other seeds of training.

python experiments/2026-11-27-other-texts/spread.py --runs runs/other-texts-study/seed-*     # keeps the losses, too
python experiments/2026-11-27-other-texts/spread.py                                          # again from what was kept

Texts 1 to 5 were written with `seed` 1 to 5 and read with training seed 0. Text 0 and the other training seeds, which all read
it, are those of worn-articles.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from synthboot import statistics

HERE = Path(__file__).parent
STORE = HERE / "losses.parquet"
TABLE = runpy.run_path(str(HERE.parent / "table.py"))


def by_text(runs: list[Path]) -> pa.Table:
    """The losses of every run, its `seed` in the place of a training seed."""
    tables = []
    for run in runs:
        table = TABLE["kept"]([run])
        number = int(run.name.removeprefix("seed-"))
        tables.append(table.set_column(1, "seed", pa.array([number] * len(table), pa.int64())))
    return pa.concat_tables(tables)


def spread(losses: np.ndarray) -> str:
    """Losses one by one, and their standard deviation."""
    return f"{', '.join(f'{loss:.4f}' for loss in losses)} | {losses.std(ddof=1):.4f}"


def main() -> None:
    """Keep the losses where runs are given, and print what they show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+")
    args = parser.parse_args()
    if args.runs:
        pq.write_table(by_text(args.runs), STORE, compression="zstd", use_dictionary=["arm"])
    others, tokens = TABLE["losses"](pq.read_table(STORE))
    seeds, _ = TABLE["losses"](pq.read_table(HERE.parent / "2026-11-27-worn-articles" / "losses.parquet"))

    print("| arm | other training seeds on text 0 | sd | other texts, training seed 0 | sd | ratio of variances | p |")
    print("|---|---|--:|---|--:|--:|--:|")
    squares = {"seeds": 0.0, "texts": 0.0}
    freedom = {"seeds": 0, "texts": 0}
    for arm in ("sbp", "self"):
        of_seeds = np.array(statistics.estimate(seeds[arm].loss, tokens).by_seed)
        of_texts = np.array(statistics.estimate(others[arm].loss, tokens).by_seed)
        of_texts = np.concatenate((of_seeds[:1], of_texts))  # text 0, training seed 0
        for name, losses in (("seeds", of_seeds), ("texts", of_texts)):
            squares[name] += float(((losses - losses.mean()) ** 2).sum())
            freedom[name] += len(losses) - 1
        print(f"| {arm} | {spread(of_seeds)} | {spread(of_texts)} | {compared(of_seeds, of_texts)} |")

    variance = {name: squares[name] / freedom[name] for name in squares}
    ratio = variance["texts"] / variance["seeds"]
    chance = stats.f(freedom["texts"], freedom["seeds"])
    interval = f"({ratio / chance.ppf(0.975):.2f} to {ratio / chance.ppf(0.025):.2f}), p = {chance.sf(ratio):.2g}"
    print(f"\nboth arms: the variance over texts is {ratio:.2f} times that over seeds {interval}")
    tell_gaps(others, seeds, tokens)
    tell_shifts(others, seeds, tokens)


def tell_gaps(others: dict[str, Any], seeds: dict[str, Any], tokens: np.ndarray) -> None:
    """Print what sbp is worth beside self over texts and over seeds, and what a draw of texts adds."""
    gaps = {}
    for name, of in (("texts, training seed 0", others), ("training seeds on text 0", seeds)):
        gap = of["sbp"].against(of["self"], tokens)
        gaps[name] = np.array(gap.by_seed)
        line = f"sbp beside self, over {len(gap.by_seed)} {name}: {TABLE['span'](gap)}, p = {gap.p:.2g}"
        print(f"{line}, sd {gaps[name].std(ddof=1):.4f}")
    of_texts, of_seeds = (gap.var(ddof=1) for gap in gaps.values())
    beyond = max(0.0, of_texts - of_seeds) ** 0.5
    print(f"one draw of both texts moves it by {beyond:.4f} (sd) beyond what a training seed does")


def tell_shifts(others: dict[str, Any], seeds: dict[str, Any], tokens: np.ndarray) -> None:
    """Print how much more arms of other texts lose than those of text 0."""
    for arm in ("sbp", "self"):
        elsewhere, here = (statistics.estimate(of[arm].loss, tokens).by_seed for of in (others, seeds))
        shift = stats.ttest_ind(elsewhere, here)
        low, high = shift.confidence_interval()
        more = np.mean(elsewhere) - np.mean(here)
        print(f"{arm}: texts 1 to 5 lose {more:+.4f} ({low:+.4f} to {high:+.4f}) beside text 0, p = {shift.pvalue:.2g}")


def compared(of_seeds: np.ndarray, of_texts: np.ndarray) -> str:
    """The ratio of their variances, and how likely one so large is where texts add nothing (one-sided F test)."""
    ratio = of_texts.var(ddof=1) / of_seeds.var(ddof=1)
    return f"{ratio:.1f} | {stats.f.sf(ratio, len(of_texts) - 1, len(of_seeds) - 1):.2g}"


if __name__ == "__main__":
    main()
