"""Do the intervals of `synthboot.statistics` hold what they promise? Simulated differences whose truth is known.

    python benchmarks/coverage.py [--trials 4000] [--json out.json]

Differences are a truth + noise of seeds + noise of documents + noise of both together. `seeds' noise` is the standard error
that seeds bring to the mean over the one that documents bring. Prints, by seeds, seeds' noise and number of documents, how
often the 95 % interval holds the truth, and how often p <= 0.05 and p <= 0.01 where there is no difference; beside it what
the percentiles of a bootstrap over documents and seeds would do (the project's rule until now). Then how often an interval
of a ratio holds it, and how often a difference of the size that `detectable` names is found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from synthboot import statistics

SEEDS = (2, 3, 5, 10)
NOISE = (0.0, 0.3, 1.0, 2.0, 3.0, 10.0)
DOCS = (50, 200, 1_000)
INTERACTION = (0.3, 1.0, 3.0)
"""Standard deviation of what seed and document make together, beside that of documents."""


def differences(rng: np.random.Generator, seeds: int, docs: int, noise: float, both: float, truth: float) -> np.ndarray:
    """One simulated run: (seed, document)."""
    of_seed = noise * np.sqrt(seeds / docs) * rng.standard_normal((seeds, 1))
    of_doc = rng.standard_normal((1, docs))
    return truth + of_seed + of_doc + both * rng.standard_normal((seeds, docs))


def bootstrap_misses(values: np.ndarray, rng: np.random.Generator, resamples: int = 400) -> bool:
    """Whether the percentiles of resampled documents and seeds leave zero out at 95 %."""
    seeds, docs = values.shape
    weights = rng.multinomial(docs, np.full(docs, 1 / docs), resamples) / docs
    picks = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    means = np.einsum("rs,sd,rd->r", picks, values, weights, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return not low <= 0 <= high


def coverage(trials: int) -> list[dict[str, float]]:
    """A row for every kind of run."""
    rows = []
    for seeds in SEEDS:
        for noise in NOISE:
            for docs in DOCS:
                rows.append(one_kind(np.random.default_rng([seeds, docs, int(10 * noise)]), seeds, docs, noise, trials))
    return rows


def one_kind(rng: np.random.Generator, seeds: int, docs: int, noise: float, trials: int) -> dict[str, float]:
    """How often the interval holds a truth of zero and of half a standard deviation, and what p says of the former."""
    held, at_5, at_1, boot = [], [], [], []
    for trial in range(trials):
        both = INTERACTION[trial % len(INTERACTION)]
        truth = 0.5 * (trial % 2)
        values = differences(rng, seeds, docs, noise, both, truth)
        found = statistics.estimate(values)
        held.append(found.low <= truth <= found.high)
        if not truth:
            at_5.append(found.p <= 0.05)
            at_1.append(found.p <= 0.01)
            if trial % 20 == 0:
                boot.append(bootstrap_misses(values, rng))
    return {
        "seeds": seeds, "docs": docs, "noise": noise, "coverage": float(np.mean(held)), "p<=0.05": float(np.mean(at_5)),
        "p<=0.01": float(np.mean(at_1)), "bootstrap p<=0.05": float(np.mean(boot)),
    }  # fmt: skip


def ratios(trials: int) -> list[dict[str, float]]:
    """How often a ratio's interval holds it, where it is given; the denominator is 5 and 15 of its standard errors."""
    rows = []
    for seeds in (3, 5):
        for strength in (5.0, 15.0):
            rng = np.random.default_rng([seeds, int(strength)])
            held = []
            for _ in range(trials):
                error = np.sqrt(2 / 200)
                below = differences(rng, seeds, 200, 1.0, 1.0, -strength * error)
                above = 0.4 * below + differences(rng, seeds, 200, 1.0, 1.0, 0.0)
                found = statistics.ratio(above, below)
                if found is not None:
                    held.append(found.low <= 0.4 <= found.high)
            rows.append({"seeds": seeds, "strength": strength, "given": len(held) / trials, "coverage": float(np.mean(held))})
    return rows


def power(trials: int) -> list[dict[str, float]]:
    """How often a true difference of the size that `detectable` names is found."""
    rows = []
    for seeds in (3, 5, 10):
        for noise in (0.0, 1.0, 3.0):
            rng = np.random.default_rng([seeds, int(noise), 1])
            known = statistics.Components(seed=noise**2 * seeds / 200, item=1.0, both=1.0)
            truth = statistics.detectable(known, seeds, 200)
            found = [statistics.estimate(differences(rng, seeds, 200, noise, 1.0, truth)).low > 0 for _ in range(trials)]
            rows.append({"seeds": seeds, "noise": noise, "power": float(np.mean(found))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = coverage(asked.trials)
    print("| seeds | seeds' noise | documents | 95 % interval holds the truth | p <= 0.05 | p <= 0.01 | bootstrap p <= 0.05 |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for r in rows:
        shares = " | ".join(f"{100 * r[k]:.1f} %" for k in ("coverage", "p<=0.05", "p<=0.01", "bootstrap p<=0.05"))
        print(f"| {r['seeds']} | {r['noise']:g} | {r['docs']:,} | {shares} |")
    of_ratios, of_power = ratios(asked.trials // 4), power(asked.trials // 4)
    print("\n| seeds | denominator over its error | interval given | holds the ratio |\n|--:|--:|--:|--:|")
    for r in of_ratios:
        print(f"| {r['seeds']} | {r['strength']:g} | {r['given']:.1%} | {r['coverage']:.1%} |")
    print("\n| seeds | seeds' noise | a difference of `detectable` is found |\n|--:|--:|--:|")
    for r in of_power:
        print(f"| {r['seeds']} | {r['noise']:g} | {r['power']:.1%} |")
    if asked.json:
        asked.json.write_text(json.dumps({"coverage": rows, "ratios": of_ratios, "power": of_power}, indent=1) + "\n")


if __name__ == "__main__":
    main()
