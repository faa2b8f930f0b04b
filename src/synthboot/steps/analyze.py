"""analyze: pairs and synthetic text in, measures and examples out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from synthboot import statistics
from synthboot.artifacts.analysis import (
    Analysis,
    Changes,
    Duplicates,
    Examples,
    KindMeasures,
    Leaks,
    Measures,
    PersonalData,
    Relevance,
    Topics,
)
from synthboot.artifacts.corpus import PRETRAIN
from synthboot.artifacts.judged import NOTHING, Verdict, save_judged_texts
from synthboot.artifacts.pairs import TRAIN
from synthboot.artifacts.store import WORK
from synthboot.artifacts.synthetic import Sample
from synthboot.data.disk import remove
from synthboot.data.tokenizer import Decoded
from synthboot.data.tokens import Tokens
from synthboot.steps import judges, worlds
from synthboot.steps.context import Context, Outcome, conditional

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BASE_DOCS = 200
"""Documents of a kind that base reads: enough for a mean, and a model takes its time."""
_RANDOM_PAIRS = 20_000

Samples = Mapping[str, Sequence[Sample]]
"""By kind of synthetic text, the samples that are analyzed."""


def analyze(c: Context) -> Outcome:
    """Measures of real and synthetic text side by side, and examples."""
    judges_asked = bool(c.cfg.analyze.judges)
    samples = _samples(c)

    kinds = _kinds(c, samples)
    world = worlds.measured(c, samples) if worlds.is_world(c) else None
    judged, judged_texts = judges.judged(c, samples) if judges_asked else ([], [])
    vectors = _vectors(c, samples)
    analysis = Analysis(
        kinds=kinds,
        relevance=_relevance(c, samples, vectors),
        copy_tokens=c.cfg.analyze.copy_tokens,
        world=world,
        judged=tuple(judged),
        leaks=_leaks(c, samples),
        changed=_changed(c, samples, vectors),
    )
    examples = _examples(c, samples)

    analysis.save(c.folder)
    examples.save(c.folder)
    save_judged_texts(c.folder, judged_texts)

    counts: dict[str, Any] = {"kinds": list(kinds), "examples": len(examples.sampled)}
    if judges_asked:
        counts |= _asked(judged)
    return counts, {}


def _asked(judged: Sequence[Verdict]) -> dict[str, int]:
    """What judges took, for the manifest."""
    spent = sum((verdict.spent for verdict in judged), NOTHING)
    return {
        "requests": sum(verdict.requests for verdict in judged),
        "judge_prompt_tokens": spent.prompt,
        "judge_completion_tokens": spent.completion,
    }


def _samples(c: Context) -> dict[str, list[Sample]]:
    """The first samples of every kind of synthetic text, as many as are analyzed."""
    by_kind = {}
    for kind, synthetic in c.synthetic.items():
        by_kind[kind] = list(itertools.islice(synthetic, c.cfg.analyze.docs))
    return by_kind


def _kinds(c: Context, samples: Samples) -> dict[str, KindMeasures]:
    """The measures of every kind of text, real text first."""
    measured: dict[str, Measures] = {
        "unseen real": _of_real(c, c.corpus.validation),
        "D_pretrain": _of_real(c, c.corpus.pretrain),
    }
    for number, (kind, rows) in enumerate(samples.items(), 1):
        c.progress(0.6 * number / (len(samples) + 1), kind)
        measured[kind] = _of_samples(c, kind, rows)

    c.progress(0.6, "duplicates")
    duplicates = _duplicates(c)

    kinds = {}
    for kind, measures in measured.items():
        kinds[kind] = KindMeasures(
            **vars(measures),
            entropy=_entropy(samples[kind]) if kind in samples else None,
            duplicates_at=duplicates[kind],
        )
    return kinds


def _of_real(c: Context, tokens: Tokens) -> Measures:
    """The measures of the first documents of a set, as many as are analyzed."""
    from synthboot.stages import analyze as stage

    documents = _first_docs(tokens, c.cfg.analyze.docs)
    texts = [c.corpus.tokenizer.decode(document) for document in documents]
    return stage.analyze(documents, texts, c.corpus.pretrain, c.cfg.analyze)


def _of_samples(c: Context, kind: str, rows: Sequence[Sample]) -> Measures:
    """The measures of samples of one kind, beside their d1 where they have one."""
    from synthboot.stages import analyze as stage

    corpus = c.corpus.pretrain
    return stage.analyze(
        samples=[row.tokens for row in rows],
        texts=[row.text for row in rows],
        corpus=corpus,
        cfg=c.cfg.analyze,
        given=[corpus[row.d1][:-1] for row in rows] if conditional(kind) else None,
    )


def _entropy(rows: Sequence[Sample]) -> float:
    """Nats per sampled token, by the model that wrote the samples."""
    total_logprob = 0.0
    total_tokens = 0
    for row in rows:
        # where a document ended by itself, its end token was sampled too
        tokens = row.sampled + (row.finish == "end")
        total_logprob += row.mean_logprob * tokens
        total_tokens += tokens
    return -total_logprob / max(1, total_tokens)


def _duplicates(c: Context) -> dict[str, Duplicates]:
    """By kind of text, how much of it has a near-duplicate in it, and in D_pretrain."""
    from synthboot.stages import duplicates as stage

    tokenizer = c.corpus.tokenizer
    corpus = Decoded(c.corpus.pretrain, tokenizer)
    nothing = Decoded(corpus.tokens.head(0), tokenizer)
    kinds = {
        "unseen real": c.corpus.validation,
        "D_pretrain": corpus.tokens,
    }
    for kind, synthetic in c.synthetic.items():
        kinds[kind] = synthetic.tokens

    found = {}
    folder = c.folder / WORK / "signatures"
    most = c.cfg.analyze.duplicate_docs or c.cfg.analyze.docs
    of_corpus = stage.signatures(corpus, folder / "corpus")
    for kind, tokens in kinds.items():
        sample = Decoded(tokens.head(min(most, len(tokens))), tokenizer)
        if kind == "D_pretrain":
            # every document of D_pretrain is in D_pretrain: it is compared with itself alone
            found[kind] = stage.duplicates(sample, nothing, of_corpus[:0], folder / "both")
        else:
            found[kind] = stage.duplicates(sample, corpus, of_corpus, folder / "both")
    # mapped: a network disk (NFS) keeps a folder as long as a file in it is in use
    del of_corpus
    remove(folder)
    return found


def _first_docs(tokens: Tokens, count: int) -> list[np.ndarray]:
    """The first `count` documents without their end tokens: a random sample, since the documents of
    a set lie in random order."""
    chosen = range(len(tokens))[:count]
    return [np.asarray(tokens[doc][:-1], np.int64) for doc in chosen]


def _examples(c: Context, samples: Samples) -> Examples:
    """Samples of related pairs beside their d1 and real d2, and real pairs of all similarities."""
    from synthboot.stages import analyze as stage

    if "pair/related" not in c.parents:
        return Examples()
    pairs = c.pairs("pair/related").only(TRAIN)
    if not pairs:
        return Examples()

    cfg = c.cfg.analyze
    corpus = c.corpus.pretrain
    tokenizer = c.corpus.tokenizer
    related = samples.get("related", [])
    return Examples(
        sampled=tuple(stage.examples(related, pairs, tokenizer, corpus, cfg)),
        spread=tuple(stage.spread(pairs, tokenizer, corpus, cfg)),
    )


def _vectors(c: Context, samples: Samples) -> dict[str, np.ndarray]:
    """The unit vectors of the samples of each kind, (doc, dim); no kind where nothing here can
    embed text."""
    if c.embedder is None:
        return {}
    vectors = {}
    for kind, rows in samples.items():
        if rows:
            vectors[kind] = c.embedder([row.text for row in rows])
    return vectors


def _relevance(
    c: Context,
    samples: Samples,
    vectors: Mapping[str, np.ndarray],
) -> dict[str, Relevance]:
    """Similarity of d1 with real d2, with sampled d2, and of random pairs."""
    from synthboot.stages.analyze import relevance
    from synthboot.stages.pair import random_similarity

    if c.embeddings is None:
        return {}
    real = c.embeddings.pretrain
    pairs = c.pairs("pair/related")
    alpha = pairs.alpha
    by_chance = random_similarity(real, c.cfg.seed, _RANDOM_PAIRS)
    found = {
        "real pairs": relevance(pairs.only(TRAIN).similarity, alpha),
        "random pairs": relevance(by_chance, alpha),
    }
    for kind, sampled in vectors.items():
        if conditional(kind):
            given = real[[row.d1 for row in samples[kind]]].astype(np.float32)
            similarity = np.einsum("ij,ij->i", given, sampled)  # (doc)
            found[kind] = relevance(similarity, alpha)
    return found


def _leaks(c: Context, samples: Samples) -> Leaks:
    """What of D_pretrain stands in synthetic text, and in unseen real text beside it: verbatim
    spans, in the documents that are analyzed; what looks like personal data, in all there are."""
    from synthboot.stages.analyze import verbatim_spans

    corpus = c.corpus.pretrain
    unseen = _first_docs(c.corpus.validation, c.cfg.analyze.docs)
    spans = {"unseen real": verbatim_spans(unseen, corpus)}
    for kind, rows in samples.items():
        spans[kind] = verbatim_spans([row.tokens for row in rows], corpus)

    c.progress(0.9, "looking for personal data")
    return Leaks(spans=spans, personal=_personal(c))


def _personal(c: Context) -> dict[str, dict[str, PersonalData]]:
    """What looks like personal data, by kind of text and of data."""
    from synthboot.data import personal
    from synthboot.stages.analyze import personal_data

    read = personal.times(document.text for document in c.corpus.texts(PRETRAIN))
    unseen = personal.times(document.text for document in c.corpus.texts("validation"))
    found = {
        "D_pretrain": personal_data(read, read),
        "unseen real": personal_data(unseen, read),
    }
    for kind, synthetic in c.synthetic.items():
        found[kind] = personal_data(personal.times(synthetic.texts()), read)
    return found


def _changed(
    c: Context,
    samples: Samples,
    vectors: Mapping[str, np.ndarray],
) -> Changes:
    """How synthetic text as a whole differs from D_pretrain: in its words, its loss under base, its
    topics. Unseen real text is the bar: it differs by chance alone."""
    from synthboot.lm import model as models
    from synthboot.stages.analyze import type_token_ratio

    docs = c.cfg.analyze.docs
    by_kind = {
        "D_pretrain": _first_docs(c.corpus.pretrain, docs),
        "unseen real": _first_docs(c.corpus.validation, docs),
    }
    for kind, rows in samples.items():
        by_kind[kind] = [row.tokens for row in rows]

    tokenizer = c.corpus.tokenizer
    base = models.load(c.model("base").best, c.device)
    ratios = {}
    base_loss = {}
    for kind, documents in by_kind.items():
        ratios[kind] = type_token_ratio([tokenizer.decode(tokens) for tokens in documents])
        base_loss[kind] = _base_loss(c, base, documents[:_BASE_DOCS])
    return Changes(
        type_token_ratio=ratios,
        base_loss=base_loss,
        topics=_topics(c, vectors),
    )


def _base_loss(
    c: Context,
    base: PreTrainedModel,
    documents: Sequence[np.ndarray],
) -> statistics.Interval | None:
    """The loss of documents without end tokens under base, in nats per token; None where they are
    too few for an interval."""
    from synthboot.lm import score

    if len(documents) < 2:
        return None
    end = c.corpus.tokenizer.end
    closed = Tokens.of([[*tokens.tolist(), end] for tokens in documents])
    scores = score.documents(base, closed, c.cfg.model.seq_len, end)
    by_document = scores.loss[None]  # base is one model: (seed, doc)
    return statistics.estimate(by_document, scores.tokens).interval


def _topics(c: Context, vectors: Mapping[str, np.ndarray]) -> Topics | None:
    """Which topics were gained and lost; None where documents have no vectors, or no topics were
    asked for."""
    from synthboot.stages import topics as stage

    if c.embeddings is None or not c.cfg.analyze.topics:
        return None
    real = c.embeddings.pretrain
    centres = stage.topics(real, c.cfg.analyze.topics, c.cfg.seed, c.device)
    by_kind = {
        "D_pretrain": stage.assigned(real, centres),
        "unseen real": stage.assigned(c.embeddings.validation, centres),
    }
    for kind, of_kind in vectors.items():
        by_kind[kind] = stage.assigned(of_kind, centres)

    texts = (document.text for document in c.corpus.texts(PRETRAIN))
    names = stage.named(texts, by_kind["D_pretrain"], len(centres))
    return stage.compared(by_kind, names)
