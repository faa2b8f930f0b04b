"""Sampling speed of the embedded engine beside transformers.generate, on one core, in one run.

The two take turns; each figure is the median of the rounds, and the claim is their ratio. `generate` runs at the better
of two batch sizes, on prompts sorted by length, with its own key-value cache. Prints a table and writes JSON.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

import numpy as np
import torch

from synthboot import config
from synthboot.lm import model as models
from synthboot.lm.sample import EmbeddedSampler, Request

SIZES = {
    "demo": config.Model(layers=3, width=96, heads=3, kv_heads=1, seq_len=512),
    "tiny": config.Model(layers=4, width=256, heads=4, seq_len=512),
}


class Generate:
    """The peer, asked for tokens and nothing else."""

    def __init__(self, model: Any, batch: int) -> None:
        self.model, self.batch = model, batch

    @torch.inference_mode()
    def sample(self, asked: list[Request]) -> list[Any]:
        """Continuations of left-padded prompts, batches of like length."""
        results = []
        order = sorted(asked, key=lambda r: len(r.prompt))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            width = max(len(r.prompt) for r in chosen)
            tokens = torch.zeros(len(chosen), width, dtype=torch.int64)
            mask = torch.zeros_like(tokens)
            for row, request in enumerate(chosen):
                tokens[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
                mask[row, width - len(request.prompt) :] = 1
            found = self.model.generate(
                tokens, attention_mask=mask, max_new_tokens=chosen[0].max_tokens, do_sample=True, temperature=1.0,
                top_p=0.9, top_k=0, eos_token_id=0, pad_token_id=0,
            )  # fmt: skip
            for output in found[:, width:].tolist():
                results.append(SimpleNamespace(tokens=output[: output.index(0)] if 0 in output else output))
        return results


def rate(engine: Any, asked: list[Request]) -> float:
    """Tokens per second."""
    start = time.perf_counter()
    results = engine.sample(asked)
    return sum(len(r.tokens) for r in results) / (time.perf_counter() - start)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-sample.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for name, size in SIZES.items():
        vocab = 2_048 if name == "demo" else 4_096
        model = models.build(size, vocab, 0).eval()
        rng = np.random.default_rng(0)
        prompts = [tuple(rng.integers(2, vocab, rng.integers(60, 170)).tolist()) for _ in range(options.requests)]
        asked = [Request(p, i, options.tokens) for i, p in enumerate(prompts)]
        engines: dict[str, Any] = {"synthboot": EmbeddedSampler(model, 0, temperature=1.0, top_p=0.9, batch=64)}
        engines |= {f"generate, batch {b}": Generate(model, b) for b in (32, 64)}
        rates: dict[str, list[float]] = {key: [] for key in engines}
        for _ in range(options.rounds):
            for key, engine in engines.items():
                rates[key].append(rate(engine, asked))
        medians = {key: statistics.median(values) for key, values in rates.items()}
        peer = max(v for k, v in medians.items() if k != "synthboot")
        figures[name] = {"tokens_per_second": medians, "ratio": medians["synthboot"] / peer, "rounds": rates}
        for key, value in medians.items():
            sys.stdout.write(f"{name:6} {key:20} {value:8,.0f} tokens/s\n")
        sys.stdout.write(f"{name:6} ratio to the better  {medians['synthboot'] / peer:8.2f}\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
