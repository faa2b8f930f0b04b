"""The report's figures of what can be got out again, and of what synthetic text changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from synthboot.artifacts.analysis import Leaks, Topics
from synthboot.artifacts.evaluation import REPETITION
from synthboot.artifacts.extraction import Extraction
from synthboot.report.figures import Curves, Figure, Line, Mark, Values

FIGURES = {
    "exact": "exactly",
    "near": "nearly (BLEU above 0.75)",
    "leading": "tokens before the first wrong one",
    "sampled": "exactly, by one of many samples",
}
"""What is measured of a continuation, in words."""

CHANCE_BITS = 1.44
"""The mean exposure of what a model has never read: log2(e), of many candidates."""

_MOST_TOPICS = 8


def extraction(extracted: Extraction, paint: Mapping[str, str]) -> Figure | None:
    """What every arm gives back of documents that it read; None where none was asked for."""
    groups = {}
    guessed = {}
    for name, title in FIGURES.items():
        marks = []
        for arm, measured in extracted.arms.items():
            found = measured.figures[name]
            if found.seen is None:
                continue
            value, low, high = found.seen
            marks.append(Mark(arm, paint[arm], value, (low, high)))
            if arm == REPETITION and found.unseen is not None:
                guessed[title] = found.unseen.value
        if marks:
            groups[title] = marks
    if not groups:
        return None
    return Values(
        id="extraction",
        title="Given back by its beginning",
        read=(
            "Further left is less. Lines are intervals over documents and seeds; the dotted line "
            "is what repetition guesses of documents that it has not read."
        ),
        axis="share of documents, or of their tokens",
        groups=groups,
        pattern=".1%",
        references=guessed,
    )


def exposures(extracted: Extraction, paint: Mapping[str, str]) -> Figure | None:
    """How exposed canaries are by how often they were planted; None where none was."""
    lines = []
    for arm, measured in extracted.arms.items():
        points = []
        for copies, bits in measured.exposure.items():
            if bits is not None:
                points.append((float(copies), *bits))
        if points:
            lines.append(Line(arm, paint[arm], points))
    if not lines:
        return None
    return Curves(
        id="exposure",
        title="Exposure of canaries",
        read=(
            "Bits by which a planted text is easier to guess than one that was not; lower is less "
            f"remembered. At most log2({extracted.candidates + 1:,}) can be seen."
        ),
        x="copies of a canary in D_pretrain",
        y="exposure, bits",
        lines=lines,
        x_log=True,
        horizontals={"chance": CHANCE_BITS},
    )


def spans(leaks: Leaks, paint: Mapping[str, str]) -> Figure:
    """How long the spans are that stand in D_pretrain as they are."""
    lines = []
    for kind, shares in leaks.spans.items():
        points = [(float(n), share) for n, share in shares.items()]
        lines.append(Line(kind, paint.get(kind, "ink"), points))
    return Curves(
        id="spans",
        title="Verbatim spans",
        read=(
            "Share of documents with a span of at least so many tokens that D_pretrain holds in "
            "one piece. Unseen real text is the bar: lines above it are copied."
        ),
        x="tokens of the span",
        y="share of documents",
        lines=lines,
        x_log=True,
    )


def topics(compared: Topics, paint: Mapping[str, str]) -> Figure:
    """The topics whose shares in synthetic text differ most from their shares in D_pretrain."""
    groups = {}
    for number in most_changed(compared):
        marks = []
        for kind, share in compared.shares.items():
            marks.append(Mark(kind, paint.get(kind, "ink"), share[number]))
        groups[compared.names[number]] = marks
    return Values(
        id="topics",
        title="Topics that gained and lost most",
        read=(
            "Share of the documents about a topic. How far unseen real text lies from D_pretrain "
            "is what so few documents differ by."
        ),
        axis="share of documents",
        groups=groups,
        pattern=".1%",
    )


def most_changed(compared: Topics) -> list[int]:
    """The numbers of the topics whose shares differ most from those in D_pretrain in some kind of
    text, most first."""
    shares = compared.shares
    real = shares["D_pretrain"]
    changes = {}
    for number in range(len(real)):
        changes[number] = max(abs(share[number] - real[number]) for share in shares.values())
    order: Sequence[int] = sorted(changes, key=lambda number: (-changes[number], number))
    return list(order[:_MOST_TOPICS])


def sentence(extracted: Extraction, arm: str) -> str:
    """What can be got out of one arm, beside repetition, in a sentence or two."""
    parts = []
    exact = extracted.arms[arm].figures["exact"]
    if exact.seen is not None:
        said = (
            f"Given the first {extracted.prefix_tokens} tokens of {extracted.seen_docs:,} "
            f"documents that it read, it goes on as they do for {extracted.continuation_tokens} "
            f"tokens in {_percent(exact.seen)}"
        )
        if exact.unseen is not None:
            said += f", of documents that it did not read in {_percent(exact.unseen)}"
        if exact.difference is not None:
            points = 100 * exact.difference.value
            said += f"; {points:+.1f} points beside repetition (p = {exact.p_adjusted:.2g})"
        parts.append(f"{said}.")
    bits = extracted.arms[arm].exposure
    by_copies = [f"{value[0]:.1f} ({n} copies)" for n, value in bits.items() if value]
    if by_copies:
        parts.append(f"Exposure of canaries in bits, where 1.4 is chance: {', '.join(by_copies)}.")
    return " ".join(parts)


def _percent(share: Sequence[float]) -> str:
    value, low, high = (100 * end for end in share)
    return f"{value:.1f} % ({low:.1f} to {high:.1f})"
