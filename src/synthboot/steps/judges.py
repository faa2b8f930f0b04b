"""What judges are asked about: real text and pairs that are known, and synthetic text beside them.

Cases are made of one half of the validation set, the other half is judged as it is: what a judge
finds in real text is the floor. Facts are held against the real documents nearest to a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float

from synthboot.artifacts.judged import JudgedText, Question, Verdict
from synthboot.artifacts.pairs import HELDOUT, VALIDATION
from synthboot.artifacts.store import WORK, read_manifest
from synthboot.artifacts.synthetic import Sample
from synthboot.data.tokenizer import Decoded
from synthboot.errors import ConfigError
from synthboot.judges import panel, planted
from synthboot.judges.protocol import LONGEST, QUESTIONS, Item, Judge
from synthboot.judges.record import Record
from synthboot.rng import rng
from synthboot.steps.context import Context, conditional

_REFERENCES = 2
_REFERENCE_CHARACTERS = LONGEST // 2
_STRANGERS = 500
_OTHERS = 2  # documents in the place of d1: as many as a judge has passes
_REAL_STREAMS = 2  # of random numbers for real pairs; those of synthetic text come after them
_PAIRS = ("irrelevance", "copying")


def judged(
    c: Context, samples: Mapping[str, Sequence[Sample]]
) -> tuple[list[Verdict], list[JudgedText]]:
    """What every judge says to every question that it can judge here, and to every text.

    Raises ConfigError where a model cannot be loaded, and SamplingError where a server fails; what
    was judged is kept.
    """
    to_ask = _to_ask(c, samples)
    budget = c.cfg.analyze.judge_tokens
    tokens_left = math.inf if budget is None else float(budget)
    # those that are still to have an equal share of these tokens
    waiting = sum(_counts_tokens(asking.judge) for asking in to_ask)

    found = []
    by_text: list[JudgedText] = []
    with Record(c.folder / WORK / "judged.jsonl") as record:
        for number, asking in enumerate(to_ask):
            most_tokens = math.inf
            if _counts_tokens(asking.judge):
                most_tokens = tokens_left / waiting
                waiting -= 1
            judged = panel.judge(
                judge=asking.judge,
                question=asking.question,
                cases=asking.cases,
                kinds=asking.kinds,
                record=record,
                progress=partial(c.progress, 0.7 + 0.2 * number / len(to_ask)),
                most_tokens=most_tokens,
            )
            verdict = judged.verdict
            tokens_left = max(0.0, tokens_left - verdict.spent.tokens)
            found.append(replace(verdict, dollars=_dollars(c, verdict)))
            by_text += _by_text(judged, asking.kinds)
    return found, by_text


@dataclass(frozen=True)
class _Asking:
    """A judge and a question, the known cases, and by kind of text the items to judge."""

    judge: Judge
    question: Question
    cases: Sequence[planted.Case]
    kinds: Mapping[str, Sequence[Item]]


def _to_ask(c: Context, samples: Mapping[str, Sequence[Sample]]) -> list[_Asking]:
    """Every judge with every question that it can judge here, question by question."""
    texts = _Texts(c)
    judges = [_judge(c, name, texts) for name in c.cfg.analyze.judges]
    to_ask = []
    for question in QUESTIONS:
        able = [judge for judge in judges if judge.passes(question)]
        if not able:
            continue
        cases, real = _known(c, question, texts)
        # without real pairs, or without vectors to find references by, nothing is known
        if not cases:
            continue
        kinds = _kinds(c, question, real, samples, texts)
        for judge in able:
            to_ask.append(_Asking(judge, question, cases, kinds))
    return to_ask


def _counts_tokens(judge: Judge) -> bool:
    """Whether a judge is a language model that is asked."""
    return judge.name.startswith(("local:", "server:"))


def _dollars(c: Context, verdict: Verdict) -> float | None:
    """What a server's answers cost, where its price is known and it told all of its tokens."""
    kind, _, model = verdict.judge.partition(":")
    prices = c.cfg.engine.judge.prices
    if kind != "server" or model not in prices or verdict.spent.untold:
        return None
    of_prompt, of_completion = prices[model]
    spent = verdict.spent
    return (spent.prompt * of_prompt + spent.completion * of_completion) / 1e6


def _by_text(judged: panel.Judged, kinds: Mapping[str, Sequence[Item]]) -> Iterator[JudgedText]:
    """What a judge gave every text that it was asked about."""
    verdict = judged.verdict
    for kind, scores in judged.scores.items():
        # a budget that ended leaves the last items without a score
        for item, score in zip(kinds[kind], scores, strict=False):
            yield JudgedText(
                judge=verdict.judge,
                question=verdict.question,
                kind=kind,
                score=score,
                threshold=verdict.threshold,
                refused=verdict.refused,
                text=item.text,
                d1=item.d1,
                references=item.references,
            )


@dataclass(frozen=True)
class Filtering:
    """A judge that throws samples away: above `limit` a text is called faulty, with the error that
    the `verdict` on known cases says."""

    judge: Judge
    question: Question
    verdict: Verdict
    texts: _Texts

    def scores(self, rows: Sequence[Sample], chunk: int) -> Float[np.ndarray, " sample"]:
        """The score of every sample of a chunk."""
        has_d1 = conditional(self.texts.c.variant)
        items = self.texts.sampled(rows, self.question, has_d1, _REAL_STREAMS, chunk)
        return panel.scored(self.judge, self.question, items)


def filtering(c: Context, judged: Mapping[Question, str]) -> list[Filtering]:
    """The judges of a filter, each measured on known cases.

    Raises ConfigError for one that cannot tell what is faulty from what is not.
    """
    texts = _Texts(c)
    found = []
    with Record(c.folder / WORK / "judged.jsonl") as record:
        for question, name in sorted(judged.items()):
            judge = _judge(c, name, texts)
            cases, _ = _known(c, question, texts)
            known = panel.judge(
                judge=judge, question=question, cases=cases, kinds={}, record=record
            )
            verdict = known.verdict
            if verdict.refused:
                raise ConfigError(
                    f"synthesize/{c.variant}: `filter.judged.{question}`: {name} cannot tell it "
                    f"here ({verdict.refused}); choose another judge, drop it, or hold out more "
                    f"text (corpus.validation_docs, pair.heldout_share)"
                )
            found.append(Filtering(judge, question, verdict, texts))
    return found


def _known(c: Context, question: Question, texts: _Texts) -> tuple[list[planted.Case], list[Item]]:
    """The cases of a question, and the real text that is judged as it is."""
    more: list[Item] = []
    if question in _PAIRS:
        real = texts.unseen_pairs()
        more = texts.held_out_pairs()
    elif question == "nonfactual":
        real = texts.real_with_references()
    else:
        real = texts.real()
    # one half for the cases, one for the floor; they lie in random order
    random = rng(c.cfg.seed, "judges.planted", list(QUESTIONS).index(question))
    cases = planted.cases(question, [*real[0::2], *more], texts.strangers, random)
    # a clean case and a faulty one, in turn
    return cases[: 2 * c.cfg.analyze.judge_cases], real[1::2]


def _kinds(
    c: Context,
    question: Question,
    real: Sequence[Item],
    samples: Mapping[str, Sequence[Sample]],
    texts: _Texts,
) -> dict[str, Sequence[Item]]:
    """By kind of text the items to judge, real text first."""
    most = c.cfg.analyze.judge_items
    kinds = {"unseen real": real[:most]}
    for stream, (kind, rows) in enumerate(samples.items(), _REAL_STREAMS):
        has_d1 = conditional(kind)
        if question in _PAIRS and not has_d1:
            continue
        items = texts.sampled(rows[:most], question, has_d1, stream)
        if items:
            kinds[kind] = items
    return kinds


def _judge(c: Context, name: str, texts: _Texts) -> Judge:
    """The judge of a name."""
    from synthboot.judges import reader, rules

    kind, _, model = name.partition(":")
    if kind == "local":
        local = reader.Local(model, c.cfg.engine.device)
        files = c.outside.get(f"analyze.judges.{model}_files", [])
        return reader.Reader(name, local, {"model": model, "files": " ".join(files)})
    if kind == "server":
        return reader.Reader(name, reader.Served(model, c.cfg.engine.judge), {"model": model})
    if kind == "embedding":
        assert c.embedder is not None  # `Config` sees to that
        return rules.Nearness(c.embedder, c.cfg.embed.model)
    if kind == "likelihood":
        return _likelihood(c)
    return rules.Rules(texts.strangers)


def _likelihood(c: Context) -> Judge:
    """The run's own synthesizer as a judge."""
    from synthboot.judges.likelihood import Likelihood

    role = "tune/related"
    made = read_manifest(c.parents[role])
    assert made is not None  # it was verified before this step began
    synthesizer = c.model(role)
    tuning = synthesizer.tuning
    return Likelihood(
        folder=synthesizer.best,
        weights=f"{role} {made.fingerprint}",
        seq_len=c.cfg.tune_seq_len,
        d1_share=c.cfg.tune.d1_share,
        device=c.cfg.engine.device,
        pointer=tuning.pointer if c.cfg.tune.pointer else None,
        is_prompted=tuning.is_prompted,
    )


@dataclass(frozen=True)
class _Texts:
    """The text of a run, cut as judges read it."""

    c: Context

    @cached_property
    def corpus(self) -> Decoded:
        """D_pretrain."""
        return Decoded(self.c.corpus.pretrain, self.c.corpus.tokenizer)

    @cached_property
    def validation(self) -> list[str]:
        """The validation set."""
        decoded = Decoded(self.c.corpus.validation, self.c.corpus.tokenizer)
        return [text[:LONGEST] for text in decoded]

    @cached_property
    def strangers(self) -> list[str]:
        """Some documents of D_pretrain, drawn at random."""
        random = rng(self.c.cfg.seed, "judges.strangers")
        count = min(_STRANGERS, len(self.corpus))
        chosen = random.choice(len(self.corpus), count, replace=False)
        return [self.corpus[doc][:LONGEST] for doc in chosen.tolist()]

    def real(self) -> list[Item]:
        """Unseen real text."""
        return [Item(text) for text in self.validation]

    def real_with_references(self) -> list[Item]:
        """Unseen real text and the real documents nearest to it, if there are vectors."""
        if self.c.embeddings is None:
            return []
        return self._with_references(self.validation, self.c.embeddings.validation)

    def unseen_pairs(self) -> list[Item]:
        """Real pairs whose d2 nothing was trained on, one for each d2, if there are pairs."""
        return self._real_pairs(VALIDATION, lambda d2: self.validation[d2], 0)

    def held_out_pairs(self) -> list[Item]:
        """Real pairs of D_pretrain that no synthesizer was tuned on, one for each d2."""
        return self._real_pairs(HELDOUT, lambda d2: self.corpus[d2][:LONGEST], 1)

    def _real_pairs(self, split: int, text_of: Callable[[int], str], stream: int) -> list[Item]:
        if "pair/related" not in self.c.parents:
            return []
        # most similar first, so the first of a d2 is its best
        best: dict[int, int] = {}
        for d1, d2, _ in self.c.pairs("pair/related").only(split):
            best.setdefault(d2, d1)
        # in the order of the documents, which is random
        d2s = sorted(best)
        return self._pairs([best[d2] for d2 in d2s], [text_of(d2) for d2 in d2s], stream)

    def sampled(
        self, rows: Sequence[Sample], question: Question, has_d1: bool, *stream: int
    ) -> list[Item]:
        """Synthetic text, with what it takes to judge it; nothing where that is not there."""
        if not rows:
            return []
        texts = [row.text[:LONGEST] for row in rows]
        if question in _PAIRS:
            return self._pairs([row.d1 for row in rows], texts, *stream)
        if question != "nonfactual":
            return [Item(text) for text in texts]

        if self.c.embedder is not None:
            return self._with_references(texts, self.c.embedder(texts))
        # without vectors to find the nearest documents by, d1 is the one that is known to be near
        if not has_d1:
            return []
        items = []
        for row, text in zip(rows, texts, strict=True):
            d1 = self.corpus[row.d1][:_REFERENCE_CHARACTERS]
            items.append(Item(text, references=(d1,)))
        return items

    def _pairs(self, d1s: Sequence[int], texts: Sequence[str], *stream: int) -> list[Item]:
        """Pairs, each with random documents to compare d1 with."""
        random = rng(self.c.cfg.seed, "judges.others", *stream)
        others = random.integers(len(self.strangers), size=(len(texts), _OTHERS))
        items = []
        for d1, text, other in zip(d1s, texts, others.tolist(), strict=True):
            strangers = tuple(self.strangers[i] for i in other)
            items.append(Item(text, self.corpus[d1][:LONGEST], others=strangers))
        return items

    def _with_references(
        self, texts: Sequence[str], vectors: Float[np.ndarray, "text dim"]
    ) -> list[Item]:
        from synthboot.neighbors import join

        assert self.c.embeddings is not None
        real = self.c.embeddings.pretrain
        nearest, _ = join.exact(vectors, real, _REFERENCES, device=self.c.device)
        items = []
        for text, docs in zip(texts, nearest.tolist(), strict=True):
            references = tuple(self.corpus[doc][:_REFERENCE_CHARACTERS] for doc in docs)
            items.append(Item(text, references=references))
        return items
