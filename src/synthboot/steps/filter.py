"""synthesize with a filter: an S_pretrain in, what an arm may read of it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from synthboot import config
from synthboot.artifacts.store import WORK, Shards, read_manifest
from synthboot.artifacts.synthetic import CHUNKS, KEPT, SAMPLED, Sample, Synthetic, ThrownAway
from synthboot.data.disk import load_array, save_array
from synthboot.data.tokenizer import Decoded
from synthboot.data.tokens import Tokens
from synthboot.steps import judges
from synthboot.steps.context import Context, Outcome

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK_TOKENS = 1 << 24  # of samples that are looked for in the corpus at once

Measure = Callable[[Sequence[Sample], int], Float[np.ndarray, " sample"]]
"""From the samples of a chunk, and its number, to what each of them is measured at."""


def filtered(c: Context, chosen: config.Filter, budget_tokens: int) -> Outcome:
    """What a filter leaves of an S_pretrain, `budget_tokens` at least.

    What takes a model is measured chunk by chunk and kept until the end, so that a kill costs a
    chunk; counting is done anew. The FLOPs are those that base, the embedding and, at most, the
    likelihood judge spend on the samples; known cases, of which there are few, are not counted.
    """
    from synthboot.stages import filter as stage

    folder = c.parents[SAMPLED]
    made = read_manifest(folder)
    assert made is not None  # it was verified before this step began
    source = Synthetic.open(folder)
    by_question = judges.filtering(c, chosen.judged)
    base = _base(c) if chosen.loss is not None else None

    measures = _measured(c, source, _by_chunk(c, chosen, base, by_question))
    if chosen.novelty is not None:
        measures["novelty"] = _novelty(c, source, chosen.novelty_tokens)

    limits = {judge.question: judge.verdict.threshold for judge in by_question}
    found = stage.verdicts(measures, chosen, limits, len(source))
    if chosen.near_duplicates:
        c.progress(0.8, "near-duplicates")
        for number, reason in _repeated(c, source, chosen, found).items():
            found[number] = reason

    thrown = stage.thrown_away(found, source.tokens.lengths)
    stage.check_budget(source.tokens.num_tokens, budget_tokens, thrown, c.variant)
    kept, tokens = _write(c, source, found, measures)

    counts = {
        **made.counts,
        "kept": kept,
        "tokens": tokens,
        "dropped": made.counts["dropped"] | {why: away.docs for why, away in thrown.items()},
        "thrown_away": thrown,
        "sampling_flops": made.cost["flops"],
        "measured": {name: _quantiles(values) for name, values in measures.items()},
        "judged": {judge.question: _error(judge) for judge in by_question},
        "account": _account(len(source), kept, thrown),
    }
    return counts, {"flops": _flops(c, source, chosen, base)}


def _by_chunk(
    c: Context,
    chosen: config.Filter,
    base: PreTrainedModel | None,
    by_question: Sequence[judges.Filtering],
) -> dict[str, Measure]:
    """By name, the measures that take a model or a judge."""
    measures: dict[str, Measure] = {}
    if base is not None:
        measures["loss"] = lambda rows, _: _loss(c, base, rows)
    if chosen.similarity is not None:
        measures["similarity"] = lambda rows, _: _similarity(c, rows)
    for judge in by_question:
        measures[judge.question] = judge.scores
    return measures


def _measured(
    c: Context,
    source: Synthetic,
    measures: Mapping[str, Measure],
) -> dict[str, Float[np.ndarray, " sample"]]:
    """What every sample is measured at, by name, a chunk at a time."""
    if not measures:
        return {}
    shards = Shards(c.folder / WORK / "measured")
    chunks = len(source.chunks)

    def write(number: int, out: Path) -> dict[str, Any]:
        rows = source.of_chunk(number)
        for name, measure in measures.items():
            save_array(out / f"{name}.npy", np.asarray(measure(rows, number), np.float64))
        return {"samples": len(rows)}

    # an empty array first: there may be no chunk, and nothing is not concatenated
    chunks_of: dict[str, list[np.ndarray]] = {name: [np.empty(0)] for name in measures}
    for number in range(chunks):
        shards.write(number, partial(write, number))
        for name, arrays in chunks_of.items():
            arrays.append(load_array(shards.path(number) / f"{name}.npy"))
        c.progress(0.8 * (number + 1) / chunks, f"{number + 1:,} of {chunks:,} chunks measured")
    return {name: np.concatenate(arrays) for name, arrays in chunks_of.items()}


def _base(c: Context) -> PreTrainedModel:
    from synthboot.lm import model as models

    return models.load(c.model("base").best, c.device)


def _loss(c: Context, base: PreTrainedModel, rows: Sequence[Sample]) -> np.ndarray:
    """(sample): nats a token, the end included."""
    from synthboot.lm import score

    if not rows:
        return np.empty(0)
    end = c.corpus.tokenizer.end
    closed = Tokens.of([[*row.tokens.tolist(), end] for row in rows])
    scores = score.documents(base, closed, c.cfg.model.seq_len, end)
    per_token: np.ndarray = scores.loss / scores.tokens
    return per_token


def _similarity(c: Context, rows: Sequence[Sample]) -> np.ndarray:
    """(sample): similarity to d1."""
    assert c.embeddings is not None
    assert c.embedder is not None  # `Config` sees to that
    if not rows:
        return np.empty(0)
    d1 = [row.d1 for row in rows]
    given = c.embeddings.pretrain[d1].astype(np.float32)
    sampled = c.embedder([row.text for row in rows])
    similarity: np.ndarray = np.einsum("ij,ij->i", given, sampled)  # of unit vectors, the cosine
    return similarity


def _novelty(c: Context, source: Synthetic, n: int) -> Float[np.ndarray, " sample"]:
    """The novelty of every sample; the corpus is gone through once for each block of samples."""
    from synthboot.stages.filter import novelty

    shares = [np.empty(0)]
    for block in _blocks(source.tokens):
        samples = [np.asarray(source.tokens[doc][:-1], np.int64) for doc in block]
        shares.append(novelty(samples, c.corpus.pretrain, n))
    return np.concatenate(shares)


def _blocks(tokens: Tokens) -> Iterator[range]:
    """The documents in a row, as many at once as have `_BLOCK_TOKENS`, one at least."""
    start = 0
    while start < len(tokens):
        most = tokens.bounds[start] + _BLOCK_TOKENS
        fits = int(np.searchsorted(tokens.bounds, most, side="right")) - 1
        stop = max(start + 1, fits)
        yield range(start, stop)
        start = stop


def _repeated(
    c: Context,
    source: Synthetic,
    chosen: config.Filter,
    found: Sequence[str],
) -> dict[int, str]:
    """The near-duplicates that are thrown away of the samples that are left, and why."""
    from synthboot.stages import duplicates
    from synthboot.stages.filter import REPEATED, repeated

    tokenizer = c.corpus.tokenizer
    left = [number for number, verdict in enumerate(found) if verdict == KEPT]
    samples = Decoded(source.tokens, tokenizer, left)
    documents = c.corpus.pretrain
    if "corpus" not in chosen.near_duplicates:
        documents = documents.head(0)
    corpus = Decoded(documents, tokenizer)

    work = c.folder / WORK
    of_corpus = duplicates.signatures(corpus, work / "corpus")
    pairs = duplicates.near(samples, corpus, of_corpus, work / "both")

    reasons = {}
    for place, reason in repeated(pairs, len(samples), len(corpus)).items():
        if reason != REPEATED or "samples" in chosen.near_duplicates:
            reasons[left[place]] = reason
    return reasons


def _write(
    c: Context,
    source: Synthetic,
    found: Sequence[str],
    measures: Mapping[str, np.ndarray],
) -> tuple[int, int]:
    """Write every chunk with its verdicts; returns how many documents and tokens are left."""
    from synthboot.stages.filter import write_chunk

    vocab_size = c.corpus.tokenizer.vocab_size
    bounds = [*source.tokens.first_docs.tolist(), len(source)]

    def write(number: int, out: Path) -> dict[str, Any]:
        own = slice(bounds[number], bounds[number + 1])
        of_chunk = {name: values[own] for name, values in measures.items()}
        documents = [source.tokens[doc] for doc in range(own.start, own.stop)]
        chunk = source.chunks[number]
        return dict(write_chunk(chunk, found[own], of_chunk, documents, vocab_size, out))

    shards = Shards(c.folder / CHUNKS)
    chunks = len(source.chunks)
    docs = 0
    tokens = 0
    for number in range(chunks):
        left = shards.write(number, partial(write, number))
        docs += left["kept"]
        tokens += left["tokens"]
        c.progress(0.9 + 0.1 * (number + 1) / chunks, "written")
    shards.close(chunks)
    return docs, tokens


def _flops(
    c: Context,
    source: Synthetic,
    chosen: config.Filter,
    base: PreTrainedModel | None,
) -> float:
    """What measuring took, as far as models did it."""
    from synthboot.lm import model as models
    from synthboot.stages import embed

    tokens = source.tokens.num_tokens
    flops = 0.0
    if base is not None:
        flops += models.flops_per_token(base, c.cfg.model.seq_len) * tokens
    flops += embed.embedding_flops(c.cfg.embed, _embedded_tokens(c, source, chosen))
    if "likelihood" in chosen.judged.values():
        synthesizer = models.load(c.model("tune/related").best)
        # two passes, each with d1 and with another document, in one row of the synthesizer
        read = 4 * len(source) * c.cfg.tune_seq_len
        flops += models.flops_per_token(synthesizer, c.cfg.tune_seq_len) * read
    return flops


def _embedded_tokens(c: Context, source: Synthetic, chosen: config.Filter) -> int:
    """Tokens of the texts that become vectors, each as often as it does."""
    tokens = 0
    if chosen.similarity is not None:
        tokens += source.tokens.num_tokens
    if "nonfactual" in chosen.judged:  # to find the documents that it is held against
        tokens += source.tokens.num_tokens
    if "embedding" in chosen.judged.values():
        d1 = np.asarray(source.d1(), np.int64)
        tokens += source.tokens.num_tokens + int(c.corpus.pretrain.lengths[d1].sum())
    return tokens


def _quantiles(values: np.ndarray) -> list[float]:
    """What a tenth, a half and nine tenths of the samples are at most."""
    measured = values[np.isfinite(values)]
    return np.quantile(measured, [0.1, 0.5, 0.9]).tolist() if len(measured) else []


def _error(judge: judges.Filtering) -> dict[str, Any]:
    """Who judged, from which score on, and how often that is right."""
    verdict = judge.verdict
    return {
        "judge": verdict.judge,
        "threshold": verdict.threshold,
        "specificity": list(verdict.specificity),
        "sensitivity": list(verdict.sensitivity),
    }


def _account(samples: int, kept: int, thrown: Mapping[str, ThrownAway]) -> str:
    """The line of `status`: what is left, and by reason what is thrown away."""
    reasons = []
    for reason, away in thrown.items():
        reasons.append(f"{away.docs:,} {reason} ({away.tokens:,} tokens)")
    return f"{kept:,} of {samples:,} samples left; thrown away: {'; '.join(reasons) or 'nothing'}"
