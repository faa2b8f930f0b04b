"""Sample S_pretrain: d1 uniform over D_pretrain, d2 ~ p(d2|d1), until the budget of synthetic tokens is met.

Request r samples document order[r mod N] for the (r div N)-th time, where the order is shuffled anew for each round: every
document is drawn equally often. A request's randomness is (run seed, d1, sample number). Requests go in chunks, committed
one by one; the result is the shortest run of chunks 0, 1, 2, ... that meets the budget, so it does not depend on workers,
interruptions or speed. Dropped outputs are counted by reason: empty, unfinished, looping.

Source: arXiv:2509.15248; temperature 1 and top-p 0.9 are recalled, not printed. Deviation: the dropping rules are ours.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthboot import config
from synthboot.data import ngrams, tokens
from synthboot.data import tokenizer as tokenizers
from synthboot.data.artifacts import Progress, Shards, silent
from synthboot.data.tokens import Tokens
from synthboot.engine import local
from synthboot.errors import BudgetError, SamplingError
from synthboot.lm.batches import d1_room
from synthboot.lm.sample import Request, Result, Sampler, open_sampler


@dataclass(frozen=True)
class Job:
    """Everything a chunk depends on; plain values, so that it can be sent to a worker. Without `conditional`, documents
    are sampled from the model alone."""

    cfg: config.Synthesize
    synthesizer: Path
    tokenizer: Path
    corpus: tuple[Path, ...]
    docs: int
    window: int
    d1_share: float
    seed: int
    conditional: bool
    engine: config.Engine


def synthesize(
    job: Job, budget_tokens: int, folder: Path, workers: int = 1, progress: Progress = silent
) -> dict[str, Any]:
    """Chunks in `folder/chunks` that together hold at least `budget_tokens`; returns counts.

    Raises BudgetError where almost everything sampled is dropped.
    """
    shards = Shards(folder / "chunks")
    requests: Counter[str] = Counter()
    kept_tokens = kept = sampled_tokens = prompt_tokens = chunks = 0
    results = local.imap(_chunk_writer, (job, shards.folder), count(), workers)
    for chunk, counts in enumerate(results):
        chunks = chunk + 1
        requests.update(counts["outputs"])
        kept += counts["kept"]
        kept_tokens += counts["tokens"]
        sampled_tokens += counts["sampled_tokens"]
        prompt_tokens += counts["prompt_tokens"]
        progress(
            min(1.0, kept_tokens / budget_tokens), f"{kept_tokens:,} of {budget_tokens:,} tokens"
        )
        if kept_tokens >= budget_tokens:
            break
        if (
            sampled_tokens > 20 * max(kept_tokens, 1)
            and sum(requests.values()) >= 2 * job.cfg.chunk
        ):
            raise BudgetError(
                f"synthesize: {kept:,} of {sum(requests.values()):,} outputs kept ({dict(requests)}); the synthesizer is not "
                f"good enough for these rules: train base longer, or set synthesize.keep_unfinished=true"
            )
    results.close()  # type: ignore[attr-defined]
    shards.close(chunks)
    dropped = {reason: n for reason, n in sorted(requests.items()) if reason != "kept"}
    return {
        "requests": sum(requests.values()), "kept": kept, "dropped": dropped, "tokens": kept_tokens,
        "sampled_tokens": sampled_tokens, "prompt_tokens": prompt_tokens, "chunks": chunks,
    }  # fmt: skip


def requests_of(
    job: Job, corpus: Tokens, tokenizer: tokenizers.Tokenizer, chunk: int
) -> Iterator[tuple[int, int, Request]]:
    """(d1, sample number, request) for every request of a chunk."""
    for number in range(chunk * job.cfg.chunk, (chunk + 1) * job.cfg.chunk):
        sample, place = divmod(number, job.docs)
        d1 = int(_order(job.seed, sample, job.docs)[place])
        prompt = [tokenizer.end]
        if job.conditional:
            prompt += [
                *corpus[d1][:-1][: d1_room(job.window, job.d1_share)].tolist(),
                tokenizer.separator,
            ]
        room = job.window - len(prompt)
        seed = hashlib.blake2b(f"{job.seed} {d1} {sample}".encode(), digest_size=8).digest()
        limit = min(room, job.cfg.max_tokens or room)
        yield d1, sample, Request(tuple(prompt), int.from_bytes(seed, "little"), limit)


def verdict(result: Result, cfg: config.Synthesize) -> str:
    """Why an output is dropped, or "kept"."""
    if len(result.tokens) < cfg.min_tokens:
        return "empty"
    if result.finish == "length" and not cfg.keep_unfinished:
        return "unfinished"
    if ngrams.repeated_share(np.array(result.tokens), 8) > cfg.max_loop_share:
        return "looping"
    return "kept"


def _chunk_writer(job: Job, folder: Path) -> Callable[[int], dict[str, Any]]:
    """A worker: chunk number -> counts of the committed chunk. The model is loaded when first needed."""
    shards = Shards(folder)
    loaded: list[Any] = []

    def run(chunk: int) -> dict[str, Any]:
        if shards.done(chunk):
            return shards.counts(chunk)
        if not loaded:
            tokenizer = tokenizers.load(job.tokenizer)
            engine = open_sampler(job.cfg, job.engine, job.synthesizer, tokenizer.end)
            loaded.extend((engine, tokenizer, Tokens.open(job.corpus).head(job.docs)))
        return shards.write(chunk, lambda out: _write_chunk(job, chunk, out, *loaded))

    return run


def _write_chunk(
    job: Job,
    chunk: int,
    out: Path,
    engine: Sampler,
    tokenizer: tokenizers.Tokenizer,
    corpus: Tokens,
) -> dict[str, Any]:
    asked = list(requests_of(job, corpus, tokenizer, chunk))
    results = engine.sample([request for _, _, request in asked])
    if strange := {t for r in results for t in r.tokens} - (tokenizer.ids() - {tokenizer.end}):
        raise SamplingError(
            f"synthesize: the sampler gave token {min(strange)}, which cannot stand in a document of this tokenizer; does "
            f"it run this synthesizer ({job.synthesizer})?"
        )
    reasons = [verdict(r, job.cfg) for r in results]
    rows = {
        "d1": [d1 for d1, _, _ in asked],
        "sample": [sample for _, sample, _ in asked],
        "finish": [r.finish for r in results],
        "verdict": reasons,
        "tokens": [len(r.tokens) for r in results],
        "mean_logprob": [r.logprob / (len(r.tokens) + (r.finish == "end") or 1) for r in results],
        "text": [tokenizer.decode(r.tokens) for r in results],
    }
    pq.write_table(pa.table(rows), out / "synthetic.parquet", compression="zstd")
    kept = [
        [*r.tokens, tokenizer.end]
        for r, reason in zip(results, reasons, strict=True)
        if reason == "kept"
    ]
    written = tokens.write(out, kept, tokenizer.vocab_size)
    sampled = sum(len(r.tokens) for r in results)
    outputs = dict(Counter(reasons))
    read = sum(len(request.prompt) for _, _, request in asked)
    return {
        "outputs": outputs, "kept": len(kept), "tokens": written, "sampled_tokens": sampled, "prompt_tokens": read,
    }  # fmt: skip


@lru_cache(maxsize=2)
def _order(seed: int, sample: int, docs: int) -> np.ndarray:
    """The order in which round `sample` goes through the documents."""
    return np.random.default_rng([seed, 6, sample]).permutation(docs)
