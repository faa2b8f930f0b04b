"""The report's figures, from the JSON of the stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from synthboot.data.items import titles
from synthboot.report import leaks
from synthboot.report.figures import Curves, Figure, Line, Mark, Values

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


def charts(results: Mapping[str, Any]) -> list[Figure]:
    """Every figure that there is something to show in."""
    evaluated = results["evaluate"]
    analyzed = results["analyze"]
    paint = colors(_scores_of(evaluated)["kinds"])
    of_text = text_colors(results["config"]["arms"], paint)

    drawn = [
        chain(results, paint),
        scores(evaluated, paint),
        differences(evaluated, paint),
        _curves(results, paint),
        shares(results, paint),
        efficiency(evaluated, paint),
        flops(evaluated, paint),
        _rounds(results),
        _copying(results, paint),
        questions(evaluated, paint),
        parts(evaluated["parts"], paint) if evaluated.get("parts") else None,
        _tuning(results["tune"], of_text),
    ]
    related = first_pairs(results)
    if related:
        drawn.append(_similarities(related, analyzed))
    if analyzed:
        drawn.append(_lengths(analyzed, of_text))
        if analyzed.get("world"):
            drawn.append(_excess(analyzed["world"]["excess"], of_text))
        if analyzed.get("leaks"):
            drawn.append(leaks.spans(analyzed["leaks"], of_text))
        if (analyzed.get("changed") or {}).get("topics"):
            drawn.append(leaks.topics(analyzed["changed"]["topics"], of_text))
    if results.get("extract"):
        drawn.append(leaks.extraction(results["extract"], paint))
        drawn.append(leaks.exposures(results["extract"], paint))
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


def text_colors(recipes: Mapping[str, Any], paint: Mapping[str, str]) -> dict[str, str]:
    """A kind of synthetic text has the colour of the first arm that reads it, D_pretrain that of
    repetition, real text that nothing reads the page's."""
    by_text = {"unseen real": _INK, "D_pretrain": "repetition"}
    for arm, recipe in recipes.items():
        if recipe["synthetic"] and arm in paint:
            by_text.setdefault(recipe["synthetic"], paint[arm])
    return by_text


def first_pairs(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What pairing told of the pairs that the method reads, if it has any."""
    for role, pairs in results["pairs"].items():
        if role.endswith("related"):
            related: Mapping[str, Any] = pairs
            return related
    return None


def _scores_of(evaluated: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores at the checkpoint that the verdict is about."""
    scored: Mapping[str, Any] = evaluated[evaluated["checkpoint"]]
    return scored


def chain(results: Mapping[str, Any], paint: Mapping[str, str]) -> Figure | None:
    """From what d1 could tell to what an arm gained; None where there is but one link of it."""
    scored = _scores_of(results["evaluate"])
    subject = scored["subject"]
    if subject is None:
        return None

    links = []
    clauses = []
    ceiling = (first_pairs(results) or {}).get("ceiling")
    if ceiling:
        value, error = ceiling["worth"]["1"]
        links.append(_with_errors("counting, from the nearest d1", _INK, value, error))
        clauses.append(f"counting saves {value:.4f} nats a token by copying from the nearest d1")
    tuned = results["tune"].get(f"tune/{results['config']['arms'][subject]['synthetic']}")
    unseen = (tuned or {"conditioning": {}})["conditioning"].get("unseen", {})
    names = {"d1_worth": "the synthesizer, from its d1", "net_worth": "the same, net of forgetting"}
    for key, name in names.items():
        if key in unseen:
            value, error = unseen[key], unseen[f"{key}_error"]
            links.append(_with_errors(name, paint[subject], value, error))
    if "d1_worth" in unseen and "net_worth" in unseen:
        clauses.append(
            f"the synthesizer reads {unseen['d1_worth']:+.4f} of d1, "
            f"{unseen['net_worth']:+.4f} net of what tuning made it forget"
        )
    if not links:
        return None

    value, low, high = scored["arms"][subject]["difference"]
    gain = Mark(f"{subject}'s gain", paint[subject], -value, (-high, -low))
    clauses.append(f"{subject} saves {-value:+.4f} on test documents beside repetition")
    sentence = "; ".join(clauses)
    return Values(
        "chain",
        "From d1 to the gain",
        f"{sentence[0].upper()}{sentence[1:]}. Right of zero is better; a link near zero is where "
        "the chain breaks. Whiskers: two standard errors, the interval for the last.",
        "nats per token saved",
        {"": [*links, gain]},
        bars=True,
    )


def _with_errors(name: str, color: str, value: float, error: float) -> Mark:
    return Mark(name, color, value, (value - 2 * error, value + 2 * error))


def scores(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> Figure:
    """The test loss of every arm."""
    marks = []
    for name, arm in _scores_of(evaluated)["arms"].items():
        marks.append(_mark(name, paint[name], arm["loss"], arm["loss_by_seed"]))
    return Values(
        "scores",
        "Test loss",
        "Further left is better. Lines are intervals, small dots single seeds.",
        "test loss, nats per token",
        {"": marks},
        ".4f",
    )


def differences(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> Figure | None:
    """Each arm's difference to repetition; oracles, which would flatten the rest, are left out."""
    scored = _scores_of(evaluated)
    marks = []
    for name, arm in scored["arms"].items():
        if scored["kinds"][name] in _COMPARED:
            marks.append(_mark(name, paint[name], arm["difference"], arm["difference_by_seed"]))
    if not marks:
        return None
    return Values(
        "differences",
        "Against repetition",
        "Left of zero is better than repetition. Small dots are single seeds, lines intervals: "
        "where the dots lie apart, only more seeds help.",
        "difference to repetition, nats per token",
        {"": marks},
    )


def _mark(name: str, color: str, ends: Sequence[float], seeds: Sequence[float] = ()) -> Mark:
    value, low, high = ends
    return Mark(name, color, value, (low, high), seeds)


def _curves(results: Mapping[str, Any], paint: Mapping[str, str]) -> Figure:
    subject = _scores_of(results["evaluate"])["subject"]
    cross = crossing(results, subject) if subject else None
    floor = count_model(results)
    return Curves(
        "curves",
        "While training",
        "A line for every seed, lower is better. Repetition bends up where its passes stop paying.",
        "tokens trained on",
        "validation loss, nats per token",
        _by_seed(results, paint, "validation"),
        verticals={} if cross is None else {f"{subject} overtakes": cross},
        horizontals={} if floor is None else {"n-grams with a cache": floor},
    )


def _by_seed(results: Mapping[str, Any], paint: Mapping[str, str], measure: str) -> list[Line]:
    """What was measured of every model while it trained."""
    lines = []
    for role, curve in results["curves"].items():
        # base stands once more under its arm and seed
        if "/" in role and curve.get(measure):
            arm, seed = role.rsplit("/", 1)
            lines.append(Line(f"{arm}, seed {seed}", paint[arm], curve[measure]))
    return lines


def _copying(results: Mapping[str, Any], paint: Mapping[str, str]) -> Figure | None:
    lines = _by_seed(results, paint, "copying")
    if not lines:
        return None
    return Curves(
        "copying",
        "Copy score",
        "How much less random tokens cost when they come a second time: zero is a model that reads "
        "nothing of its context.",
        "tokens trained on",
        "copy score, nats per token",
        lines,
    )


def count_model(results: Mapping[str, Any]) -> float | None:
    """The validation loss of n-grams with a cache, where pairing measured it."""
    for pairs in results["pairs"].values():
        if pairs.get("ceiling"):
            return float(pairs["ceiling"]["floor"])
    return None


def crossing(results: Mapping[str, Any], arm: str) -> float | None:
    """Tokens trained on from which an arm's mean validation loss stays below repetition's.

    The mean is over seeds. None where the arm does not end below.
    """
    tokens, losses = _mean_curve(results, arm)
    other_tokens, other_losses = _mean_curve(results, "repetition")
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


def _mean_curve(results: Mapping[str, Any], arm: str) -> tuple[list[float], list[float]]:
    """Tokens, and the mean validation loss over seeds, as far as all seeds have come."""
    curves = []
    for role, curve in results["curves"].items():
        if role.rsplit("/", 1)[0] == arm:
            curves.append(curve["validation"])

    points = min(map(len, curves), default=0)
    tokens = [curves[0][i][0] for i in range(points)]
    losses = [sum(curve[i][1] for curve in curves) / len(curves) for i in range(points)]
    return tokens, losses


def shares(results: Mapping[str, Any], paint: Mapping[str, str]) -> Figure | None:
    """Loss over the share of synthetic text, for arms that differ in nothing else."""
    arms = _scores_of(results["evaluate"])["arms"]
    by_recipe: dict[str, list[tuple[float, str]]] = {}
    for name, recipe in results["config"]["arms"].items():
        if recipe["synthetic"] and not recipe["sweep"]:
            # Recipes that are equal but for the share belong to one curve.
            rest = json.dumps(_without(recipe, "share"), sort_keys=True)
            by_recipe.setdefault(rest, []).append((recipe["share"], name))

    lines = []
    for points in by_recipe.values():
        if len(points) > 1:
            points = sorted([(0.0, "repetition"), *points])
            measured = [(share, *arms[name]["loss"]) for share, name in points]
            lines.append(Line(points[1][1], paint[points[1][1]], measured))
    if not lines:
        return None
    return Curves(
        "shares",
        "How much synthetic text",
        "The lowest point is the best share that was tried; 0 is repetition.",
        "share of synthetic text",
        "test loss, nats per token",
        lines,
    )


def _without(recipe: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name != key}


def efficiency(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> Figure | None:
    """Loss over unique real tokens, and where on that curve the other arms would stand; None where
    none of them stands on it."""
    arms = _scores_of(evaluated)["arms"]
    measured = evaluated["efficiency"]
    lines = [Line("real text alone", _INK, measured["points"])]
    for name, tokens in measured["worth"].items():
        if tokens:
            lines.append(Line(name, paint[name], [(tokens, arms[name]["loss"][0])], "points"))
    if len(lines) < 2:
        return None
    return Curves(
        "efficiency",
        "Beside real text alone",
        "An arm stands where as much real text alone, on as many tokens trained on, would have "
        "reached its loss.",
        "unique real tokens",
        "test loss, nats per token",
        lines,
        x_log=True,
    )


def flops(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> Figure | None:
    """Loss over everything that was computed for an arm, its synthetic text included."""
    arms = _scores_of(evaluated)["arms"]
    # Seeds of an arm cost the same, so the first speaks for all.
    token_counts = {}
    for name, by_seed in evaluated["token_counts"].items():
        token_counts[name] = next(iter(by_seed.values()))
    # Where training is all there is, it is the same for all but ensembles.
    if not any(counts["spent_flops"] or "members" in counts for counts in token_counts.values()):
        return None

    lines = []
    for name, counts in token_counts.items():
        spent = counts["train_flops"] + counts["spent_flops"]
        lines.append(Line(name, paint[name], [(spent, *arms[name]["loss"])], "points"))
    return Curves(
        "flops",
        "What it cost",
        "At the same height further left is cheaper. All is counted but base, from which the "
        "synthesizer starts; an arm with match: flops stands under repetition.",
        "FLOPs: training, pairing, tuning, synthesis, teachers",
        "test loss, nats per token",
        lines,
    )


def _rounds(results: Mapping[str, Any]) -> Figure | None:
    """The entropy of what each round wrote, beside the loss that it led to."""
    rows = rounds(results)
    if len(rows) < 2:
        return None
    return Curves(
        "rounds",
        "Round after round",
        "A round starts its synthesizer from the model of the round before. Falling entropy and "
        "fewer distinct 4-grams (the table) at a rising loss would be collapse.",
        "round",
        "nats per token",
        [
            Line("test loss", "method", [(row["round"], *row["loss"]) for row in rows]),
            Line("entropy of samples", _INK, [(row["round"], row["entropy"]) for row in rows]),
        ],
    )


def rounds(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every round of the longest chain of bootstrapping: its loss, and what it wrote."""
    recipes = results["config"]["arms"]
    analyzed = results["analyze"]
    last = max(recipes, key=lambda name: recipes[name]["rounds"])
    if recipes[last]["rounds"] < 2 or not analyzed:
        return []

    recipe = _without(recipes[last], "rounds")
    chain: dict[int, str] = {}
    for name, other in recipes.items():
        if _without(other, "rounds") == recipe:
            chain.setdefault(other["rounds"], name)

    arms = _scores_of(results["evaluate"])["arms"]
    rows = []
    for number, name in sorted(chain.items()):
        # Text of a later round is named by the arm whose model its synthesizer started from.
        role = recipe["synthetic"]
        if number - 1 in chain:
            role += f"-after-{chain[number - 1]}"
        written = analyzed["kinds"][role]
        rows.append(
            {
                "round": number,
                "arm": name,
                "loss": arms[name]["loss"],
                "entropy": written["entropy"],
                "distinct": written["distinct_ngrams"]["4"],
            }
        )
    return rows


def questions(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> Figure | None:
    """Share answered right by arm, for every task and group of its items."""
    groups = {}
    chance = {}
    questions = evaluated["questions"]
    for title, (task, answers) in zip(titles(list(questions)), questions.items(), strict=True):
        for group, by_arm in answers["groups"].items():
            name = title if group == "all" else f"{title}: {group}"
            groups[name] = [_mark(arm, paint[arm], by_arm[arm]["acc"]) for arm in by_arm]
            by_guessing = evaluated["asked"].get(task, {}).get("chance")
            if by_guessing is not None:
                chance[name] = by_guessing
    if not groups:
        return None
    return Values(
        "questions",
        "Answered right",
        "Further right is better. Lines are intervals over items and seeds; the dotted line is "
        "what chance gives.",
        "answered right",
        groups,
        ".1%",
        references=chance,
    )


def parts(by_group: Mapping[str, Any], paint: Mapping[str, str]) -> Figure:
    """By part and group, what of a document costs an arm more or less than it costs repetition."""
    # Without groups of documents there is all of them.
    names = [group for group in by_group if group != "all"] or ["all"]
    groups = {}
    for group in names:
        arms = by_group[group]
        for part, (cost, *_) in arms["repetition"].items():
            marks = []
            for arm, by_part in arms.items():
                if arm != "repetition":
                    marks.append(Mark(arm, paint[arm], by_part[part][0] - cost))
            groups[part if group == "all" else f"{part}, {group}"] = marks
    return Values(
        "parts",
        "Parts of a document",
        "Left of zero an arm pays less than repetition.",
        "nats a document, beside repetition",
        groups,
        "+.3f",
    )


def _excess(by_text: Mapping[str, Any], paint: Mapping[str, str]) -> Figure:
    lines = []
    for name, curve in by_text.items():
        tokens, above_world, above_corpus = zip(*curve["points"], strict=True)
        color = paint.get(name, _INK)
        read = list(zip(tokens, above_corpus, strict=True))
        knows = list(zip(tokens, above_world, strict=True))
        lines.append(Line(f"{name}, above one who read D_pretrain", color, read))
        lines.append(Line(f"{name}, above one who knows the world", color, knows, "dotted"))
    # What is left of the excess falls by orders of magnitude.
    return Curves(
        "excess",
        "Above the exact posterior",
        "How many nats more than the exact posterior the synthesizer needs for a d2, while it is "
        "tuned: below the solid line's zero lies what D_pretrain does not tell.",
        "tokens tuned on",
        "excess nats per d2",
        lines,
        y_log=True,
    )


def _similarities(pairs: Mapping[str, Any], analyzed: Mapping[str, Any] | None) -> Figure:
    edges = pairs["bins"]
    centers = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    histograms = pairs["histograms"]
    lines = [
        _area("random pairs", _FAINT, centers, histograms["random"]),
        _area("nearest neighbours", _INK, centers, histograms["nearest"]),
        _area("kept pairs", "method", centers, histograms["pairs"]),
    ]

    sampled = (analyzed or {}).get("relevance", {}).get("related")
    if sampled and sampled.get("histogram"):
        # Its bins divide similarities from -0.2 to 1.
        bins = len(sampled["histogram"])
        width = 1.2 / bins
        centers = [-0.2 + (i + 0.5) * width for i in range(bins)]
        area = _area("d1 and sampled d2", "method", centers, sampled["histogram"])
        lines.append(replace(area, style="dotted"))
    return Curves(
        "similarities",
        "How similar",
        "Kept pairs should lie right of random pairs; what was sampled should lie where they do.",
        "similarity of d1 and d2",
        "share of pairs",
        lines,
        verticals={"alpha": pairs["alpha"]},
    )


def _tuning(tuned: Mapping[str, Any], paint: Mapping[str, str]) -> Figure | None:
    names = {
        "given_d1": "given its d1",
        "given_random_d1": "given a random d1",
        "given_nothing": "given nothing",
        "base": "base, given nothing",
    }
    groups = {}
    for role, result in tuned.items():
        kind = role.removeprefix("tune/")
        unseen = result["conditioning"]["unseen"]
        color = paint.get(kind, _INK)
        # one that is tuned without d1 has no loss given one
        marks = [Mark(name, color, unseen[key]) for key, name in names.items() if key in unseen]
        groups[kind] = marks
    if not groups:
        return None
    return Values(
        "tuning",
        "What the synthesizer reads",
        "Further left is better: the gap between its own d1 and a random one is what it reads.",
        "loss on unseen d2, nats per token",
        groups,
        ".4f",
    )


def _lengths(analyzed: Mapping[str, Any], paint: Mapping[str, str]) -> Figure:
    # Bins of 32 tokens, cut off behind the last that any kind of text has a document in.
    histograms = {name: measured["lengths"] for name, measured in analyzed["kinds"].items()}
    last = max(int(np.flatnonzero([1, *counts[1:]])[-1]) for counts in histograms.values())
    centers = [16 + 32 * i for i in range(64)][: last + 2]
    lines = []
    for name, counts in histograms.items():
        lines.append(_area(name, paint.get(name, _INK), centers, counts[: last + 2]))
    return Curves(
        "lengths",
        "How long",
        "Synthetic text should be as long as real text; a pile at the right was cut by the window.",
        "tokens in a document",
        "share of documents",
        lines,
    )


def _area(name: str, color: str, x: Sequence[float], counts: Sequence[float]) -> Line:
    # Shares, so that kinds of text of different size lie on one another.
    total = sum(counts) or 1
    points = [(at, count / total) for at, count in zip(x, counts, strict=True)]
    return Line(name, color, points, "area")
