"""Sample S_pretrain: d1 uniform over D_pretrain, d2 ~ p(d2|d1), until the budget of synthetic
tokens is met.

Request r samples document order[r mod N] for the (r div N)-th time, where the order is shuffled
anew for each round: every document is drawn equally often. A request's randomness is (run seed, d1,
sample number). Requests go in chunks, committed one by one; the result is the shortest run of
chunks 0, 1, 2, ... that meets the budget, so it does not depend on workers, interruptions or speed.
Dropped outputs are counted by reason: empty, unfinished, looping.

An external synthesizer reads d1 and writes d2 in tokens of its own. Its text is then tokenized for
the arms, and the budget is met in their tokens, since that is what they train on.

Source: arXiv:2509.15248; temperature 1 and top-p 0.9 are recalled, not printed. Deviation: the
dropping rules are ours.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synthboot import config, pool
from synthboot.artifacts.pairs import VALIDATION, Pairs, Related
from synthboot.artifacts.parts import Part
from synthboot.artifacts.store import WORK, Progress, Shards, silent
from synthboot.artifacts.synthetic import CHUNKS, FILE, KEPT
from synthboot.data import lock, ngrams, tokens
from synthboot.data import tokenizer as tokenizers
from synthboot.data.disk import read_json, write_json
from synthboot.data.tokens import Tokens
from synthboot.errors import BudgetError, CorruptArtifact, SamplingError
from synthboot.lm import pointer
from synthboot.lm.batches import PairForm, joined_contexts, pair_prompt
from synthboot.lm.pointer import Weights
from synthboot.lm.sampling.engines import open_sampler
from synthboot.lm.sampling.protocol import Request, Result, Sampler
from synthboot.rng import rng


@dataclass(frozen=True)
class Job:
    """Everything a chunk depends on; plain values, so that it can be sent to a worker.

    Without `conditional`, documents are sampled from the model alone. With `pairs`, the folder they
    lie in, up to `contexts` documents are conditioned on: d1, and the d1 of d1. `tokenizer` is that
    of the arms; an `external` synthesizer has another, and `corpus` is in its tokens. With the
    weights of a `pointer` d1 is copied from, and need not stand in the prompt (`is_prompted`).

    `at_once` is how many requests fill the device: as many chunks as they are go in one call.
    """

    cfg: config.Synthesize
    synthesizer: Path
    tokenizer: Path
    corpus: tuple[Path, ...]
    docs: int
    seq_len: int
    d1_share: float
    seed: int
    conditional: bool
    engine: config.Engine
    contexts: int = 1
    pairs: Path | None = None
    external: bool = False
    pointer: Weights | None = None
    is_prompted: bool = True
    at_once: int = 1


def synthesize(
    job: Job,
    budget_tokens: int,
    folder: Path,
    workers: int = 1,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Chunks in `folder/chunks` that together hold at least `budget_tokens`; returns counts.

    Raises BudgetError where almost everything sampled is dropped.
    """
    # without an end: which chunk is the last shows only once its tokens are counted
    groups = _groups(job, budget_tokens)
    outputs, total, chunks = _sample(job, groups, budget_tokens, folder, workers, progress)
    Shards(folder / CHUNKS).close(chunks)

    dropped = {reason: n for reason, n in sorted(outputs.items()) if reason != KEPT}
    return {
        "requests": outputs.total(),
        "kept": total["kept"],
        "dropped": dropped,
        "tokens": total["tokens"],
        "sampled_tokens": total["sampled_tokens"],
        "prompt_tokens": total["prompt_tokens"],
        "chunks": chunks,
    }


def synthesize_part(
    job: Job,
    budget_tokens: int,
    folder: Path,
    part: Part,
    workers: int = 1,
    progress: Progress = silent,
) -> int:
    """The chunks of one part, until they hold its share of `budget_tokens`; returns how many.

    Which chunks the budget needs shows once those of all parts are there: `synthesize` then adds
    the few that are missing, where parts have kept less than others, and leaves out those that are
    over.
    """
    share = math.ceil(budget_tokens / part.count)
    own = islice(_groups(job, budget_tokens), part.number - 1, None, part.count)
    _, _, chunks = _sample(job, own, share, folder, workers, progress)
    return chunks


def _sample(
    job: Job,
    groups: Iterator[tuple[int, ...]],
    budget_tokens: int,
    folder: Path,
    workers: int,
    progress: Progress,
) -> tuple[Counter[str], Counter[str], int]:
    """The outputs and tokens of the first chunks of these groups that meet the budget, and how
    many chunks these are.

    What workers or the last group have sampled beyond them is thrown away, and counts nowhere.
    """
    outputs: Counter[str] = Counter()
    total: Counter[str] = Counter()
    chunks = 0
    results = pool.imap(
        _chunk_writer,
        (job, folder / CHUNKS),
        groups,
        workers,
    )
    for counts in chain.from_iterable(results):
        chunks += 1
        outputs.update(counts["outputs"])
        for name in ("kept", "tokens", "sampled_tokens", "prompt_tokens"):
            total[name] += counts[name]
        done = min(1.0, total["tokens"] / budget_tokens)
        progress(done, f"{total['tokens']:,} of {budget_tokens:,} tokens")
        if total["tokens"] >= budget_tokens:
            break
        _check_yield(job, outputs, total)
    # chunks beyond the last one that workers have begun are of no use
    results.close()  # type: ignore[attr-defined]
    return outputs, total, chunks


def _groups(job: Job, budget_tokens: int) -> Iterator[tuple[int, ...]]:
    """The numbers of chunks, those together that are sampled in one call.

    At most half of what the budget surely needs, and by nothing that workers, parts or
    interruptions change: in a batch of other requests a likelihood may be rounded otherwise.
    """
    needed = math.ceil(budget_tokens / job.seq_len)
    size = max(1, min(job.at_once, needed // 2) // job.cfg.chunk)
    for first in count(0, size):
        yield tuple(range(first, first + size))


def _check_yield(
    job: Job,
    outputs: Counter[str],
    total: Counter[str],
) -> None:
    """Raise BudgetError where almost everything is dropped: the budget would take for ever."""
    requests = outputs.total()
    wasted = total["sampled_tokens"] > 20 * total["tokens"]
    # a server may answer with nothing at all, which is no token sampled
    wasted = wasted or not total["tokens"]
    # two chunks at least: the first documents may be unlucky
    if wasted and requests >= 2 * job.cfg.chunk:
        raise BudgetError(
            f"synthesize: {total['kept']:,} of {requests:,} outputs kept ({dict(outputs)}); "
            f"the synthesizer is not good enough for these rules: train base longer, "
            f"or set synthesize.keep_unfinished=true"
        )


def requests_of(
    job: Job,
    corpus: Tokens,
    tokenizer: tokenizers.Tokenizer,
    chunk: int,
    related: Related | None = None,
) -> Iterator[tuple[int, int, Request]]:
    """(d1, sample number, request) for every request of a chunk.

    `corpus` and `tokenizer` are those that the synthesizer reads and writes by.
    """
    form = PairForm(job.seq_len, job.d1_share, tokenizer.end, tokenizer.separator)
    is_prompted = job.conditional and job.is_prompted
    contrasts = is_prompted and job.cfg.contrast > 0
    first = chunk * job.cfg.chunk
    for number in range(first, first + job.cfg.chunk):
        sample, index = divmod(number, job.docs)
        d1 = int(_order(job.seed, sample, job.docs)[index])
        prompt: tuple[int, ...] = (tokenizer.end,)
        source: tuple[int, ...] = ()
        texts: list[np.ndarray] = []
        if job.conditional:
            docs = [d1] if related is None else related.around(d1, d1, job.contexts)
            texts = [corpus[doc] for doc in docs]
        if job.conditional and job.pointer is not None:
            source = tuple(pointer.source(texts, job.seq_len).tolist())
        if is_prompted:
            prompt = pair_prompt(joined_contexts(texts, form), form)
        room = job.seq_len - len(prompt)
        yield (
            d1,
            sample,
            Request(
                prompt=prompt,
                seed=_seed(job.seed, d1, sample),
                max_tokens=min(room, job.cfg.max_tokens or room),
                alone=(tokenizer.end, tokenizer.separator) if contrasts else (),
                source=source,
            ),
        )


def _seed(seed: int, d1: int, sample: int) -> int:
    """The same for this d1 and sample in whatever chunk, worker or batch it comes up."""
    name = f"{seed} {d1} {sample}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def verdict(result: Result, cfg: config.Synthesize) -> str:
    """Why an output is dropped, or "kept"."""
    # in this order: an output is counted under the first reason that holds
    if len(result.tokens) < cfg.min_tokens:
        return "empty"
    if result.finish == "length" and not cfg.keep_unfinished:
        return "unfinished"
    if ngrams.repeated_share(np.array(result.tokens), 8) > cfg.max_loop_share:
        return "looping"
    return KEPT


def _chunk_writer(
    job: Job,
    folder: Path,
) -> Callable[[tuple[int, ...]], list[dict[str, Any]]]:
    """A worker: the numbers of chunks that go together -> counts of the committed chunks.

    The model is loaded when first needed.
    """
    shards = Shards(folder)
    loaded: list[Any] = []

    def run(group: tuple[int, ...]) -> list[dict[str, Any]]:
        missing = [chunk for chunk in group if not shards.done(chunk)]
        if missing and not loaded:
            arms = tokenizers.load(job.tokenizer)
            own = tokenizers.load(job.synthesizer) if job.external else arms
            engine = open_sampler(
                job.cfg,
                job.engine,
                job.synthesizer,
                own.end,
                job.pointer,
                partial(_agreed, folder.parent / WORK / "batch.json"),
            )
            corpus = Tokens.open(job.corpus).head(job.docs)
            loaded.extend((engine, own, arms, corpus, related_of(job)))
        if missing:
            _write_chunks(job, group, missing, shards, *loaded)
        return [shards.counts(chunk) for chunk in group]

    return run


def _agreed(path: Path, timed: Callable[[], int]) -> int:
    """The batch that the whole synthesis is sampled in: what the first of its processes timed.

    Likelihoods in another are rounded otherwise, and now and then another token is drawn.
    """
    if not path.exists():
        with lock.held(path.parent, f".{path.name}.lock", lock.FOREVER):
            if not path.exists():  # nobody has timed it meanwhile
                write_json(path, timed())
    batch = read_json(path)
    if type(batch) is not int or batch < 1:
        raise CorruptArtifact(f"{path}: no size of a batch; delete {path.parent} and run again")
    return batch


def related_of(job: Job) -> Related | None:
    """The d1 of every document of D_pretrain, where several are conditioned on."""
    if job.pairs is None:
        return None
    pairs = Pairs.load(job.pairs)
    # d2 of the validation set are numbered by themselves, and nothing is written from them
    inside = pairs.split != VALIDATION
    return Related.of(pairs.d1[inside], pairs.d2[inside])


def _write_chunks(
    job: Job,
    group: tuple[int, ...],
    missing: list[int],
    shards: Shards,
    engine: Sampler,
    own: tokenizers.Tokenizer,
    arms: tokenizers.Tokenizer,
    corpus: Tokens,
    related: Related | None,
) -> None:
    """Sample the chunks of a group in one call, and write those that are `missing`.

    All are sampled again where a kill has left some, in the batches that they were sampled in.
    """
    asked = {chunk: list(requests_of(job, corpus, own, chunk, related)) for chunk in group}
    results = iter(engine.sample([request for rows in asked.values() for _, _, request in rows]))
    for chunk, rows in asked.items():
        found = list(islice(results, len(rows)))
        if chunk in missing:
            shards.write(chunk, partial(_write_chunk, job, rows, found, own, arms))


def _write_chunk(
    job: Job,
    asked: list[tuple[int, int, Request]],
    results: list[Result],
    own: tokenizers.Tokenizer,
    arms: tokenizers.Tokenizer,
    out: Path,
) -> dict[str, Any]:
    """Write the results of a chunk to `out`: all outputs as rows, those kept as tokens too.

    The synthesizer has its `own` tokenizer, which is that of the `arms` unless it is external.
    """
    d1s, samples, requests = zip(*asked, strict=True)
    _check_tokens(job, results, own)

    sampled = [list(result.tokens) for result in results]
    texts = [own.decode(ids) for ids in sampled]
    # what the arms train on
    trained = arms.encode(texts) if job.external else sampled

    reasons = []
    mean_logprobs = []
    kept = []
    for result, ids in zip(results, trained, strict=True):
        # special tokens alone are no text
        reason = verdict(result, job.cfg) if ids else "empty"
        reasons.append(reason)
        # where it ended by itself, its end was sampled too; 1 where nothing was
        drawn = len(result.tokens) + (result.finish == "end")
        mean_logprobs.append(result.logprob / (drawn or 1))
        if reason == KEPT:
            kept.append([*ids, arms.end])

    columns = {
        "d1": d1s,
        "sample": samples,
        "finish": [result.finish for result in results],
        "verdict": reasons,
        "tokens": [len(ids) for ids in sampled],
        "mean_logprob": mean_logprobs,
        "text": texts,
    }
    if job.external:
        columns["sampled"] = pa.array(sampled, pa.list_(pa.uint32()))
    pq.write_table(pa.table(columns), out / FILE, compression="zstd")
    return {
        "outputs": dict(Counter(reasons)),
        "kept": len(kept),
        "tokens": tokens.write(out, kept, arms.vocab_size),
        "sampled_tokens": sum(map(len, sampled)),
        "prompt_tokens": sum(len(request.prompt) for request in requests),
    }


def _check_tokens(
    job: Job,
    results: list[Result],
    tokenizer: tokenizers.Tokenizer,
) -> None:
    """Raise SamplingError for tokens that no document of this tokenizer holds: a server may run
    another model."""
    sampled: set[int] = set()
    for result in results:
        sampled.update(result.tokens)
    strange = sampled - (tokenizer.ids() - {tokenizer.end})
    if strange:
        raise SamplingError(
            f"synthesize: the sampler gave token {min(strange)}, which cannot stand in a document "
            f"of this tokenizer; does it run this synthesizer ({job.synthesizer})?"
        )


@lru_cache(maxsize=2)
def _order(seed: int, sample: int, docs: int) -> np.ndarray:
    """The order in which round `sample` goes through the documents."""
    return rng(seed, "synthesize.d1", sample).permutation(docs)
