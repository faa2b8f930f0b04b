r"""Sampling speed of the embedded engine beside transformers.generate, on one core, in one run.

    python benchmarks/sample.py                      # beside its peers
    python benchmarks/sample.py --growth             # tokens per second by rows, length and model; memory

Engines take turns; each figure is the median of the rounds, and the claim is the ratio to `generate` at the better of two
batch sizes, on prompts sorted by length, with its own key-value cache, in the same precision. The limit is what the products
and the reading of the key-value cache would take at the rates measured in the same run. Prints a table and writes JSON.
"""

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # before torch starts its threads; benchmarks/gpu.py takes `Generate` from here, unpinned
    os.environ["OMP_NUM_THREADS"] = "1"
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import draw
import numpy as np
import torch

from synthboot import config, pool
from synthboot.data import tokenizer as tokenizers
from synthboot.lm import model as models
from synthboot.lm.sampling.embedded import EmbeddedSampler
from synthboot.lm.sampling.protocol import Request, Sampling

SIZES = {
    "demo": config.Model(layers=3, width=96, heads=3, kv_heads=1, seq_len=512),
    "tiny": config.Model(layers=4, width=256, heads=4, seq_len=512),
    "small": config.Model(layers=8, width=512, heads=8, seq_len=512),
}
DTYPES = ("float32", "bfloat16")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
"""How the peers call them."""

VOCABULARY = {"demo": 2_048, "tiny": 4_096, "small": 16_384}


class Generate:
    """The peer, asked for tokens and nothing else."""

    def __init__(self, model: Any, batch: int) -> None:
        self.model, self.batch = model, batch

    @torch.inference_mode()
    def sample(self, asked: list[Request]) -> list[Any]:
        """Continuations of left-padded prompts, batches of like length."""
        results, device = [], self.model.device
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
                tokens.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=chosen[0].max_tokens,
                do_sample=True,
                temperature=1.0,
                top_p=0.9,
                top_k=0,
                eos_token_id=0,
                pad_token_id=0,
            )
            for output in found[:, width:].tolist():
                results.append(SimpleNamespace(tokens=output[: output.index(0)] if 0 in output else output))
        return results


class Elsewhere:
    """A peer in a process and an environment of its own: `script` under `python`, which reads its job from a file."""

    def __init__(self, python: str, script: str, model: Path, asked: list[Request], dtype: str) -> None:
        job = {"model": str(model), "rows": 64, "tokens": asked[0].max_tokens, "precision": PRECISIONS[dtype]}
        place = model.with_name("job.json")
        place.write_text(json.dumps(job | {"prompts": [r.prompt for r in asked]}))
        command = [python, str(Path(__file__).with_name(script)), str(place)]
        self.script, self.said = script, place.with_name("said.txt")
        with self.said.open("w") as said:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True)

    def sample(self, _: list[Request]) -> list[Any]:
        """A run of the job that it was made with; one result that stands for all."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.script}: ended without an answer:\n{self.said.read_text()[-2_000:]}")
        return [SimpleNamespace(tokens=range(json.loads(answer)[1]))]


def openvino(python: str, model: Any, asked: list[Request], folder: Path, dtype: str) -> Elsewhere:
    """openvino-genai with continuous batching (sample_openvino.py)."""
    folder.mkdir(parents=True)
    models.save(model, folder / "model", tokenizers.train(iter(["a few words to make a tokenizer of"] * 20), 280))
    return Elsewhere(python, "sample_openvino.py", folder / "model", asked, dtype)


def llama(python: str, gguf: Path, asked: list[Request], folder: Path, dtype: str) -> Elsewhere:
    """llama.cpp's server with a slot for each of 64 rows (sample_llama.py), of a GGUF file's model in another precision."""
    folder.mkdir(parents=True)
    widen(gguf, folder / "model.gguf", dtype)
    return Elsewhere(python, "sample_llama.py", folder / "model.gguf", asked, dtype)


def widen(source: Path, out: Path, dtype: str) -> None:
    """Write a GGUF file's model with its matrices in float32 or bfloat16."""
    import gguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE):
            continue
        is_array = field.types[0] == gguf.GGUFValueType.ARRAY
        element = field.types[-1] if is_array else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=element)
    for tensor in reader.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        is_matrix = len(tensor.shape) > 1
        kind = gguf.GGMLQuantizationType.BF16 if dtype == "bfloat16" and is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rate(engine: Any, asked: list[Request]) -> float:
    """Tokens per second."""
    start = time.perf_counter()
    results = engine.sample(asked)
    return sum(len(r.tokens) for r in results) / (time.perf_counter() - start)


def limit(model: Any, asked: list[Request], results: list[Any], rows: int = 64) -> float:
    """Tokens per second if nothing were done but the products, at the rate of a product of `rows` rows, and reading the
    float32 cache, at the rate of reading memory."""
    cfg = model.config
    x, w = torch.randn(rows, cfg.hidden_size), torch.randn(4 * cfg.hidden_size, cfg.hidden_size)
    memory = torch.randn(32 << 20)

    def best(work: Any) -> float:
        taken = []
        for _ in range(8):
            begun = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begun)
        return min(taken)

    flops_per_second = 2 * x.numel() * len(w) / best(lambda: x @ w.T)
    bytes_per_second = memory.nbytes / best(lambda: memory.sum())
    lengths = [(len(r.prompt), len(f.tokens)) for r, f in zip(asked, results, strict=True)]
    flops = models.flops_per_token(model, 0) * sum(a + b for a, b in lengths)
    heads = cfg.num_key_value_heads * cfg.head_dim
    read = sum(8 * cfg.num_hidden_layers * heads * (a * b + b * b / 2) for a, b in lengths)
    return float(sum(b for _, b in lengths) / (flops / flops_per_second + read / bytes_per_second))


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """Ours alone, float32, each point in a process of its own, as workers are: speed, cache, peak memory."""
    points: list[tuple[str, int | str, tuple[str, int, int]]]
    points = [("rows", n, ("tiny", n, 128)) for n in (32, 64, 128, 256)]
    points += [("length", n, ("tiny", 64, n)) for n in (64, 128, 256, 512)]
    points += [("model", n, (n, 64, 128)) for n in SIZES]
    rows = []
    print("| varied | at | parameters | tokens a second | cache, MiB | GiB |\n|---|---|---|---|---|---|")
    for varied, at, point in points:
        command = [sys.executable, __file__, "--rounds", str(options.rounds), "--point", *map(str, point)]
        found = subprocess.run(command, env=os.environ | pool.ENVIRONMENT, capture_output=True, text=True, check=True)
        row = {"varied": varied, "at": at, **json.loads(found.stdout)}
        rows.append(row)
        told = f"{row['parameters'] / 1e6:.1f}M | {row['rate']:,.0f} | {row['cache']:.0f} | {row['gib']:.2f}"
        print(f"| {varied} | {at} | {told} |", flush=True)
    if options.plot:
        Path(options.plot).write_text(draw.grown(rows))
    return {"growth": rows}


def point(name: str, rows: int, length: int, rounds: int) -> dict[str, float]:
    """One point of the growth table: prompts and continuations of `length` tokens each, three requests to a row."""
    vocab, rng = VOCABULARY[name], np.random.default_rng(0)
    model = models.build(SIZES[name].model_copy(update={"seq_len": 2 * length}), vocab, 0).eval()
    asked = [Request(tuple(rng.integers(2, vocab, length).tolist()), i, length) for i in range(3 * rows)]
    engine = EmbeddedSampler(model, vocab, Sampling(temperature=1.0, top_p=0.9, batch=rows))  # no token ends a document
    engine.sample(asked[:4])
    found = statistics.median(rate(engine, asked) for _ in range(rounds))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    cache = engine.decoder.cache_bytes(rows, 2 * length) / 2**20
    return {"parameters": sum(p.numel() for p in model.parameters()), "rate": found, "cache": cache, "gib": memory}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["demo", "tiny"], choices=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--openvino", help="the Python of an environment with openvino-genai and optimum-intel")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-sample.json"))
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--plot", help="where to draw the growth, as SVG")
    parser.add_argument("--point", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.point:
        print(json.dumps(point(options.point[0], int(options.point[1]), int(options.point[2]), options.rounds)))
        return
    figures = growth(options) if options.growth else compare(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=1))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Engines in turns, and the limit."""
    figures: dict[str, Any] = {}
    print("| model | engine | tokens a second | times generate's | of the limit |\n|---|---|---|---|---|")
    for name in options.sizes:
        vocab = VOCABULARY[name]
        model = models.build(SIZES[name], vocab, 0).eval()
        half = copy.deepcopy(model).to(torch.bfloat16)
        rng = np.random.default_rng(0)
        prompts = [tuple(rng.integers(2, vocab, rng.integers(60, 170)).tolist()) for _ in range(options.requests)]
        asked = [Request(p, i, options.tokens) for i, p in enumerate(prompts)]
        engines: dict[str, Any] = {
            f"synthboot, {dtype}": EmbeddedSampler(model, 0, Sampling(temperature=1.0, top_p=0.9, dtype=dtype))
            for dtype in options.dtypes
        }
        peer_models = {"float32": model, "bfloat16": half}
        for dtype in options.dtypes:
            engines |= {f"generate, {dtype}, batch {b}": Generate(peer_models[dtype], b) for b in (32, 64)}
        if options.openvino:
            peer = openvino(options.openvino, model, asked, Path(tempfile.mkdtemp()) / name, "float32")
            peer.sample(asked)  # converts and compiles
            engines["openvino-genai, float32, 64 at once"] = peer
        rates: dict[str, list[float]] = {key: [] for key in engines}
        for dtype in options.dtypes:
            engines[f"synthboot, {dtype}"].sample(asked[:8])  # chooses its batch
        for _ in range(options.rounds):
            for key, engine in engines.items():
                rates[key].append(rate(engine, asked))
        medians = {key: statistics.median(values) for key, values in rates.items()}
        top = limit(model, asked, engines[f"synthboot, {options.dtypes[0]}"].sample(asked))
        peers = {d: max(v for k, v in medians.items() if k.startswith(f"generate, {d}")) for d in options.dtypes}
        figures[name] = {"tokens_per_second": medians, "limit": top, "rounds": rates}
        for key, value in medians.items():
            ratio = value / peers["float32" if "float32" in key else "bfloat16"]
            share = f"{value / top:.0%}" if key == "synthboot, float32" else ""
            print(f"| {name} | {key} | {value:,.0f} | {ratio:.2f} | {share} |", flush=True)
            figures[name].setdefault("ratio", {})[key] = ratio
    return figures


if __name__ == "__main__":
    main()
