"""The report's figures, from what the stages have left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from synthboot.artifacts.analysis import Analysis, Excess
from synthboot.artifacts.evaluation import (
    REPETITION,
    ArmComparison,
    ArmResult,
    Contamination,
    Evaluation,
    TaskResult,
)
from synthboot.artifacts.model import Curve, TokenCounts, Tuning
from synthboot.artifacts.pairs import Left
from synthboot.config import Arm
from synthboot.config.texts import text_of
from synthboot.data.items import titles
from synthboot.report import leaks
from synthboot.report.figures import Curves, Figure, Line, Mark, Values
from synthboot.report.results import Results
from synthboot.statistics import Interval

COLORS = {
    "repetition": ("#4b5563", "#9ca3af"),
    "method": ("#1d4ed8", "#7aa2ff"),
    "oracle": ("#b45309", "#f5a742"),
}
"""The colour of the first arm of a kind on white and in the dark, the same in every figure; the
others have the palette's."""
PALETTE = (
    ("#047857", "#34d399"),
    ("#7e22ce", "#c084fc"),
    ("#be185d", "#f472b6"),
    ("#0e7490", "#22d3ee"),
    ("#4d7c0f", "#a3e635"),
    ("#b91c1c", "#f87171"),
    ("#4338ca", "#a5b4fc"),
    ("#854d0e", "#facc15"),
    ("#115e59", "#5eead4"),
    ("#9f1239", "#fda4af"),
    ("#1e3a8a", "#7dd3fc"),
    ("#7c2d12", "#fdba74"),
)
_COMPARED = ("method", "control")
_INK = "ink"
_FAINT = "faint"


def charts(results: Results) -> list[Figure]:
    """Every figure that there is something to show in."""
    evaluated = results.evaluate
    analyzed = results.analyze
    paint = colors(evaluated.chosen.kinds)
    of_text = text_colors(results.config.arms, paint)
    seeds = results.config.pretrain.seeds

    drawn = [
        chain(results, paint),
        scores(evaluated.arms, paint, seeds),
        differences(evaluated.chosen, paint, seeds),
        _curves(results, paint),
        shares(evaluated.arms, results.config.arms, paint),
        efficiency(evaluated, paint),
        flops(evaluated.arms, evaluated.counts_by_arm, paint),
        _rounds(results),
        _copying(results.curves, paint),
        questions(evaluated.questions, evaluated.contamination, paint),
        parts(evaluated.parts, paint) if evaluated.parts else None,
        _tuning(results.tune, of_text),
    ]
    if results.related and results.related.pairs:
        drawn.append(_similarities(results.related.pairs, results.related.alpha, analyzed))
    if analyzed:
        drawn.append(_lengths(analyzed, of_text))
        drawn.append(duplicates(analyzed, of_text))
        if analyzed.world:
            drawn.append(_excess(analyzed.world.excess, of_text))
        drawn.append(leaks.spans(analyzed.leaks, of_text))
        if analyzed.changed.topics:
            drawn.append(leaks.topics(analyzed.changed.topics, of_text))
    if results.extract:
        drawn.append(leaks.extraction(results.extract, paint))
        drawn.append(leaks.exposures(results.extract, paint))
    return [figure for figure in drawn if figure is not None]


def colors(kinds: Mapping[str, str]) -> dict[str, str]:
    """The name of a colour for every arm, from what each is: of `COLORS`, or `other-` and its
    number in the palette."""
    by_arm: dict[str, str] = {}
    others = 0
    for arm, kind in kinds.items():
        # A second arm of the method must not look like the first.
        if kind in COLORS and kind not in by_arm.values():
            by_arm[arm] = kind
        else:
            by_arm[arm] = f"other-{others % len(PALETTE)}"
            others += 1
    return by_arm


def text_colors(recipes: Mapping[str, Arm], paint: Mapping[str, str]) -> dict[str, str]:
    """A kind of synthetic text has the colour of the first arm that reads it, D_pretrain that of
    repetition, real text that nothing reads the page's."""
    by_text = {"unseen real": _INK, "D_pretrain": "repetition"}
    for arm, recipe in recipes.items():
        if recipe.synthetic and arm in paint:
            chosen = f",{recipe.filter.name}" if recipe.filter.chooses else ""
            by_text.setdefault(f"{recipe.synthetic}{chosen}", paint[arm])
    return by_text


def chain(results: Results, paint: Mapping[str, str]) -> Figure | None:
    """From what d1 could tell to what an arm gained; None where there is but one link of it."""
    subject = results.evaluate.chosen.subject
    if subject is None:
        return None
    difference = results.evaluate.arms[subject].difference
    assert difference is not None  # repetition is not the subject

    links = []
    clauses = []
    if results.related and results.related.ceiling:
        counted, spread = results.related.ceiling.worth["1"]
        links.append(_with_errors("counting, from the nearest d1", _INK, counted, spread))
        clauses.append(f"counting saves {counted:.4f} nats a token by copying from the nearest d1")
    tuned = results.tune.get(f"tune/{results.config.arms[subject].synthetic}")
    if tuned is not None:
        unseen = tuned.conditioning["unseen"]
        worths = (
            ("the synthesizer, from its d1", unseen.d1_worth, unseen.d1_worth_error),
            ("the same, net of forgetting", unseen.net_worth, unseen.net_worth_error),
        )
        for name, worth, error in worths:
            if worth is not None and error is not None:
                links.append(_with_errors(name, paint[subject], worth, error))
        if unseen.d1_worth is not None and unseen.net_worth is not None:
            clauses.append(
                f"the synthesizer reads {unseen.d1_worth:+.4f} of d1, "
                f"{unseen.net_worth:+.4f} net of what tuning made it forget"
            )
    if not links:
        return None

    saved = -difference.value
    ends = (-difference.high, -difference.low)
    gain = Mark(f"{subject}'s gain", paint[subject], saved, ends)
    late = []
    for name, curve in results.curves.items():
        if _arm_of(name) == REPETITION:
            late.append(curve.late_gain)
    if late and np.isfinite(late).all():
        clauses.append(
            f"repetition's last tenth of training saved {np.mean(late):+.4f} of validation loss"
        )
    clauses.append(f"{subject} saves {saved:+.4f} on test documents beside repetition")
    sentence = "; ".join(clauses)
    return Values(
        id="chain",
        title="From d1 to the gain",
        read=(
            f"{sentence[0].upper()}{sentence[1:]}. Right of zero is better; a link near zero is "
            "where the chain breaks. Whiskers: two standard errors, the interval for the last."
        ),
        axis="nats per token saved",
        groups={"": [*links, gain]},
        bars=True,
    )


def _with_errors(name: str, color: str, value: float, error: float) -> Mark:
    return Mark(name, color, value, (value - 2 * error, value + 2 * error))


def scores(
    arms: Mapping[str, ArmResult],
    paint: Mapping[str, str],
    seeds: Sequence[int],
) -> Figure:
    """The test loss of every arm."""
    marks = []
    for name, arm in arms.items():
        marks.append(_mark(name, paint[name], arm.loss, arm.loss_by_seed))
    return Values(
        id="scores",
        title="Test loss",
        read="Further left is better. Lines are intervals, small dots single seeds.",
        axis="test loss, nats per token",
        groups={"": marks},
        pattern=".4f",
        seeds=seeds,
    )


def differences(
    compared: ArmComparison,
    paint: Mapping[str, str],
    seeds: Sequence[int],
) -> Figure | None:
    """Each arm's difference to repetition; oracles, which would flatten the rest, are left out."""
    marks = []
    for name, arm in compared.arms.items():
        gap = arm.difference
        if gap is not None and compared.kinds[name] in _COMPARED:
            marks.append(_mark(name, paint[name], gap.interval, gap.by_seed))
    if not marks:
        return None
    return Values(
        id="differences",
        title="Against repetition",
        read=(
            "Left of zero is better than repetition. Small dots are single seeds, lines intervals: "
            "where the dots lie apart, only more seeds help."
        ),
        axis="difference to repetition, nats per token",
        groups={"": marks},
        seeds=seeds,
    )


def _mark(name: str, color: str, figure: Interval, seeds: Sequence[float] = ()) -> Mark:
    return Mark(name, color, figure.value, (figure.low, figure.high), seeds)


def _curves(results: Results, paint: Mapping[str, str]) -> Figure:
    subject = results.evaluate.chosen.subject
    cross = crossing(results.curves, subject) if subject else None
    floor = count_model(results)
    return Curves(
        id="curves",
        title="While training",
        read=(
            "A line for every seed, lower is better. Repetition bends up where its passes stop "
            "paying."
        ),
        x="tokens trained on",
        y="validation loss, nats per token",
        lines=_by_seed({name: curve.validation for name, curve in results.curves.items()}, paint),
        verticals={} if cross is None else {f"{subject} overtakes": cross},
        horizontals={} if floor is None else {"n-grams with a cache": floor},
    )


def _by_seed(
    measured: Mapping[str, Sequence[Sequence[float]]],
    paint: Mapping[str, str],
) -> list[Line]:
    """What was measured of every model while it trained."""
    lines = []
    for name, points in measured.items():
        # base stands once more under its arm and seed
        if "/" in name and points:
            arm, seed = name.rsplit("/", 1)
            lines.append(Line(f"{arm}, seed {seed}", paint[arm], points))
    return lines


def _copying(curves: Mapping[str, Curve], paint: Mapping[str, str]) -> Figure | None:
    lines = _by_seed({name: curve.copying for name, curve in curves.items()}, paint)
    if not lines:
        return None
    return Curves(
        id="copying",
        title="Copy score",
        read=(
            "How much less random tokens cost when they come a second time: zero is a model that "
            "reads nothing of its context."
        ),
        x="tokens trained on",
        y="copy score, nats per token",
        lines=lines,
    )


def count_model(results: Results) -> float | None:
    """The validation loss of n-grams with a cache, where pairing measured it."""
    for pairs in results.pairs.values():
        if pairs.ceiling:
            return pairs.ceiling.floor
    return None


def crossing(curves: Mapping[str, Curve], arm: str) -> float | None:
    """Tokens trained on from which an arm's mean validation loss stays below repetition's.

    The mean is over seeds. None where the arm does not end below.
    """
    tokens, losses = _mean_curve(curves, arm)
    other_tokens, other_losses = _mean_curve(curves, REPETITION)
    if not tokens or not other_tokens or tokens[-1] != other_tokens[-1]:
        return None

    # Arms may be evaluated at other steps: repetition's loss is read off between its points.
    gaps = np.array(losses) - np.interp(tokens, other_tokens, other_losses)
    if gaps[-1] >= 0:
        return None
    behind = np.flatnonzero(gaps >= 0)
    if not len(behind):
        return tokens[0]

    # Between the last point behind and the next, the gap is taken for a straight line.
    last = int(behind[-1])
    fraction = gaps[last] / (gaps[last] - gaps[last + 1])
    return float(tokens[last] + (tokens[last + 1] - tokens[last]) * fraction)


def _arm_of(name: str) -> str:
    """The arm of a model that is called `ARM/SEED`."""
    return name.rsplit("/", 1)[0]


def _mean_curve(curves: Mapping[str, Curve], arm: str) -> tuple[list[float], list[float]]:
    """Tokens, and the mean validation loss over seeds, as far as all seeds have come."""
    rows = []
    for name, curve in curves.items():
        if _arm_of(name) == arm:
            rows.append(curve.validation)

    points = min(map(len, rows), default=0)
    tokens = [rows[0][i][0] for i in range(points)]
    losses = [sum(of_seed[i][1] for of_seed in rows) / len(rows) for i in range(points)]
    return tokens, losses


def shares(
    arms: Mapping[str, ArmResult],
    recipes: Mapping[str, Arm],
    paint: Mapping[str, str],
) -> Figure | None:
    """Loss over the share of synthetic text, for arms that differ in nothing else."""
    by_recipe: dict[str, list[tuple[float, str]]] = {}
    for name, recipe in recipes.items():
        if recipe.synthetic and not recipe.sweep:
            # Recipes that are equal but for the share belong to one curve.
            rest = recipe.model_copy(update={"share": 0.0}).model_dump_json()
            by_recipe.setdefault(rest, []).append((recipe.share, name))

    lines = []
    for points in by_recipe.values():
        if len(points) > 1:
            points = sorted([(0.0, REPETITION), *points])
            measured = [(share, *arms[name].loss) for share, name in points]
            lines.append(Line(points[1][1], paint[points[1][1]], measured))
    if not lines:
        return None
    return Curves(
        id="shares",
        title="How much synthetic text",
        read="The lowest point is the best share that was tried; 0 is repetition.",
        x="share of synthetic text",
        y="test loss, nats per token",
        lines=lines,
    )


def efficiency(evaluated: Evaluation, paint: Mapping[str, str]) -> Figure | None:
    """Loss over unique real tokens, and where on that curve the other arms would stand; None where
    none of them stands on it."""
    measured = evaluated.efficiency
    lines = [Line("real text alone", _INK, measured.points)]
    for name, tokens in measured.worth.items():
        if tokens:
            point = (tokens, evaluated.arms[name].loss.value)
            lines.append(Line(name, paint[name], [point], "points"))
    if len(lines) < 2:
        return None
    return Curves(
        id="efficiency",
        title="Beside real text alone",
        read=(
            "An arm stands where as much real text alone, on as many tokens trained on, would have "
            "reached its loss."
        ),
        x="unique real tokens",
        y="test loss, nats per token",
        lines=lines,
        x_log=True,
    )


def flops(
    arms: Mapping[str, ArmResult],
    token_counts: Mapping[str, TokenCounts],
    paint: Mapping[str, str],
) -> Figure | None:
    """Loss over everything that was computed for an arm, its synthetic text included."""
    # Where training is all there is, it is the same for all but ensembles.
    if not any(counts.spent_flops or counts.members for counts in token_counts.values()):
        return None

    lines = []
    for name, counts in token_counts.items():
        point = (counts.total_flops, *arms[name].loss)
        lines.append(Line(name, paint[name], [point], "points"))
    return Curves(
        id="flops",
        title="What it cost",
        read=(
            "At the same height further left is cheaper. All is counted but base, from which the "
            "synthesizer starts; an arm with match: flops stands under repetition."
        ),
        x="FLOPs: training, pairing, tuning, synthesis, teachers",
        y="test loss, nats per token",
        lines=lines,
    )


def _rounds(results: Results) -> Figure | None:
    """The entropy of what each round wrote, beside the loss that it led to."""
    rows = rounds(results)
    if len(rows) < 2:
        return None
    return Curves(
        id="rounds",
        title="Round after round",
        read=(
            "A round starts its synthesizer from the model of the round before. Falling entropy "
            "and fewer distinct 4-grams (the table) at a rising loss would be collapse."
        ),
        x="round",
        y="nats per token",
        lines=[
            Line("test loss", "method", [(row.round, *row.loss) for row in rows]),
            Line("entropy of samples", _INK, [(row.round, row.entropy) for row in rows]),
        ],
    )


class Round(NamedTuple):
    """A round of bootstrapping: its arm, the test loss of it, and of what it wrote the entropy and
    the share of distinct 4-grams."""

    round: int
    arm: str
    loss: Interval
    entropy: float
    distinct: float


def rounds(results: Results) -> list[Round]:
    """A row for every round of the longest chain of bootstrapping."""
    recipes = results.config.arms
    pretrain = results.config.pretrain
    analyzed = results.analyze
    last = max(recipes, key=lambda name: recipes[name].rounds)
    if recipes[last].rounds < 2 or not analyzed:
        return []

    chain: dict[int, str] = {}
    for name, recipe in recipes.items():
        if recipe == recipes[last].model_copy(update={"rounds": recipe.rounds}):
            chain.setdefault(recipe.rounds, name)

    rows = []
    for number, name in sorted(chain.items()):
        # what is analyzed is the text of the first seed
        read = text_of(recipes[name], pretrain.seeds[0], recipes, pretrain)
        written = analyzed.kinds[read.name]
        assert written.entropy is not None  # it is synthetic text
        rows.append(
            Round(
                round=number,
                arm=name,
                loss=results.evaluate.arms[name].loss,
                entropy=written.entropy,
                distinct=written.distinct_ngrams[4],
            )
        )
    return rows


def questions(
    by_task: Mapping[str, TaskResult],
    contamination: Mapping[str, Contamination],
    paint: Mapping[str, str],
) -> Figure | None:
    """Share answered right by arm, for every task and group of its items."""
    groups = {}
    chance = {}
    for title, (task, answers) in zip(titles(list(by_task)), by_task.items(), strict=True):
        guessing = contamination[task].chance if task in contamination else None
        for group, by_arm in answers.groups.items():
            name = title if group == "all" else f"{title}: {group}"
            groups[name] = [_mark(arm, paint[arm], by_arm[arm].acc) for arm in by_arm]
            if guessing is not None:
                chance[name] = guessing
    if not groups:
        return None
    return Values(
        id="questions",
        title="Answered right",
        read=(
            "Further right is better. Lines are intervals over items and seeds; the dotted line is "
            "what chance gives."
        ),
        axis="answered right",
        groups=groups,
        pattern=".1%",
        references=chance,
    )


def parts(
    by_group: Mapping[str, Mapping[str, Mapping[str, Interval]]],
    paint: Mapping[str, str],
) -> Figure:
    """By part and group, what of a document costs an arm more or less than it costs repetition."""
    # Without groups of documents there is all of them.
    names = [group for group in by_group if group != "all"] or ["all"]
    groups = {}
    for group in names:
        arms = by_group[group]
        for part, cost in arms[REPETITION].items():
            marks = []
            for arm, by_part in arms.items():
                if arm != REPETITION:
                    marks.append(Mark(arm, paint[arm], by_part[part].value - cost.value))
            groups[part if group == "all" else f"{part}, {group}"] = marks
    return Values(
        id="parts",
        title="Parts of a document",
        read="Left of zero an arm pays less than repetition.",
        axis="nats a document, beside repetition",
        groups=groups,
        pattern="+.3f",
    )


def _excess(by_text: Mapping[str, Excess], paint: Mapping[str, str]) -> Figure | None:
    """None where no synthesizer was tuned: base writes as it is."""
    if not by_text:
        return None
    lines = []
    for name, excess in by_text.items():
        tokens, above_world, above_corpus = zip(*excess.points, strict=True)
        color = paint.get(name, _INK)
        read = list(zip(tokens, above_corpus, strict=True))
        knows = list(zip(tokens, above_world, strict=True))
        lines.append(Line(f"{name}, above one who read D_pretrain", color, read))
        lines.append(Line(f"{name}, above one who knows the world", color, knows, "dotted"))
    # What is left of the excess falls by orders of magnitude.
    return Curves(
        id="excess",
        title="Above the exact posterior",
        read=(
            "How many nats more than the exact posterior the synthesizer needs for a d2, while it "
            "is tuned: below the solid line's zero lies what D_pretrain does not tell."
        ),
        x="tokens tuned on",
        y="excess nats per d2",
        lines=lines,
        y_log=True,
    )


def _similarities(
    pairs: Left,
    alpha: float | None,
    analyzed: Analysis | None,
) -> Figure:
    edges = pairs.bins
    centers = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    histograms = pairs.histograms
    lines = [
        _area("random pairs", _FAINT, centers, histograms["random"]),
        _area("nearest neighbours", _INK, centers, histograms["nearest"]),
        _area("kept pairs", "method", centers, histograms["pairs"]),
    ]

    sampled = analyzed.relevance.get("related") if analyzed else None
    if sampled and sampled.histogram:
        # Its bins divide similarities from -0.2 to 1.
        bins = len(sampled.histogram)
        width = 1.2 / bins
        centers = [-0.2 + (i + 0.5) * width for i in range(bins)]
        area = _area("d1 and sampled d2", "method", centers, sampled.histogram)
        lines.append(replace(area, style="dotted"))
    return Curves(
        id="similarities",
        title="How similar",
        read=(
            "Kept pairs should lie right of random pairs; what was sampled should lie where they "
            "do."
        ),
        x="similarity of d1 and d2",
        y="share of pairs",
        lines=lines,
        verticals={} if alpha is None else {"alpha": alpha},
    )


def _tuning(tuned: Mapping[str, Tuning], paint: Mapping[str, str]) -> Figure | None:
    groups = {}
    for role, result in tuned.items():
        kind = role.removeprefix("tune/")
        unseen = result.conditioning["unseen"]
        losses = {
            "given its d1": unseen.given_d1,
            "given a random d1": unseen.given_random_d1,
            "given nothing": unseen.given_nothing,
            "base, given nothing": unseen.base,
        }
        color = paint.get(kind, _INK)
        # one that is tuned without d1 has no loss given one
        groups[kind] = [Mark(n, color, loss) for n, loss in losses.items() if loss is not None]
    if not groups:
        return None
    return Values(
        id="tuning",
        title="What the synthesizer reads",
        read=(
            "Further left is better: the gap between its own d1 and a random one is what it reads."
        ),
        axis="loss on unseen d2, nats per token",
        groups=groups,
        pattern=".4f",
    )


def _lengths(analyzed: Analysis, paint: Mapping[str, str]) -> Figure:
    # Bins of 32 tokens, cut off behind the last that any kind of text has a document in.
    histograms = {kind: measured.lengths for kind, measured in analyzed.kinds.items()}
    last = max(int(np.flatnonzero([1, *counts[1:]])[-1]) for counts in histograms.values())
    centers = [16 + 32 * i for i in range(64)][: last + 2]
    lines = []
    for name, counts in histograms.items():
        lines.append(_area(name, paint.get(name, _INK), centers, counts[: last + 2]))
    return Curves(
        id="lengths",
        title="How long",
        read=(
            "Synthetic text should be as long as real text; a pile at the right had no room for "
            "more."
        ),
        x="tokens in a document",
        y="share of documents",
        lines=lines,
    )


def duplicates(analyzed: Analysis, paint: Mapping[str, str]) -> Figure | None:
    """Duplicate@N, by kind of text; None where none has two points of its curve."""
    lines = []
    for kind, measured in analyzed.kinds.items():
        points = [(float(n), share) for n, share in measured.duplicates_at.curve]
        if len(points) > 1:
            lines.append(Line(kind, paint.get(kind, _INK), points, "marked"))
    if not lines:
        return None
    return Curves(
        id="duplicates",
        title="Duplicates by the number of documents",
        read=(
            "Share of the first so many documents with a near-duplicate among them. It grows with "
            "their number: compare kinds of text at the same one, unseen real text is the bar."
        ),
        x="documents",
        y="share with a near-duplicate",
        lines=lines,
        x_log=True,
    )


def _area(name: str, color: str, x: Sequence[float], counts: Sequence[float]) -> Line:
    # Shares, so that kinds of text of different size lie on one another.
    total = sum(counts) or 1
    points = [(at, count / total) for at, count in zip(x, counts, strict=True)]
    return Line(name, color, points, "area")
