"""analyze: pairs and synthetic text in, measures and examples out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from synthboot import statistics
from synthboot.artifacts.analysis import Analysis
from synthboot.artifacts.corpus import PRETRAIN
from synthboot.artifacts.pairs import TRAIN
from synthboot.artifacts.store import WORK
from synthboot.artifacts.synthetic import Sample
from synthboot.data.disk import remove
from synthboot.data.tokenizer import Decoded
from synthboot.data.tokens import Tokens
from synthboot.steps import judges, worlds
from synthboot.steps.context import Context, Outcome, conditional

if TYPE_CHECKING:
    from synthboot.stages.duplicates import Duplicates

_BASE_DOCS = 200
"""Documents of a kind that base reads: enough for a mean, and a model takes its time."""


def analyze(c: Context) -> Outcome:
    """Measures of real and synthetic text side by side, and examples."""
    from synthboot.stages import analyze as stage

    cfg = c.cfg.analyze
    corpus = c.corpus.pretrain
    tokenizer = c.corpus.tokenizer

    kinds = {}
    for name, tokens in (("unseen real", c.corpus.validation), ("D_pretrain", corpus)):
        real = _bare(tokens, cfg.docs)
        kinds[name] = stage.analyze(
            real,
            [tokenizer.decode(t) for t in real],
            corpus,
            cfg,
        )

    samples = _samples(c)
    for number, (kind, rows) in enumerate(samples.items(), 1):
        c.progress(0.6 * number / (len(samples) + 1), kind)
        kinds[kind] = _analyzed(c, kind, rows, corpus)

    c.progress(0.6, "duplicates")
    for kind, found in _duplicates(c).items():
        kinds[kind]["duplicates_at"] = asdict(found)

    of_world = worlds.measured(c, samples) if worlds.is_world(c) else None
    judged, by_text = judges.judged(c, samples) if cfg.judges else ([], [])
    vectors = _vectors(c, samples)
    result = {
        "kinds": kinds,
        "relevance": _relevance(c, samples, vectors),
        "copy_tokens": cfg.copy_tokens,
        "world": of_world,
        "judged": judged,
        "leaks": _leaks(c, samples),
        "changed": _changed(c, samples, vectors),
    }

    pairs = None
    if "pair/related" in c.parents:
        pairs = c.pairs("pair/related").only(TRAIN)
    related = samples.get("related", [])
    examples = []
    if pairs and related:
        examples = stage.examples(related, pairs, tokenizer, corpus, cfg)
    spread = stage.spread(pairs, tokenizer, corpus, cfg) if pairs else []
    Analysis(result, examples, spread).save(c.folder, by_text)
    counts: dict[str, Any] = {"kinds": list(kinds), "examples": len(examples)}
    if cfg.judges:
        counts["requests"] = sum(verdict["requests"] for verdict in judged)
        for name in ("prompt", "completion"):
            counts[f"judge_{name}_tokens"] = sum(verdict["spent"][name] for verdict in judged)
    return counts, {}


def _samples(c: Context) -> dict[str, list[Sample]]:
    """By kind of synthetic text, the documents that are analyzed."""
    by_kind = {}
    for kind, synthetic in c.synthetic.items():
        by_kind[kind] = list(itertools.islice(synthetic, c.cfg.analyze.docs))
    return by_kind


def _analyzed(
    c: Context,
    kind: str,
    rows: Sequence[Sample],
    corpus: Tokens,
) -> dict[str, Any]:
    """The measures of one kind of synthetic text, by the tokens that the arms read."""
    from synthboot.stages import analyze as stage

    tokens = [row.tokens for row in rows]
    texts = [row.text for row in rows]
    given = [corpus[row.d1][:-1] for row in rows] if conditional(kind) else None
    result = stage.analyze(tokens, texts, corpus, c.cfg.analyze, given)

    # per sampled token: where a document ended by itself, its end was sampled too
    sampled = [row.sampled + (row.finish == "end") for row in rows]
    total_logprob = 0.0
    for row, count in zip(rows, sampled, strict=True):
        total_logprob += row.mean_logprob * count
    result["entropy"] = -total_logprob / max(1, sum(sampled))
    return result


def _duplicates(c: Context) -> dict[str, Duplicates]:
    """By kind of text, how much of it has a near-duplicate in it, and in D_pretrain."""
    from synthboot.stages import duplicates as stage

    tokenizer = c.corpus.tokenizer
    corpus = Decoded(c.corpus.pretrain, tokenizer)
    nothing = Decoded(corpus.tokens.head(0), tokenizer)
    kinds = {"unseen real": c.corpus.validation, "D_pretrain": corpus.tokens}
    for kind, synthetic in c.synthetic.items():
        kinds[kind] = synthetic.tokens

    found = {}
    folder = c.folder / WORK / "signatures"
    most = c.cfg.analyze.duplicate_docs or c.cfg.analyze.docs
    of_corpus = stage.signatures(corpus, folder / "corpus")
    for kind, tokens in kinds.items():
        sample = Decoded(tokens.head(min(most, len(tokens))), tokenizer)
        # of D_pretrain all is in D_pretrain
        other = nothing if kind == "D_pretrain" else corpus
        rows = of_corpus[: len(other)]
        found[kind] = stage.duplicates(sample, other, rows, folder / "both")
    # mapped: a network disk (NFS) keeps a folder as long as a file in it is in use
    del of_corpus, rows
    remove(folder)
    return found


def _bare(tokens: Tokens, count: int) -> list[np.ndarray]:
    """The first `count` documents, which lie in random order already, without their end tokens."""
    chosen = range(len(tokens))[:count]
    return [np.asarray(tokens[doc][:-1], np.int64) for doc in chosen]


def _vectors(
    c: Context,
    samples: Mapping[str, Sequence[Sample]],
) -> dict[str, np.ndarray]:
    """By kind of synthetic text the unit vectors of its samples, (doc, dim); none where nothing
    here can embed them."""
    if c.embedder is None:
        return {}
    vectors = {}
    for kind, rows in samples.items():
        if rows:
            vectors[kind] = c.embedder([row.text for row in rows])
    return vectors


def _relevance(
    c: Context,
    samples: Mapping[str, Sequence[Sample]],
    vectors: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """Similarity of d1 with real d2, with sampled d2, and of random pairs."""
    from synthboot.stages.analyze import relevance
    from synthboot.stages.pair import random_similarity

    if c.embeddings is None:
        return {}
    real = c.embeddings.pretrain
    pairs = c.pairs("pair/related")
    alpha = pairs.alpha
    by_chance = random_similarity(real, c.cfg.seed, 20_000)
    result = {
        "real pairs": relevance(pairs.only(TRAIN).similarity, alpha),
        "random pairs": relevance(by_chance, alpha),
    }
    for kind, sampled in vectors.items():
        if conditional(kind):
            given = real[[row.d1 for row in samples[kind]]].astype(np.float32)
            similarity = np.einsum("ij,ij->i", given, sampled)  # (doc)
            result[kind] = relevance(similarity, alpha)
    return result


def _leaks(
    c: Context,
    samples: Mapping[str, Sequence[Sample]],
) -> dict[str, Any]:
    """What of D_pretrain stands in the text that was written, unseen real text beside it: whole
    spans, by the documents that are analyzed; what looks like personal data, by all there are."""
    from synthboot.data import personal
    from synthboot.stages.analyze import personal_data, verbatim_spans

    corpus = c.corpus.pretrain
    spans = {"unseen real": verbatim_spans(_bare(c.corpus.validation, c.cfg.analyze.docs), corpus)}
    for kind, rows in samples.items():
        spans[kind] = verbatim_spans([row.tokens for row in rows], corpus)

    c.progress(0.9, "looking for personal data")
    read = personal.times(document.text for document in c.corpus.texts(PRETRAIN))
    unseen = personal.times(document.text for document in c.corpus.texts("validation"))
    found = {"D_pretrain": personal_data(read, read), "unseen real": personal_data(unseen, read)}
    for kind, synthetic in c.synthetic.items():
        found[kind] = personal_data(personal.times(synthetic.texts()), read)
    return {"spans": spans, "personal": found}


def _changed(
    c: Context,
    samples: Mapping[str, Sequence[Sample]],
    vectors: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """How synthetic text differs from D_pretrain as a whole: in its words, in what it costs base,
    in its topics. Unseen real text shows what the same text without any change differs by."""
    from synthboot.lm import model as models
    from synthboot.lm import score
    from synthboot.stages.analyze import type_token_ratio

    tokenizer = c.corpus.tokenizer
    docs = c.cfg.analyze.docs
    by_kind = {
        "D_pretrain": _bare(c.corpus.pretrain, docs),
        "unseen real": _bare(c.corpus.validation, docs),
    }
    for kind, rows in samples.items():
        by_kind[kind] = [row.tokens for row in rows]

    base = models.load(c.model("base").best, c.device)
    ratios = {}
    base_loss: dict[str, statistics.Interval | None] = {}
    for kind, documents in by_kind.items():
        ratios[kind] = type_token_ratio([tokenizer.decode(tokens) for tokens in documents])
        closed = [[*tokens.tolist(), tokenizer.end] for tokens in documents[:_BASE_DOCS]]
        scores = score.documents(base, Tokens.of(closed), c.cfg.model.seq_len, tokenizer.end)
        base_loss[kind] = None
        if len(closed) > 1:
            by_document = scores.loss[None]  # base is one model: (seed, doc)
            base_loss[kind] = statistics.estimate(by_document, scores.tokens).interval
    return {
        "type_token_ratio": ratios,
        "base_loss": base_loss,
        "topics": _topics(c, vectors),
    }


def _topics(c: Context, vectors: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Which topics were gained and lost; None where documents have no vectors, or none was asked
    for."""
    from synthboot.stages import topics as stage

    if c.embeddings is None or not c.cfg.analyze.topics:
        return None
    real = c.embeddings.pretrain
    centres = stage.topics(real, c.cfg.analyze.topics, c.cfg.seed, c.device)
    by_kind = {"D_pretrain": stage.assigned(real, centres)}
    by_kind["unseen real"] = stage.assigned(c.embeddings.validation, centres)
    for kind, of_kind in vectors.items():
        by_kind[kind] = stage.assigned(of_kind, centres)
    texts = (document.text for document in c.corpus.texts(PRETRAIN))
    names = stage.named(texts, by_kind["D_pretrain"], len(centres))
    return stage.compared(by_kind, names)
