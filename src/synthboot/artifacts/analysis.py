"""Measures of real and synthetic text, and examples of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthboot.artifacts.judged import Verdict
from synthboot.artifacts.model import IfAny
from synthboot.artifacts.store import declared, plain, read_listed, typed
from synthboot.data.disk import write_json
from synthboot.statistics import Interval

_RESULT = "analyze.json"
_EXAMPLES = "examples.json"
_SPREAD = "spread.json"

Segments = tuple[tuple[str, int], ...]
"""The parts of a text, each with its mark; 0 is none."""


@dataclass(frozen=True)
class Copying:
    """How much stands in runs of `copy_tokens` tokens that a source holds too: the share of `docs`
    that have such a run, the share of their `tokens` that lie in one, and the median and maximum
    over documents of the longest stretch of them, in tokens."""

    docs: float
    tokens: float
    longest_median: float
    longest_max: float


@dataclass(frozen=True)
class Duplicates:
    """How much of a sample is duplicated.

    `curve` holds (N, share of the first N documents with a near-duplicate among them); `corpus` is
    the share of all documents with one in the corpus, None where there was no corpus to look in.
    """

    curve: tuple[tuple[int, float], ...]
    corpus: float | None


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The measures of a sample of one kind of text; n-grams and lengths are of tokens."""

    docs: int
    """Documents in the sample."""
    tokens_mean: float
    """Tokens in a document."""
    tokens_quantiles: tuple[float, float, float]
    """Tokens that a tenth, a half and nine tenths of the documents have at most."""
    lengths: tuple[int, ...]
    """Documents by length, in 64 bins of 32 tokens; longer ones are in no bin."""
    repeated_4grams: float
    """Share of a document's 4-grams that repeat an earlier one, the mean over documents."""
    looping: float
    """Share of documents of whose 8-grams over a tenth repeat an earlier one."""
    duplicates: float
    """Share of documents with a near-duplicate in the sample."""
    exact_duplicates: float
    """Share of documents that an earlier one of the sample equals token by token."""
    copied_from_corpus: Copying
    """From anywhere in D_pretrain."""
    distinct_ngrams: dict[int, float]
    """By n, the share of the sample's n-grams that are different; falls with the sample's size."""
    novel_ngrams: dict[int, float]
    """By n, the share of the sample's n-grams that D_pretrain does not hold."""
    copied_from_d1: IfAny[Copying | None] = None
    """From the document's own d1; None where it has none."""


@dataclass(frozen=True, kw_only=True)
class KindMeasures(Measures):
    """The measures of a kind of text of a run."""

    entropy: IfAny[float | None] = None
    """Nats per sampled token, by the model that wrote it; None of real text."""
    duplicates_at: Duplicates
    """In a sample of its own size, which may be larger."""


@dataclass(frozen=True)
class Relevance:
    """How similar d1 and d2 are: the mean cosine of pairs, the share of pairs above alpha, and the
    number of pairs in 60 bins from -0.2 to 1; None without pairs, or without an alpha."""

    mean: float | None
    above_alpha: float | None
    histogram: IfAny[tuple[int, ...] | None] = None


@dataclass(frozen=True)
class Excess:
    """How far a synthesizer is from the least loss there is, on the pairs that stop its tuning.

    `points` are (tokens tuned on, nats per document above one who knows the world, and above one
    who has read D_pretrain); `same_entity` is the share of these pairs that are about one entity.
    """

    points: tuple[tuple[int, float, float], ...]
    same_entity: float


@dataclass(frozen=True)
class FactShares:
    """Whether sampled text tells the truth about a known world; a share of nothing is None.

    Of all `docs`, a count: those that are about some entity (`named`), about that of their d1, and
    that say something the world does not know (`strange`). Of the named ones: those that tell
    attributes in a `new_order`. Of the facts in these: `kept` from d1, else `known` to be so,
    `contradicted` by the world, or `invented`; and those in a `new_wording`.
    """

    docs: float
    named: float | None
    same_entity: float | None
    strange: float | None
    new_order: float | None
    kept: float | None
    known: float | None
    contradicted: float | None
    invented: float | None
    new_wording: float | None

    @property
    def untrue(self) -> float | None:
        """The share of facts that are not so; None where no fact is told."""
        if self.contradicted is None or self.invented is None:
            return None
        return self.contradicted + self.invented


@dataclass(frozen=True)
class WorldMeasures:
    """What a known world lets one measure: the excess by synthesizer, and the facts by kind of
    synthetic text and group of its entity."""

    excess: dict[str, Excess]
    facts: dict[str, dict[str, FactShares]]


@dataclass(frozen=True)
class PersonalData:
    """What looks like personal data of one kind: how many times it was found, how many different
    ones, and how many of these D_pretrain holds as they are."""

    found: int
    different: int
    verbatim: int


@dataclass(frozen=True)
class Leaks:
    """What of D_pretrain stands in other text, by kind of text.

    `spans` has, by number of tokens, the share of documents with a span of so many that D_pretrain
    holds in one piece; `personal` is by kind of personal data.
    """

    spans: dict[str, dict[int, float]]
    personal: dict[str, dict[str, PersonalData]]


@dataclass(frozen=True)
class Topics:
    """Which topics a kind of text has more or less of than D_pretrain; topics are by number.

    By kind of text, `shares` has the share of its documents that is about each topic, `docs` how
    many they are. `distance` is half the sum of the differences to D_pretrain, 0 where all shares
    are alike and 1 where no topic is in both; `gained` are the topics with more than twice its
    share, `lost` those with less than half of it.
    """

    names: tuple[str, ...]
    shares: dict[str, tuple[float, ...]]
    docs: dict[str, int]
    distance: dict[str, float]
    gained: dict[str, tuple[int, ...]]
    lost: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Changes:
    """How text as a whole differs from D_pretrain.

    By kind of text, `type_token_ratio` is the share of words that are different, in a thousand
    running words, and `base_loss` what base pays for it, in nats per token; None where there was
    too little of it. `topics` is None without vectors, or where none were asked for.
    """

    type_token_ratio: dict[str, float | None]
    base_loss: dict[str, Interval | None]
    topics: Topics | None


@declared
@dataclass(frozen=True)
class Analysis:
    """Real and synthetic text side by side.

    `kinds` has real text first: `unseen real`, the validation set, which is the bar, then
    D_pretrain. `relevance` is that of `real pairs`, of `random pairs`, and by kind of synthetic
    text that of d1 and what was sampled from it; it is empty without vectors. A run of
    `copy_tokens` counts as copied. `world` is None where the corpus is no known world, `judged`
    empty where nobody was asked.
    """

    kinds: dict[str, KindMeasures]
    relevance: dict[str, Relevance]
    copy_tokens: int
    world: WorldMeasures | None
    judged: tuple[Verdict, ...]
    leaks: Leaks
    changed: Changes

    def as_json(self) -> dict[str, Any]:
        """It as `analyze.json` has it."""
        return dict(plain(self))

    def save(self, folder: Path) -> None:
        """Write `analyze.json`."""
        write_json(folder / _RESULT, self.as_json())

    @staticmethod
    def open(folder: Path) -> Analysis:
        """Read what `save` wrote. Raises CorruptArtifact where it is damaged, or of another
        version."""
        return typed(read_listed(folder, _RESULT), Analysis, folder / _RESULT)


@declared
@dataclass(frozen=True)
class PairExample:
    """A real pair to look at: the cosine of its documents, and both. Of d2, 1 marks what is copied
    from d1."""

    similarity: float
    d1: str
    d2: Segments


@dataclass(frozen=True)
class SampledText:
    """What was sampled from a d1, with the mean log-probability of its tokens in nats, and why it
    ended: `end` or `length`. 1 marks what is copied from d1, 2 from elsewhere in D_pretrain."""

    segments: Segments
    mean_logprob: float
    finish: str


@declared
@dataclass(frozen=True)
class SampledExample(PairExample):
    """A d1, its most similar real d2, and what was sampled from it."""

    sampled: tuple[SampledText, ...]


@dataclass(frozen=True)
class Examples:
    """What there is to look at: sampled documents beside their d1, and a `spread` of real pairs of
    all similarities, least similar first."""

    sampled: tuple[SampledExample, ...] = ()
    spread: tuple[PairExample, ...] = ()

    def save(self, folder: Path) -> None:
        """Write `examples.json` and `spread.json`."""
        write_json(folder / _EXAMPLES, [plain(example) for example in self.sampled])
        write_json(folder / _SPREAD, [plain(example) for example in self.spread])

    @staticmethod
    def open(folder: Path) -> Examples:
        """Read what `save` wrote. Raises CorruptArtifact where it is damaged, or of another
        version."""
        sampled = read_listed(folder, _EXAMPLES)
        spread = read_listed(folder, _SPREAD)
        return Examples(
            sampled=tuple(typed(sampled, list[SampledExample], folder / _EXAMPLES)),
            spread=tuple(typed(spread, list[PairExample], folder / _SPREAD)),
        )
