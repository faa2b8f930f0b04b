r"""Training speed of the one loop beside the Hugging Face Trainer, on one core, in one run.

    python benchmarks/train.py                       # needs accelerate, which the Trainer asks for
    python benchmarks/train.py --growth              # tokens per second by length, batch and model; memory; save and resume
    python benchmarks/train.py --cores               # two cores: one process with two threads, or two processes with one

The same Qwen3 model from the same weights, the same rows in the same order, AdamW, one rate. Engines take turns, a process a
turn; a figure is the median over rounds of the median step. The largest gap of their losses, step by step, stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CORES = sorted(os.sched_getaffinity(0)) if "--cores" in sys.argv else [max(os.sched_getaffinity(0))]
os.environ["OMP_NUM_THREADS"] = str(len(CORES))
os.sched_setaffinity(0, CORES)

import draw
import numpy as np
import torch

from synthboot import config, pool
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.lm import model as models
from synthboot.lm.batches import Plan
from synthboot.lm.train import Runtime, Settings, train

SIZES = {
    "demo": (2_048, config.Model(layers=3, width=96, heads=3, kv_heads=1, seq_len=256)),
    "tiny": (4_096, config.Model(layers=4, width=256, heads=4, seq_len=256)),
    "small": (16_384, config.Model(layers=8, width=512, heads=8, seq_len=256)),
}
LR = 1e-3


class Ours:
    """`lm.train.train`, timed from step to step."""

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def run(self, size: config.Model, vocab: int, rows: int, steps: int) -> tuple[list[float], list[float]]:
        """Seconds between steps, and losses."""
        plan = data(vocab, size.seq_len, rows, steps)
        how = Settings(
            lr=LR,
            weight_decay=0.1,
            warmup_steps=0,
            eval_steps=(),
            schedule="wsd",
            decay_fraction=1e-9,
            precision=self.precision,
            max_spike=1e9,
        )
        stamps, losses = [time.perf_counter()], []

        def watch(_: int, values: Any) -> None:
            if "loss" in values:
                stamps.append(time.perf_counter())
                losses.append(values["loss"])

        with tempfile.TemporaryDirectory() as folder:
            train(models.build(size, vocab, 0), plan, how, lambda _: 0.0, Path(folder), TOKENIZER, runtime=Runtime(watch=watch))
        return np.diff(stamps).tolist(), losses


class Trainer:
    """transformers.Trainer, its own data loader, logging every step."""

    def __init__(self, precision: str) -> None:
        self.precision = precision

    def run(self, size: config.Model, vocab: int, rows: int, steps: int) -> tuple[list[float], list[float]]:
        """Seconds between steps, and losses."""
        import transformers

        transformers.logging.set_verbosity_error()
        plan = data(vocab, size.seq_len, rows, steps)
        batches = [plan.batch(i) for i in range(steps)]
        # the Trainer shifts labels itself: a row is its inputs and its last target
        whole = np.concatenate([np.concatenate((b.inputs, b.targets[:, -1:]), 1) for b in batches])
        examples = [{"input_ids": torch.from_numpy(r), "labels": torch.from_numpy(r)} for r in whole]
        stamps, losses = [time.perf_counter()], []

        class Clock(transformers.TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                stamps.append(time.perf_counter())

            def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
                if "loss" in logs:
                    losses.append(logs["loss"])

        class InOrder(transformers.Trainer):
            def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
                return torch.utils.data.SequentialSampler(examples)

        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=rows,
                max_steps=steps,
                learning_rate=LR,
                weight_decay=0.1,
                lr_scheduler_type="constant",
                adam_beta2=0.95,
                max_grad_norm=1.0,
                optim="adamw_torch_fused",
                logging_steps=1,
                use_cpu=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_num_workers=0,
                bf16=self.precision == "bfloat16",
                logging_nan_inf_filter=False,
            )
            model = models.build(wider(size), vocab, 0)
            trainer = InOrder(model=model, args=arguments, train_dataset=examples, callbacks=[Clock()])
            trainer.remove_callback(transformers.PrinterCallback)
            trainer.train()
        return np.diff(stamps).tolist(), losses


def wider(size: config.Model) -> config.Model:
    """The same model with a position more: its rows hold inputs and the last target."""
    return size.model_copy(update={"seq_len": size.seq_len + 1})


def data(vocab: int, seq_len: int, rows: int, steps: int) -> Plan:
    """Random documents with some structure, so that the loss falls."""
    rng = np.random.default_rng(0)
    docs = [[*(rng.integers(2, vocab) + rng.integers(0, 7, 300)).clip(2, vocab - 1).tolist(), 0] for _ in range(400)]
    tokens = rows * seq_len
    return Plan(Tokens.of(docs), seq_len=seq_len, batch_tokens=tokens, train_tokens=tokens * steps, seed=0, end=0)


ENGINES: dict[str, tuple[type[Ours] | type[Trainer], str, bool]] = {
    "Trainer": (Trainer, "float32", False),
    "Trainer, memory kept": (Trainer, "float32", True),
    "synthboot": (Ours, "float32", True),
    "Trainer, bfloat16": (Trainer, "bfloat16", False),
    "synthboot, bfloat16": (Ours, "bfloat16", True),
}


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Ours and the Trainer, taking turns, a process a turn; ours in the environment that its workers have."""
    figures: dict[str, Any] = {}
    print(f"{args.rows} rows of 256 tokens\n")
    print("| model | engine | tokens a second | times the Trainer's | times with memory kept | largest loss difference |")
    print("|---|---|---|---|---|---|")
    engines = {name: engine for name, engine in ENGINES.items() if engine[1] in args.dtypes}
    for name in args.sizes:
        rates: dict[str, list[float]] = {e: [] for e in engines}
        losses: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for engine, (_, _, kept) in engines.items():
                found = alone("--turn", engine, name, args.rows, args.steps, kept=kept)
                losses[engine] = found["losses"]
                rates[engine].append(args.rows * 256 / statistics.median(found["seconds"][2:]))
        figures[name] = {}
        for engine, values in rates.items():
            ratio = statistics.median(values) / statistics.median(rates["Trainer"])
            beside = statistics.median(values) / statistics.median(rates["Trainer, memory kept"])
            gap = float(np.abs(np.array(losses[engine]) - losses["Trainer"]).max())
            figures[name][engine] = {"tokens_per_second": values, "ratio": ratio, "beside_kept": beside, "loss_gap": gap}
            print(
                f"| {name} | {engine} | {statistics.median(values):,.0f} | {ratio:.2f} | {beside:.2f} | {gap:.1e} |", flush=True
            )
    return figures


def alone(*arguments: Any, kept: bool = True) -> Any:
    """The JSON that this script prints last when it is run with these arguments."""
    return ended(begun(*arguments, kept=kept))


def begun(*arguments: Any, kept: bool = True, core: int | None = None) -> subprocess.Popen[str]:
    """This script with these arguments, in the environment of our workers or not, on one core or on ours."""
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = os.environ | ({} if not kept else {k: v for k, v in pool.ENVIRONMENT.items() if k.startswith("MALLOC")})
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> Any:
    """The JSON that it printed last."""
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(said.splitlines()[-1])


def cores(args: argparse.Namespace) -> dict[str, Any]:
    """What two cores do together, in tokens a second: one process with a thread on each, or a process on each."""
    print("| model | one process, one thread | one process, two threads | two processes, one thread each |\n|---|---|---|---|")
    figures: dict[str, Any] = {}
    for name in args.sizes:
        rates: dict[str, list[float]] = {"one": [], "threads": [], "processes": []}

        def rate(found: Any) -> float:
            return args.rows * 256 / statistics.median(found["seconds"][2:])

        for _ in range(args.rounds):
            turn = ("--turn", "synthboot", name, args.rows, args.steps)
            rates["one"].append(rate(ended(begun(*turn, core=CORES[0]))))
            rates["threads"].append(rate(ended(begun(*turn, "--cores"))))
            both = [begun(*turn, core=core) for core in CORES]
            rates["processes"].append(sum(rate(ended(process)) for process in both))
        figures[name] = rates
        print("| " + " | ".join([name, *(f"{statistics.median(r):,.0f}" for r in rates.values())]) + " |", flush=True)
    return figures


def turn(engine: str, name: str, rows: int, steps: int) -> None:
    """One turn of an engine; prints JSON."""
    runs, precision, _ = ENGINES[engine]
    vocab, size = SIZES[name]
    seconds, losses = runs(precision).run(size, vocab, rows, steps)
    print(json.dumps({"seconds": seconds, "losses": losses}))


def growth(args: argparse.Namespace) -> dict[str, Any]:
    """Ours alone, each point in a process of its own: speed, peak memory, seconds of a save and of a resume."""
    points: list[tuple[str, int | str, tuple[str, int, int]]]
    points = [("length", n, ("tiny", n, max(1, 4_096 // n))) for n in (128, 256, 512, 1_024)]
    points += [("rows", n, ("tiny", 256, n)) for n in (4, 8, 16, 32)]
    points += [("model", n, (n, 256, 16)) for n in SIZES]
    rows = []
    print("| varied | at | parameters | tokens a second | GiB | save, s | resume, s |\n|---|---|---|---|---|---|---|")
    for varied, at, (name, length, count) in points:
        row = {"varied": varied, "at": at, **alone("--point", name, length, count)}
        rows.append(row)
        print(
            f"| {varied} | {at} | {row['parameters'] / 1e6:.1f}M | {row['rate']:,.0f} | {row['gib']:.2f} "
            f"| {row['save']:.2f} | {row['resume']:.2f} |",
            flush=True,
        )
    if args.plot:
        Path(args.plot).write_text(draw.grown(rows))
    return {"growth": rows}


def point(name: str, length: int, count: int) -> None:
    """One point of the growth table; prints JSON."""
    vocab, size = SIZES[name]
    size = size.model_copy(update={"seq_len": length})
    seconds, _ = Ours("float32").run(size, vocab, count, 7)
    model = models.build(size, vocab, 0)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        models.save(model, Path(folder) / "m", TOKENIZER)
        save = time.perf_counter() - begun
        begun = time.perf_counter()
        models.load_weights(model, Path(folder) / "m")
        resume = time.perf_counter() - begun
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "rate": count * length / statistics.median(seconds[2:]),
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "save": save,
        "resume": resume,
    }
    print(json.dumps(found))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny"], choices=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--cores", action="store_true")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--turn", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--plot", help="where to draw the growth, as SVG")
    parser.add_argument("--json", help="where to write the figures")
    args = parser.parse_args()
    torch.set_num_threads(len(CORES))
    if args.point:
        return point(args.point[0], int(args.point[1]), int(args.point[2]))
    if args.turn:
        return turn(args.turn[0], args.turn[1], int(args.turn[2]), int(args.turn[3]))
    if "float32" not in args.dtypes:
        parser.error("--dtypes: every ratio is to the Trainer in float32; add it")
    result = growth(args) if args.growth else cores(args) if args.cores else compare(args)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return None


TOKENIZER = tokenizers.train(iter(["a few words to make a tokenizer of"] * 20), 280)

if __name__ == "__main__":
    main()
