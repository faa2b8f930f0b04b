"""Is it safe to read the ends of an old interval as the extreme seeds? Simulated runs without any difference.

    python experiments/2026-11-25-claims-restated/simulate.py

Runs of three seeds and 200 documents from benchmarks/coverage.py. Prints, by seeds' noise, how often the old rule
(percentiles of resampled seeds and documents), `synthboot.statistics` and the reading say p <= 0.05, and how often the
reading's p is at least nine tenths of the statistics'.
"""

import sys
from pathlib import Path

import numpy as np

from synthboot import statistics

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from benchmarks.coverage import INTERACTION, differences

RUNS, RESAMPLES = 400, 1_000


def old_rule(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Interval and p-value by percentiles of resampled seeds and documents."""
    seeds, docs = values.shape
    weights = rng.multinomial(docs, np.full(docs, 1 / docs), RESAMPLES) / docs
    picks = rng.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    means = np.einsum("rs,rs->r", picks, weights @ values.T)
    low, high = np.quantile(means, [0.025, 0.975])
    return low, high, 2 * min(np.mean(means <= 0), np.mean(means >= 0))


def reading(mean: float, low: float, high: float) -> float:
    """p, if the ends are two of the seeds and the mean gives the third."""
    gaps = np.array([low, high, 3 * mean - low - high])
    return statistics.estimate(np.repeat(gaps[:, None], 2, axis=1)).p


print("| seeds' noise | old rule | statistics | reading | reading no surer than statistics |\n|--:|--:|--:|--:|--:|")
for noise in (0, 0.3, 1, 3, 10):
    rng = np.random.default_rng(int(10 * noise))
    rows = []
    for run in range(RUNS):
        values = differences(rng, 3, 200, noise, INTERACTION[run % 3], 0.0)
        low, high, old = old_rule(values, rng)
        rows.append((old, statistics.estimate(values).p, reading(values.mean(), low, high)))
    p = np.array(rows)  # (run, rule)
    found = (p <= 0.05).mean(0)
    safe = (p[:, 2] >= 0.9 * p[:, 1]).mean()
    print(f"| {noise} | {found[0]:.1%} | {found[1]:.1%} | {found[2]:.1%} | {safe:.1%} |", flush=True)
