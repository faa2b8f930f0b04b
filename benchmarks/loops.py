r"""Each compiled loop beside what torch does for it, by kind of processor, on one core.

    python benchmarks/loops.py

Milliseconds, the least of `--rounds`; kinds and torch take turns. Without the loops (`SYNTHBOOT_KERNELS=0`) everything runs by
torch alone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"
os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import torch
from torch.nn import functional

from synthboot.kernels import decoding, library, topk, training

Work = Callable[[], object]


def attention(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> tuple[Work, Work]:
    """One token of 64 rows over 200 positions."""
    rows, capacity, count = 64, 256, 200
    qkv = torch.randn(rows, heads + 2 * kv_heads, dim)
    cosine, sine = torch.rand(rows, dim), torch.rand(rows, dim)
    position = torch.full((rows,), count - 1)
    values = torch.randn(rows, kv_heads, capacity, dim).to(dtype)
    keys = torch.randn(rows, kv_heads, capacity, dim).to(dtype)
    blocks = keys.unflatten(2, (-1, decoding.BLOCK)).transpose(3, 4).contiguous()
    norms = (torch.ones(dim), torch.ones(dim))

    def ours() -> object:
        return decoding.attend(qkv, norms, 1e-6, cosine, sine, position, blocks, values)

    def torchs() -> object:
        q, k, _ = qkv.split((heads, kv_heads, kv_heads), 1)
        q, k = (functional.rms_norm(x, (dim,)) for x in (q, k))
        q, k = (x * cosine[:, None] + torch.cat((-x[..., dim // 2 :], x[..., : dim // 2]), -1) * sine[:, None] for x in (q, k))
        grouped = q.unflatten(1, (kv_heads, -1)).to(dtype)  # (row, kv_head, group, dim)
        return functional.scaled_dot_product_attention(grouped, keys[:, :, :count], values[:, :, :count])

    return ours, torchs


def attention_softmax() -> tuple[Work, Work]:
    """A block of 96 rows of attention of 16 documents with four heads, in place."""
    scores = torch.randn(64, 1, 96, 192)
    hidden = torch.ones(96, 192, dtype=torch.bool).triu(97)
    return (
        lambda: training.attention_weights(scores, 96, 256, 4, 0.1),
        lambda: torch.softmax((scores * 0.1).masked_fill(hidden, float("-inf")), -1),
    )


def norm() -> tuple[Work, Work]:
    """4,096 rows of width 256."""
    x, weight = torch.randn(4_096, 256), torch.ones(256)
    return lambda: training.rms_norm(x, weight, 1e-6), lambda: functional.rms_norm(x, (256,), weight, 1e-6)


def gate() -> tuple[Work, Work]:
    """4,096 rows of width 768."""
    a, b = torch.randn(2, 4_096, 768)
    return lambda: training.silu_gate(a, b), lambda: functional.silu(a) * b


def loss() -> tuple[Work, Work]:
    """512 rows of 4,096 logits: the gradient, and the sum of the losses."""
    logits, targets = torch.randn(512, 4_096), torch.randint(0, 4_096, (512,))

    def torchs() -> object:
        gradient = torch.softmax(logits, -1)
        gradient[torch.arange(512), targets] -= 1
        return gradient, functional.cross_entropy(logits, targets, reduction="sum")

    # the loop writes over its input; softmax of a softmax takes as long
    return lambda: training.softmax_gradient(logits, targets, 1.0, 0.0), torchs


def draw() -> tuple[Work, Work]:
    """A token for each of 64 rows of 4,096 logits, of the nine tenths that are likeliest."""
    logits, numbers = torch.randn(64, 4_096), torch.arange(64)

    def torchs() -> object:
        ordered, index = torch.softmax(logits, -1).sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered > 0.9] = 0
        return index.gather(1, torch.multinomial(ordered, 1))

    return lambda: decoding.sample_top_p(logits, numbers, numbers, 1.0, 0.9), torchs


def best_16() -> tuple[Work, Work]:
    """The 16 best of 512 members for each of 256 queries of width 256, their scores given."""
    members = functional.normalize(torch.randn(512, 256), dim=1)
    queries = functional.normalize(torch.randn(256, 256), dim=1)
    scored = topk.Scored(queries @ members.T, queries, members, 2.0**-16)
    rows, own = torch.arange(256), torch.full((256,), -1)

    def ours() -> object:
        index, score = torch.full((256, 16), -1), torch.full((256, 16), float("-inf"))
        topk.update_topk(scored, rows, own, 0, index, score)
        return index

    return ours, lambda: scored.scores.topk(16, 1)


LOOPS = {
    "attention of a token, 3 heads on 1 of 32": lambda: attention(3, 1, 32, torch.float32),
    "attention of a token, 4 heads of 64": lambda: attention(4, 4, 64, torch.float32),
    "attention of a token, 4 heads of 64, bfloat16": lambda: attention(4, 4, 64, torch.bfloat16),
    "attention of a token, 9 heads on 3 of 64": lambda: attention(9, 3, 64, torch.float32),
    "draw": draw,
    "attention's softmax": attention_softmax,
    "norm": norm,
    "gate": gate,
    "loss": loss,
    "16 best": best_16,
}


def seconds(work: Work) -> float:
    """One call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)

    kinds = library.KINDS[: library.KINDS.index(library.kind()) + 1]
    print(f"| loop | torch | {' | '.join(kinds)} | times as fast as torch |\n|---|--:|{'--:|' * len(kinds)}--:|")
    for name, made in LOOPS.items():
        ours, torchs = made()
        taken: dict[str, list[float]] = {who: [] for who in ("torch", *kinds)}
        for _ in range(rounds):
            taken["torch"].append(seconds(torchs))
            for kind in kinds:
                os.environ["SYNTHBOOT_KERNELS"] = kind
                taken[kind].append(seconds(ours))
        least = {who: min(values) for who, values in taken.items()}
        figures = " | ".join(f"{1e3 * value:.2f}" for value in least.values())
        print(f"| {name} | {figures} | {least['torch'] / least[kinds[-1]]:.1f} |", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
