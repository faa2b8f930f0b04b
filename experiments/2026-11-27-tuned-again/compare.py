"""Arms whose models each read another text, beside the arms of the first experiment, which all read one.

python experiments/2026-11-27-tuned-again/compare.py --run runs/tuned-again    # keeps the losses, too
python experiments/2026-11-27-tuned-again/compare.py                           # again from what was kept

No seed was trained in two arms here, so that a difference is one of means (Welch's t-test over models).
"""

from __future__ import annotations

import argparse
import runpy
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from synthboot import statistics

HERE = Path(__file__).parent
STORE = HERE / "losses.parquet"
TABLE = runpy.run_path(str(HERE.parent / "table.py"))


def by_model(folder: Path) -> dict[str, np.ndarray]:
    """The test loss of every model of an arm, in nats a token."""
    arms, tokens = TABLE["losses"](pq.read_table(folder / "losses.parquet"))
    return {name: np.array(statistics.estimate(arm.loss, tokens).by_seed) for name, arm in arms.items()}


def main() -> None:
    """Keep the losses where a run is given, and print what they show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    args = parser.parse_args()
    if args.run:
        pq.write_table(TABLE["kept"]([args.run]), STORE, compression="zstd", use_dictionary=["arm"])
    here, before = by_model(HERE), by_model(HERE.parent / "2026-11-27-tuned-writer")

    print("| arm | a text for each model | mean | sd | one text for ten seeds: mean | sd |\n|---|---|--:|--:|--:|--:|")
    for arm, losses in here.items():
        listed = ", ".join(f"{loss:.4f}" for loss in losses)
        of_one = f"{before[arm].mean():.4f} | {before[arm].std(ddof=1):.4f}"
        print(f"| {arm} | {listed} | {losses.mean():.4f} | {losses.std(ddof=1):.4f} | {of_one} |")

    print("\n| | a text for each model | p | one text for ten seeds |\n|---|---|--:|--:|")
    for arm, other in combinations(here, 2):
        found = stats.ttest_ind(here[arm], here[other], equal_var=False)
        low, high = found.confidence_interval()
        value = here[arm].mean() - here[other].mean()
        earlier = before[arm].mean() - before[other].mean()
        print(f"| {arm} - {other} | {value:+.4f} ({low:+.4f} to {high:+.4f}) | {found.pvalue:.2g} | {earlier:+.4f} |")


if __name__ == "__main__":
    main()
