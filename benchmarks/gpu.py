r"""One GPU, no network, nine minutes: is it right, is it fast, and one small run of the whole method.

    make gpu                                  # on a machine with CUDA
    python benchmarks/gpu.py --device cpu     # the same script, small, to see that it runs
    python benchmarks/gpu.py --parts right 'training 30M' 'sampling 30M'     # these, in this order

Right: greedy decoding equals transformers', losses on the GPU are those on the CPU. Fast: training tokens per second and share
of the peak (MFU, dense bfloat16), blocks compiled or not; sampling, steps recorded as CUDA graphs or not, with our loops or
torch's operations, beside `transformers.generate` and `generate_batch`, and vLLM where it is installed; for models of 30M, 125M
and 350M parameters. Each part ends when its time is up and says so; what was measured until then is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sample import Generate
from transformers import GenerationConfig

from synthboot import api, config
from synthboot.data import tokenizer as tokenizers
from synthboot.data.tokens import Tokens
from synthboot.lm import model as models
from synthboot.lm.batches import Plan
from synthboot.lm.loss import Loss
from synthboot.lm.sampling.embedded import EmbeddedSampler
from synthboot.lm.sampling.protocol import Request, Sampling
from synthboot.lm.train import Runtime, Settings, train

SIZES = {
    "30M": config.Model(layers=8, width=512, heads=8, kv_heads=4, seq_len=1_024),
    "125M": config.Model(layers=12, width=768, heads=12, kv_heads=6, seq_len=1_024),
    "350M": config.Model(layers=24, width=1_024, heads=16, kv_heads=8, seq_len=1_024),
}
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "A10": 125e12, "4090": 165e12}
VOCAB = 16_384
HOW = ("off", "on")
SAMPLE = Path(__file__).parent.parent / "examples" / "data" / "arxiv_cs_6000.jsonl.zst"


def right(device: torch.device) -> dict[str, Any]:
    """Greedy decoding beside transformers', the loss of training beside the CPU's in float32 and bfloat16, and draws
    at temperature 1 with our loops beside those with torch's own operations."""
    model = models.build(SIZES["30M"].model_copy(update={"layers": 2}), 2_048, 0).eval()
    tokens = torch.randint(2, 2_048, (8, 64), generator=torch.Generator().manual_seed(0))

    def loss_of(precision: torch.dtype) -> float:
        place = next(model.parameters()).device
        with torch.no_grad():
            return float(Loss(model, precision)(tokens[:, :-1].to(place), tokens[:, 1:].to(place), tokens[:, 1:].numel())[1])

    expected = loss_of(torch.float32)
    model = model.to(device)
    differences = {str(kind).removeprefix("torch."): abs(loss_of(kind) - expected) for kind in (torch.float32, torch.bfloat16)}

    asked = [Request(tuple(row), i, 32) for i, row in enumerate(tokens.tolist())]
    same = []
    for request, result in zip(
        asked, EmbeddedSampler(model, 0, Sampling(temperature=0, top_p=1, batch=32, dtype="float32")).sample(asked), strict=True
    ):
        prompt = torch.tensor([request.prompt], device=device)
        told = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False, eos_token_id=0, pad_token_id=0
        )[0, 64:].tolist()
        same.append(list(result.tokens) == (told[: told.index(0)] if 0 in told else told))

    def drawn() -> list[tuple[int, ...]]:
        return [
            r.tokens
            for r in EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, batch=32, dtype="float32")).sample(asked)
        ]

    with pytest.MonkeyPatch.context() as patch:
        ours = drawn()
        patch.setenv("SYNTHBOOT_KERNELS", "0")
        torchs = drawn()
    return {
        "greedy_equal": float(np.mean(same)),
        "loss_difference": differences,
        "draws_equal": float(np.mean([a == b for a, b in zip(ours, torchs, strict=True)])),
    }


def training(name: str, device: torch.device, peak: float | None, seconds: float, compile: str) -> dict[str, Any]:
    """Tokens per second of the training loop, validation and checkpoints left out; with the blocks compiled or not."""
    size, rows = SIZES[name], {"30M": 64, "125M": 64, "350M": 32}[name] if device.type == "cuda" else 1
    rng = np.random.default_rng(0)
    docs = Tokens.of([[*rng.integers(2, VOCAB, 700).tolist(), 0] for _ in range(400)])
    plan = Plan(docs, seq_len=size.seq_len, batch_tokens=rows * size.seq_len, train_tokens=10**10, seed=0, end=0)
    stamps: list[float] = []

    class Enough(Exception):
        pass

    def watch(_: int, values: Any) -> None:
        stamps.append(time.perf_counter())
        if len(stamps) > 3 and stamps[-1] - stamps[2] > seconds:  # the first steps compile
            raise Enough

    model = models.moved(models.build(size, VOCAB, 0), device)
    flops = 3 * models.flops_per_token(model, size.seq_len)
    how = Settings(lr=1e-4, weight_decay=0.1, warmup_steps=1, eval_steps=(), max_spike=1e9)
    made = tokenizers.train(iter(["a few words"] * 10), 280)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        train(model, plan, how, lambda _: 0.0, Path(folder), made, runtime=Runtime(compile=compile, watch=watch))
    rate = rows * size.seq_len / statistics.median(np.diff(stamps[2:]))
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_per_second": rate,
        "gib": memory,
        "mfu": rate * flops / peak if peak else None,
        "seconds_to_third_step": stamps[2] - begun,
    }


def batched(model: Any, asked: list[Request]) -> int:
    """transformers' own continuous batching; returns the number of tokens."""
    how = GenerationConfig(
        max_new_tokens=asked[0].max_tokens, do_sample=True, temperature=1.0, top_p=0.9, top_k=0, eos_token_id=0, pad_token_id=0
    )
    told = model.generate_batch(
        inputs=[list(r.prompt) for r in asked], generation_config=how, progress_bar=False, warmup=model.device.type == "cuda"
    )
    return sum(len(r.generated_tokens) for r in told.values())


def sampling(name: str, device: torch.device, requests: int, tokens: int) -> dict[str, Any]:
    """Tokens per second of the embedded engine, its steps recorded as CUDA graphs or not, with our loops or torch's own
    operations, and of its peers on an eighth of the prompts, which fill their batches."""
    size = SIZES[name]
    model = models.moved(models.build(size, VOCAB, 0), device).eval()
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(2, VOCAB, rng.integers(60, 170)).tolist()) for _ in range(requests)]
    asked = [Request(p, i, tokens) for i, p in enumerate(prompts)]
    figures: dict[str, Any] = {}

    def timed(engine: Any, wanted: list[Request]) -> float:
        engine([Request(r.prompt, r.seed, min(16, tokens)) for r in wanted])  # warm
        begun = time.perf_counter()
        count = engine(wanted)
        return float(count / (time.perf_counter() - begun))

    def counted(engine: Any) -> Any:
        return lambda wanted: sum(len(r.tokens) for r in engine.sample(wanted))

    for label, graphs, loops in (
        ("synthboot", True, True),
        ("synthboot, no graphs", False, True),
        ("synthboot, torch's operations", True, False),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if not loops:
                patch.setenv("SYNTHBOOT_KERNELS", "0")
            ours = EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9), graphs=graphs)
            figures[label] = timed(counted(ours), asked)
        figures["rows"] = ours.batch
    half = model.to(torch.bfloat16) if device.type == "cuda" else model
    few = asked[: max(8, requests // 8)]
    figures["generate, batch 512"] = timed(counted(Generate(half, 512)), few)
    try:
        figures["generate_batch"] = timed(lambda wanted: batched(half, wanted), few)
    except Exception as error:  # it is young, and leaves the others their turn
        figures["generate_batch"] = f"failed: {type(error).__name__}: {error}"
    peers = [v for k, v in figures.items() if k.startswith("generate") and not isinstance(v, str)]
    figures["ratio"] = figures["synthboot"] / max(peers)
    try:
        import vllm  # noqa: F401
    except ImportError:
        figures["vllm"] = "not installed"
        return figures
    from synthboot.lm.sampling.vllm import VllmSampler

    with tempfile.TemporaryDirectory() as folder:
        models.save(models.build(size, VOCAB, 0), Path(folder) / "m", tokenizers.train(iter(["a few words"] * 10), 280))
        engine = VllmSampler(Path(folder) / "m", 0, config.Synthesize(sampler="vllm"), 256)
        figures["vllm"] = timed(counted(engine), asked)
    return figures


def method(device: torch.device, folder: Path) -> dict[str, Any]:
    """The whole method once, at a size that takes minutes: the abstracts that ship with the project."""
    large = device.type == "cuda"
    settings = {
        "name": "gpu",
        "root": str(folder),
        "model": {"layers": 6, "width": 384, "heads": 6, "kv_heads": 3} if large else {"layers": 2, "width": 64, "heads": 2},
        "budget": {"unique_tokens": 300_000, "train_tokens": 3_000_000}
        if large
        else {"unique_tokens": 20_000, "train_tokens": 40_000},
        "optim": {"lr": 2e-3, "weight_decay": 0.5, "batch_tokens": 8_192 if large else 2_048, "evals": 6},
        "corpus": {"source": str(SAMPLE), "vocab_size": 2_048, "validation_docs": 100, "test_docs": 300},
        "tune": {"max_tokens": 1_000_000 if large else 20_000},
        "synthesize": {"keep_unfinished": True},
        "arms": {"repetition": {}, "sbp": {"synthetic": "related", "share": 0.5}, "oracle": {"unique_tokens": "all"}},
        "pretrain": {"seeds": [0]},
        "engine": {"device": device.type},
    }
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run
    begun = time.perf_counter()
    scores = api.Run(settings).evaluate()
    return {"seconds": time.perf_counter() - begun, "verdict": scores.verdict}


def main() -> None:
    """Run all parts, printing as they end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=520, help="stop beginning new parts after this many")
    parser.add_argument("--train-seconds", type=float, default=15, help="of each training part")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="which parts, in their order; all of them by default")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    args = parser.parse_args()
    began = time.perf_counter()
    device = models.device(args.device)
    named = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = next((v for k, v in PEAK.items() if k in named), None)
    figures: dict[str, Any] = {"device": named, "torch": torch.__version__}
    quick = device.type == "cpu"
    sizes = ["30M"] if quick else list(SIZES)
    parts: list[tuple[str, Any]] = [("right", lambda: right(device))]
    seconds = 2 if quick else args.train_seconds

    def trained(name: str, how: str) -> tuple[str, Any]:
        label = {"off": "training", "on": "training, blocks compiled,"}[how]
        return f"{label} {name}", lambda: training(name, device, peak, seconds, how)

    def sampled(name: str) -> tuple[str, Any]:
        return f"sampling {name}", lambda: sampling(name, device, 8 if quick else 4_096, 8 if quick else 256)

    # what decides most first: a call may end before the last
    parts += [trained(name, "off") for name in sizes]
    parts += [trained(sizes[-1], "on"), sampled(sizes[0])]
    parts += [("method", lambda: method(device, args.out.parent / "gpu"))]
    parts += [trained(name, "on") for name in sizes[:-1]]
    parts += [sampled(name) for name in sizes[1:]]
    if args.parts:
        unknown = set(args.parts) - dict(parts).keys()
        if unknown:
            parser.error(f"no such part: {', '.join(sorted(unknown))}; there are: {', '.join(dict(parts))}")
        parts = [(name, dict(parts)[name]) for name in args.parts]
    for name, part in parts:
        if time.perf_counter() - began > args.seconds:
            figures[name] = "left out: no time"
        else:
            try:
                figures[name] = part()
            except Exception as error:  # one part's failure leaves the others their turn
                figures[name] = f"failed: {type(error).__name__}: {error}"
        print(f"{name}: {json.dumps(figures[name])}", flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    print(f"{time.perf_counter() - began:.0f} s in all; figures in {args.out}")


if __name__ == "__main__":
    main()
