"""Arms whose models each read another text, beside the arms of the first experiment, which all read one.

python experiments/2026-11-27-tuned-again/compare.py --run runs/tuned-again    # keeps the losses, too
python experiments/2026-11-27-tuned-again/compare.py                           # again from what was kept

No seed was trained in two arms here, so that a difference is one of means (Welch's t-test over models).
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from synthboot import statistics

HERE = Path(__file__).parent
STORE = HERE / "losses.parquet"
A_TEXT = 0.0095
"""What a draw of both texts adds to the difference, one standard deviation: 2026-11-27-other-texts, of smaller writers."""

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

    found = stats.ttest_ind(here["sbp"], here["self"], equal_var=False)
    low, high = found.confidence_interval()
    value = here["sbp"].mean() - here["self"].mean()
    print("\n| arm | against self | p |\n|---|---|--:|")
    print(f"| sbp | {value:+.4f} ({low:+.4f} to {high:+.4f}) | {found.pvalue:.2g} |")

    # seeds alone tell of the first experiment how it would come out again with its two texts
    earlier = before["sbp"] - before["self"]
    each = ((earlier.mean(), np.hypot(stats.sem(earlier), A_TEXT)), (value, abs(value / found.statistic)))
    weights = np.array([error**-2 for _, error in each])
    both = np.average([mean for mean, _ in each], weights=weights)
    listed = ", ".join(f"{mean:+.4f} +- {error:.4f}" for mean, error in each)
    print(f"\nfirst and second, with standard errors: {listed}; together {both:+.4f} +- {weights.sum() ** -0.5:.4f}")


if __name__ == "__main__":
    main()
