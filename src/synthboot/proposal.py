"""A configuration for files that were looked at: what this machine can do with them in some hours.

All of the text, read often, comes first, since that is where the method is to help; then the
largest model that so many tokens are enough for; then what makes a result of it: a rival that is
tuned, more seeds, another control.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthboot import loading, recipes, strict_yaml
from synthboot.config import Config
from synthboot.errors import DataError
from synthboot.runner import cost
from synthboot.runner.state import State
from synthboot.survey import Survey

LEAST_DOCS = 100
"""Of fewer documents the nearest is hardly related, and a test set is none."""
_WANTED_VALIDATION = 60
"""Documents of which about half have a related one: of fewer than twenty nothing is said of what d1
could tell, and of none nothing says when to stop tuning."""
_SIZES = ((16, 1024, 16), (12, 768, 12), (8, 512, 8), (6, 256, 8), (4, 128, 8), (3, 96, 6))
"""Layers, width and heads, the largest first; six heads and more learn to copy sooner."""
_PASSES = (16, 8)
TOKENS_A_PARAMETER = 10
"""Of a model, the least to train it on."""
_ROOMS = (128, 256, 384, 512, 1_024)
_LEAST_TOKENS = 20_000
_MOST_TUNING = 10_000_000
_RIGOR = 4
"""Steps of what is added while there is time: repetition is tuned, five seeds, random pairs, an
ensemble and what it teaches."""


@dataclass(frozen=True)
class Proposal:
    """A configuration as YAML text, and what it is expected to take. Of what a d2 holds, the
    synthesizer has room for `kept_share`."""

    text: str
    hours: float
    unique_tokens: int
    train_tokens: int
    kept_share: float


def propose(survey: Survey, name: str, hours: float) -> Proposal:
    """The configuration `name` for what a survey found, to run in about `hours` here.

    Raises DataError where there is too little to learn from.
    """
    docs = len(survey.lengths)
    if docs < LEAST_DOCS:
        raise DataError(
            f"documents that differ: {docs:,}, too few to find related ones among, or to test on; "
            f"{LEAST_DOCS} are the least; cut long ones into parts, or add some"
        )
    validation = min(300, max(docs // 20, min(_WANTED_VALIDATION, docs // 5)))
    test = min(1_000, docs // 10)
    held_out = (validation + test) / docs
    unique = int(survey.tokens * (1 - held_out))

    def written(size: Sequence[int], passes: int, tokens: int, rigor: int = 0) -> Proposal:
        is_cut = tokens < unique or not survey.is_whole
        text = _yaml(
            survey=survey,
            name=name,
            size=size,
            passes=passes,
            tokens=tokens,
            is_cut=is_cut,
            validation=validation,
            test=test,
            rigor=rigor,
        )
        parsed, _ = strict_yaml.parse(text, name)
        assert isinstance(parsed, dict)  # of sections, as written below
        cfg = loading.load(parsed)
        room = int(cfg.model.seq_len * (1 - cfg.tune.d1_share))
        kept_share = float(np.minimum(survey.lengths, room).sum() / survey.tokens)
        return Proposal(text, _hours(cfg), tokens, cfg.budget.train_tokens, kept_share)

    for passes in _PASSES:
        for size in _SIZES:
            proposal = written(size, passes, unique)
            is_enough = proposal.train_tokens >= TOKENS_A_PARAMETER * _num_parameters(size, survey)
            if proposal.hours <= hours and (is_enough or size == _SIZES[-1]):
                for rigor in range(1, _RIGOR + 1):
                    more = written(size, passes, unique, rigor)
                    if more.hours > hours:
                        break
                    proposal = more
                return proposal
    # Too much text for so many hours: less of it, as often as needed.
    tokens = unique
    while proposal.hours > hours and tokens > _LEAST_TOKENS:
        tokens = max(_LEAST_TOKENS, int(tokens * min(0.9, hours / proposal.hours)))
        proposal = written(_SIZES[-1], _PASSES[-1], tokens)
    if not math.isfinite(proposal.hours):
        raise DataError("init: this machine has no memory for the smallest model that is proposed")
    return proposal


def _hours(cfg: Config) -> float:
    """What the run would take here; infinite for a model that this machine has no memory for."""
    # The files are not hashed: nothing is made here.
    units = recipes.units(cfg, {"files": []})
    hours = cost.plan(cfg, units, dict.fromkeys(units, State("missing"))).hours
    return math.inf if hours is None else hours


def _num_parameters(size: Sequence[int], survey: Survey) -> int:
    layers, width, _ = size
    return layers * 13 * width**2 + survey.vocab_size * width


def _yaml(
    survey: Survey,
    name: str,
    size: Sequence[int],
    passes: int,
    tokens: int,
    is_cut: bool,
    validation: int,
    test: int,
    rigor: int,
) -> str:
    """The file. Only `tokens` of the text are used where `is_cut`; the oracle has the others."""
    layers, width, heads = size
    longest = 1.5 * float(np.quantile(survey.lengths, 0.75))
    seq_len = next((room for room in _ROOMS if room >= longest), _ROOMS[-1])
    batch = (4 if width <= 256 else 32) * seq_len
    train = max(1, passes * tokens // batch) * batch  # whole steps, as it is spent
    unique = f"{tokens:_}" if is_cut else "all"
    corpus = survey.corpus
    label = "" if survey.label_field is None else f", label_field: {_quoted(survey.label_field)}"
    if isinstance(corpus.source, str):
        source = _quoted(corpus.source)
    else:
        source = f"[{', '.join(map(_quoted, corpus.source))}]"
    lines = [
        "# Written by `synthboot init`; docs/config.md has every setting.",
        f"# {len(survey.lengths):,} documents, about {survey.tokens:,} tokens"
        + ("." if survey.is_whole else " looked at, and there are more."),
        f"name: {_quoted(name)}",
        "# d1 and d2 share seq_len tokens; three quarters of the documents are shorter than two "
        "thirds of it, or it is the most.",
        f"model: {{layers: {layers}, width: {width}, heads: {heads}, seq_len: {seq_len}}}",
        "budget:",
        f"  unique_tokens: {unique}   # real text of every arm but the oracle",
        f"  train_tokens: {train:_}   # of every arm; repetition reads its text {passes} times",
        "# Heavy repetition wants much weight decay; small steps learn to copy sooner.",
        f"optim: {{lr: 2.0e-3, weight_decay: 1.0, batch_tokens: {batch:_}, evals: 16}}",
        "corpus:",
        f"  source: {source}",
        f"  text_field: {_quoted(corpus.text_field)}",
        f"  id_field: {_quoted(corpus.id_field)}",
        f"  vocab_size: {survey.vocab_size}",
        f"  validation_docs: {validation}",
        f"  test_docs: {test}",
        *_allowed(survey),
        "# Related documents: docs/will-it-work.md says what to look at after `synthboot pair`.",
        f"pair: {{num_neighbors: 16{label}}}",
        "# The synthesizer p(d2|d1); averaged with base where that is better, against forgetting.",
        f"tune: {{lr: 1.0e-3, batch_tokens: {batch:_}, max_tokens: {min(train, _MOST_TUNING):_}, "
        "evals: 16, base_share: auto}",
        "synthesize: {keep_unfinished: true}",
        "arms:",
        *_arms(is_cut, rigor),
        f"pretrain: {{seeds: {list(range(5 if rigor >= 2 else 3))}}}"
        + ("" if rigor >= 2 else "   # five for a result"),
    ]
    return "\n".join(lines) + "\n"


def _arms(is_cut: bool, rigor: int) -> list[str]:
    """The arms, and in a comment those that there is no time for."""
    tuned = "sweep: {weight_decay: [0.5, 1.0], dropout: [0.0, 0.1]}"
    arms = {
        f"repetition: {{{tuned if rigor >= 1 else ''}}}": "the real text again and again",
        "sbp:    {synthetic: related, share: 0.5}": "half of it synthetic, from related d1",
        "self:   {synthetic: unconditional, share: 0.5}": "is it the relation, or any sample?",
    }
    random = "random: {synthetic: random_pairs, share: 0.5}"
    if rigor >= 3:
        arms[random] = "is it this relation, or tuning on any two documents?"
    ensemble = "ensemble: {ensemble: 3}"
    distill = "distill: {distill: ensemble}"
    if rigor >= 4:
        arms[ensemble] = "what do three models of the real text know together?"
        arms[distill] = "and one model that they teach?"
    if is_cut:
        arms["oracle: {unique_tokens: all}"] = "all the text there is"

    lines = [f"  # {about}\n  {arm}" for arm, about in arms.items()]
    if rigor < 1:
        lines.append(f"  # with more time a rival that is tuned: repetition: {{{tuned}}}")
    if rigor < 3:
        lines.append(f"  # and another control: {random}")
    if rigor < 4:
        lines.append("  # and where compute buys most without a relation (docs/will-it-work.md):")
        lines += [f"  # {ensemble}", f"  # {distill}"]
    return lines


def _allowed(survey: Survey) -> list[str]:
    """A line that lets bad records be."""
    if not survey.is_too_bad:
        return []
    room = min(1.0, math.ceil(120 * survey.bad_share) / 100)
    return [
        f"  max_quarantine: {room:g}   # {survey.bad_share:.1%} of the records are bad: mend them, "
        "or they are left out"
    ]


def _quoted(text: str) -> str:
    """Text in YAML, whatever is in it."""
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    # heads of spreadsheets have line breaks, which single quotes would make spaces of
    signs = []
    for sign in text:
        is_plain = sign.isprintable() and sign not in '"\\'
        signs.append(sign if is_plain else f"\\U{ord(sign):08x}")
    return f'"{"".join(signs)}"'
