r"""Training all weights beside training adapters: tokens a second and peak memory, one core, a process each, in turns.

    python benchmarks/lora.py                            # 33 million weights
    python benchmarks/lora.py --model models/smollm2-135m --rows 2
    python benchmarks/lora.py --steps 3 --rounds 1       # in a minute or two

A figure is the median over rounds; of the speed, of the median step. Memory is the most that a process has had, the writing
of checkpoints included, and what is in use between two steps (weights, gradients, moments) of all that the heap has handed out.
Adapters of rank 16 on all linear layers.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import numpy as np

from synthboot import config, pool
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.lm import adapters
from synthboot.lm import model as models
from synthboot.lm.batches import Plan
from synthboot.lm.train import Runtime, Settings, train

SEQ_LEN = 256
VOCAB = 16_384
RANKS = {"all weights": 0, "adapters": 16}


class Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`: bytes in use are those of its arenas and of blocks mapped by themselves."""

    _fields_ = (
        ("arena", ctypes.c_size_t),
        ("free_chunks", ctypes.c_size_t),
        ("fast_chunks", ctypes.c_size_t),
        ("mapped_blocks", ctypes.c_size_t),
        ("mapped", ctypes.c_size_t),
        ("most", ctypes.c_size_t),
        ("fast_free", ctypes.c_size_t),
        ("in_arenas", ctypes.c_size_t),
        ("free", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    )


def in_use() -> int:
    """Bytes that were allocated and not freed."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Heap
    heap = mallinfo()
    return int(heap.in_arenas + heap.mapped)


def turn(source: str | None, rank: int, rows: int, steps: int) -> None:
    """Train for some steps; prints JSON."""
    cfg = config.Model(layers=8, width=512, heads=8, seq_len=SEQ_LEN, init_from=source)
    model = models.build(cfg, VOCAB, 0)
    weights = sum(p.numel() for p in model.parameters())
    if rank:
        adapters.add(model, config.Lora(rank=rank), 0, "optim")
    tokenizer = tokenizers.train(iter(["a b c"]), 300)
    text = np.random.default_rng(0).integers(2, 300, (64, 300)).tolist()
    tokens = rows * SEQ_LEN
    plan = Plan(Tokens.of(text), seq_len=SEQ_LEN, batch_tokens=tokens, train_tokens=tokens * steps, seed=0, end=0)
    settings = Settings(lr=1e-4, weight_decay=0.1, warmup_steps=1, eval_steps=(), precision="float32")
    ends: list[float] = []
    held: list[int] = []

    def watch(_: int, figures: Mapping[str, float]) -> None:
        if "loss" in figures:
            ends.append(time.perf_counter())
            held.append(in_use())

    with tempfile.TemporaryDirectory() as folder:
        train(model, plan, settings, lambda _: 0.0, Path(folder), tokenizer, runtime=Runtime(watch=watch))
    step = statistics.median(np.diff(ends))  # the first step, which warms up, ends where this begins
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"weights": weights, "rate": tokens / step, "gib": peak, "held": held[-1] / 2**30}))


def main() -> None:
    """Run both in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder instead of fresh weights")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn is not None:
        turn(args.model, args.turn, args.rows, args.steps)
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RANKS}
    malloc = {k: v for k, v in pool.ENVIRONMENT.items() if k.startswith("MALLOC")}
    for _ in range(args.rounds):
        for name, rank in RANKS.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--turn", str(rank)]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | malloc)
            found[name].append(json.loads(said.stdout.splitlines()[-1]))
    print("| trained | weights | tokens a second | peak GiB | in use between steps |\n|---|---|---|---|---|")
    for name, turns in found.items():
        rate, gib, held = (statistics.median(t[key] for t in turns) for key in ("rate", "gib", "held"))
        print(f"| {name} | {turns[0]['weights'] / 1e6:.0f}M | {rate:,.0f} | {gib:.2f} | {held:.2f} |")


if __name__ == "__main__":
    main()
