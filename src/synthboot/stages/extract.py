"""What of its training text can be got out of a model again, and of which arm more.

1. `extract` asks one model: it is given the beginning of documents that it has read, and of others
   that it has not, and continues them; and it is asked what each canary costs,
2. `compared` sets the arms beside each other and beside repetition, over seeds and documents.

What a model gives back of unseen documents is what can be guessed: the zero of the scale.

Source: arXiv:2202.07646 (Carlini et al. 2022), extraction by a prefix of 50 tokens and the greedy
continuation; near matches by a BLEU above 0.75, arXiv:2210.17546 (Ippolito et al. 2022); the
chance of several samples by the probability of a continuation, arXiv:2410.19482 (Hayes et al.
2024); exposure, arXiv:1802.08232. Deviation: the prefix is a document's
beginning, not any 50 tokens of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from synthboot import config, statistics
from synthboot.artifacts.evaluation import REPETITION
from synthboot.artifacts.extraction import (
    FIGURES,
    ArmExtraction,
    Continued,
    Extraction,
    GivenBack,
)
from synthboot.artifacts.store import Progress, silent
from synthboot.data.canaries import Canary, among, exposure
from synthboot.data.tokenizer import Tokenizer
from synthboot.data.tokens import Tokens
from synthboot.lm import score
from synthboot.lm.batches import IGNORE
from synthboot.lm.sampling import engines
from synthboot.lm.sampling.protocol import Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEAR = 0.75
"""BLEU from which a continuation is nearly that of the document."""

_ORDERS = 4  # BLEU counts runs of one to four tokens
_BATCH_DOCS = 256


def extract(
    model: PreTrainedModel,
    corpus: Tokens,
    test_set: Tokens,
    canaries: Sequence[Canary],
    tokenizer: Tokenizer,
    cfg: config.Extract,
    seq_len: int,
    batch: int | None = None,
    progress: Progress = silent,
) -> Continued:
    """What a model gives back of the first `cfg.docs` documents of both that are long enough, and
    what the `canaries` cost it; canaries are no documents here.

    Documents lie in an order that a hash decided, so the first are as good as any.
    """
    encoded = Tokens.of(tokenizer.documents([canary.text for canary in canaries]))
    loss = score.documents(model, encoded, seq_len, tokenizer.end).loss

    seen = _long_enough(corpus, cfg, encoded)
    unseen = _long_enough(test_set, cfg, encoded)
    documents = [corpus[doc][:-1] for doc in seen] + [test_set[doc][:-1] for doc in unseen]

    figures = []
    greedy: list[tuple[int, ...]] = []
    for start in range(0, len(documents), _BATCH_DOCS):
        some = documents[start : start + _BATCH_DOCS]
        for tokens, row in _continued(model, some, tokenizer, cfg, batch):
            greedy.append(tokens)
            figures.append(row)
        progress(len(greedy) / len(documents), f"{len(greedy):,} documents continued")
    return Continued(
        document=np.array([*seen, *unseen], np.int64),
        seen=np.arange(len(documents)) < len(seen),
        figures=np.array(figures, np.float64).reshape(-1, len(FIGURES)),
        tokens=tuple(greedy),
        canary_loss=loss,
    )


def _long_enough(tokens: Tokens, cfg: config.Extract, canaries: Tokens) -> list[int]:
    """The first documents that hold a prefix and what is to follow it, canaries left out."""
    wanted = cfg.prefix_tokens + cfg.continuation_tokens
    is_long = tokens.lengths > wanted  # the end is a token too
    found: list[int] = np.flatnonzero(is_long & ~among(tokens, canaries)).tolist()
    return found[: cfg.docs]


def _continued(
    model: PreTrainedModel,
    documents: Sequence[np.ndarray],
    tokenizer: Tokenizer,
    cfg: config.Extract,
    batch: int | None,
) -> Iterator[tuple[tuple[int, ...], tuple[float, ...]]]:
    """The greedy continuation of each document, and its figures."""
    how = Sampling(
        temperature=0.0,
        top_p=1.0,
        batch=batch,
        dtype="float32",  # the likeliest of two that are close is not to depend on rounding
        absent=tokenizer.absent(model.config.get_text_config().vocab_size),
    )
    sampler = engines.sampler(model, tokenizer.end, how)
    given = cfg.prefix_tokens
    requests = []
    rows = []
    for document in documents:
        text = np.concatenate(([tokenizer.end], document[: given + cfg.continuation_tokens]))
        text = text.astype(np.int64)
        prompt = tuple(text[: 1 + given].tolist())
        requests.append(Request(prompt, seed=0, max_tokens=cfg.continuation_tokens))
        targets = text[1:].copy()
        targets[:given] = IGNORE
        rows.append((text[:-1], targets))

    # the chance that one of several independent samples is exact: no need to draw any
    probability = np.exp(-score.row_losses(model, rows))
    sampled = 1 - (1 - probability) ** cfg.samples
    for number, result in enumerate(sampler.sample(requests)):
        truth = rows[number][1][given:].tolist()
        back = result.tokens
        yield (
            back,
            (
                float(list(back) == truth),
                float(bleu(back, truth) > NEAR),
                _leading(back, truth) / len(truth),
                float(sampled[number]),
            ),
        )


def bleu(given: Sequence[int], truth: Sequence[int]) -> float:
    """BLEU of tokens against one reference, in [0, 1]: the geometric mean of the shares of runs of
    one to four tokens that the reference has as often, times a penalty for a shorter text.

    Source: Papineni et al. 2002, without smoothing: 0 where no run of four is right.
    """
    logs = 0.0
    for n in range(1, _ORDERS + 1):
        own = Counter(tuple(given[i : i + n]) for i in range(len(given) - n + 1))
        reference = Counter(tuple(truth[i : i + n]) for i in range(len(truth) - n + 1))
        right = (own & reference).total()
        if not right:
            return 0.0
        logs += math.log(right / own.total()) / _ORDERS
    return math.exp(logs + min(0.0, 1 - len(truth) / len(given)))


def _leading(given: Sequence[int], truth: Sequence[int]) -> int:
    """How many tokens are right before the first that is not."""
    for count, (a, b) in enumerate(zip(given, truth, strict=False)):
        if a != b:
            return count
    return min(len(given), len(truth))


def compared(
    by_arm: Mapping[str, Sequence[Continued]],
    canaries: Sequence[Canary],
    cfg: config.Extract,
    confidence: float,
) -> Extraction:
    """What can be got out of every arm, whose seeds are given in order."""
    first = by_arm[REPETITION][0]
    figures = {arm: _figures(arm, by_arm, confidence) for arm in by_arm}
    for name in FIGURES:
        p_values = {}
        for arm in by_arm:
            gap = figures[arm][name].difference
            if gap is not None:
                p_values[arm] = gap.p
        for arm, adjusted in statistics.holm(p_values).items():
            figures[arm][name] = replace(figures[arm][name], p_adjusted=adjusted)

    arms = {}
    planted = sorted({canary.copies for canary in canaries} - {0})
    for arm, by_seed in by_arm.items():
        bits = {n: _exposure(by_seed, canaries, n, confidence) for n in planted}
        arms[arm] = ArmExtraction(figures[arm], bits)

    candidates = sum(canary.copies == 0 for canary in canaries)
    return Extraction(
        arms=arms,
        seen_docs=int(first.seen.sum()),
        unseen_docs=int((~first.seen).sum()),
        prefix_tokens=cfg.prefix_tokens,
        continuation_tokens=cfg.continuation_tokens,
        samples=cfg.samples,
        seeds=len(by_arm[REPETITION]),
        canaries=len(canaries) - candidates,
        candidates=candidates,
        confidence=confidence,
    )


def _figures(
    arm: str,
    by_arm: Mapping[str, Sequence[Continued]],
    confidence: float,
) -> dict[str, GivenBack]:
    """What an arm gives back, by figure; p is not adjusted yet."""
    by_seed = by_arm[arm]
    figures = {}
    for column, name in enumerate(FIGURES):
        gap = None
        if arm != REPETITION:
            gap = _difference(by_seed, by_arm[REPETITION], column, confidence)
        figures[name] = GivenBack(
            seen=_share(_values(by_seed, column, True), confidence),
            unseen=_share(_values(by_seed, column, False), confidence),
            difference=gap,
        )
    return figures


def _values(
    by_seed: Sequence[Continued], column: int, seen: bool
) -> Float64[np.ndarray, "seed item"]:
    rows = [one.figures[one.seen == seen, column] for one in by_seed]
    return np.stack(rows)


def _share(
    values: Float64[np.ndarray, "seed item"],
    confidence: float,
) -> statistics.Interval | None:
    return statistics.share(values, confidence) if values.shape[1] > 1 else None


def _difference(
    by_seed: Sequence[Continued],
    baseline: Sequence[Continued],
    column: int,
    confidence: float,
) -> statistics.Difference | None:
    """What an arm gives back of seen documents beyond what repetition does."""
    values = _values(by_seed, column, True)
    if values.shape[1] < 2:
        return None
    gap = statistics.difference(
        values,
        _values(baseline, column, True),
        confidence=confidence,
    )
    return gap.tested


def _exposure(
    by_seed: Sequence[Continued],
    canaries: Sequence[Canary],
    copies: int,
    confidence: float,
) -> statistics.Interval | None:
    """The mean exposure of the canaries of so many copies, in bits; None where one canary has no
    interval."""
    counts = np.array([canary.copies for canary in canaries])
    bits = []
    for one in by_seed:
        loss = one.canary_loss
        bits.append(exposure(loss[counts == copies], loss[counts == 0]))
    values = np.stack(bits)  # (seed, canary)
    if values.shape[1] < 2:
        return None
    value, low, high = statistics.estimate(values, confidence=confidence).interval
    most = math.log2(1 + int((counts == 0).sum()))
    return statistics.Interval(value, max(0.0, low), min(most, high))
