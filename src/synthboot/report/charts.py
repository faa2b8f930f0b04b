"""The report's charts: plotly traces and layouts as plain values, from the JSON of the stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Chart = dict[str, Any]

COLORS = {"repetition": "#6b7280", "method": "#2563eb", "oracle": "#d97706"}
"""The colour of the first arm of a kind, the same in every chart; the others have the palette's."""
_PALETTE = (
    "#059669",
    "#9333ea",
    "#db2777",
    "#0891b2",
    "#65a30d",
    "#b91c1c",
    "#4338ca",
    "#a16207",
    "#0f766e",
    "#be185d",
    "#1e3a8a",
    "#7c2d12",
)
_COMPARED = ("method", "control")
_INK = "#111827"
_DOTTED = {"dash": "dot"}


def charts(results: Mapping[str, Any]) -> list[Chart]:
    """Every chart: the id of its place, plotly traces and layout."""
    evaluated = results["evaluate"]
    analyzed = results["analyze"]
    paint = colors(_scores_of(evaluated)["kinds"])

    optional = [
        _differences(evaluated, paint),
        _shares(results),
        _efficiency(evaluated, paint),
        _flops(evaluated, paint),
        _rounds(results),
    ]
    drawn = [_scores(evaluated, paint), _curves(results, paint)]
    optional.append(_copying(results, paint))
    drawn += [chart for chart in optional if chart is not None]

    if evaluated["questions"]:
        drawn.append(_questions(evaluated["questions"], paint))
    if evaluated.get("parts"):
        drawn.append(_parts(evaluated["parts"]))
    for role, pairs in results["pairs"].items():
        if role.endswith("related"):
            drawn.append(_similarities(pairs, analyzed))
            break
    if results["tune"]:
        drawn.append(_tuning(results["tune"]))
    if analyzed:
        drawn.append(_lengths(analyzed))
        if analyzed.get("world"):
            drawn.append(_excess(analyzed["world"]["excess"]))
    return drawn


def colors(kinds: Mapping[str, str]) -> dict[str, str]:
    """A colour for every arm, from what each is."""
    by_arm: dict[str, str] = {}
    others = 0
    for arm, kind in kinds.items():
        # A second arm of the method must not look like the first.
        own = COLORS.get(kind)
        if own is not None and own not in by_arm.values():
            by_arm[arm] = own
        else:
            by_arm[arm] = _PALETTE[others % len(_PALETTE)]
            others += 1
    return by_arm


def _scores_of(evaluated: Mapping[str, Any]) -> Mapping[str, Any]:
    """The scores at the checkpoint that the verdict is about."""
    scores: Mapping[str, Any] = evaluated[evaluated["checkpoint"]]
    return scores


def _scores(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> Chart:
    arms = _scores_of(evaluated)["arms"]
    names = list(arms)
    losses = [arm["loss"] for arm in arms.values()]
    bars = {
        "type": "scatter",
        "mode": "markers",
        "x": [loss[0] for loss in losses],
        "y": names,
        "marker": {"size": 12, "color": [paint[name] for name in names]},
        "error_x": _error_bars(losses),
        "showlegend": False,
    }

    by_seed = {name: arm["loss_by_seed"] for name, arm in arms.items()}
    dots = _dots(by_seed, {"symbol": "line-ns-open", "size": 14, "color": _INK})
    layout = _arms_downwards("test loss, nats per token", len(names))
    return {"id": "scores", "data": [bars, dots], "layout": layout}


def _differences(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> Chart | None:
    """Each arm's difference to repetition, with its interval and a dot for every seed.

    Oracles, which would flatten the rest, are left out.
    """
    scores = _scores_of(evaluated)
    kinds = scores["kinds"]
    arms = {name: arm for name, arm in scores["arms"].items() if kinds[name] in _COMPARED}
    if not arms:
        return None

    differences = [arm["difference"] for arm in arms.values()]
    bars = {
        "x": [difference[0] for difference in differences],
        "y": list(arms),
        "error_x": _error_bars(differences),
        "type": "scatter",
        "mode": "markers",
        "showlegend": False,
        "marker": {"size": 12, "color": [paint[name] for name in arms]},
    }

    by_seed = {name: arm["difference_by_seed"] for name, arm in arms.items()}
    dots = _dots(by_seed, {"symbol": "circle-open", "size": 8, "color": _INK})
    layout = _arms_downwards("difference to repetition, nats per token", len(arms))
    layout["shapes"] = [_vertical(0)]
    return {"id": "differences", "data": [bars, dots], "layout": layout}


def _dots(by_seed: Mapping[str, Sequence[float]], marker: dict[str, Any]) -> dict[str, Any]:
    """A dot for every seed, on the line of its arm."""
    x: list[float] = []
    y: list[str] = []
    for name, values in by_seed.items():
        x += values
        y += [name] * len(values)
    return {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "name": "one seed",
        "marker": marker,
    }


def _arms_downwards(title: str, arms: int) -> dict[str, Any]:
    """The layout of a chart with a line for every arm, the first on top."""
    layout = _layout(title, "")
    layout["height"] = max(layout["height"], 90 + 28 * arms)
    # Plotly counts upwards.
    layout["yaxis"]["autorange"] = "reversed"
    return layout


def _curves(results: Mapping[str, Any], paint: Mapping[str, str]) -> Chart:
    data = []
    shown = set()
    for role, curve in results["curves"].items():
        if role == "base" or "/" not in role:
            continue
        arm = role.rsplit("/", 1)[0]
        x, y = zip(*curve["validation"], strict=True)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": x,
                "y": y,
                "name": arm,
                "legendgroup": arm,
                "showlegend": arm not in shown,  # once for all its seeds
                "line": {"color": paint[arm]},
                "marker": {"size": 5},
            }
        )
        shown.add(arm)

    evaluated = results["evaluate"]
    layout = _layout("tokens trained on", "validation loss, nats per token")
    layout = _beside(layout, len(evaluated["token_counts"]))
    subject = _scores_of(evaluated)["subject"]
    cross = crossing(results, subject) if subject else None
    if cross is not None:
        layout["shapes"] = [_vertical(cross)]
        layout["annotations"] = [
            {
                "x": cross,
                "y": 1,
                "yref": "paper",
                "text": f"{subject} overtakes",
                "showarrow": False,
            }
        ]
    floor = count_model(results)
    if floor is not None:
        layout.setdefault("shapes", []).append(_horizontal(floor))
        layout.setdefault("annotations", []).append(
            {
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": floor,
                "yanchor": "bottom",
                "text": "n-grams with a cache",
                "showarrow": False,
            }
        )
    return {"id": "curves", "data": data, "layout": layout}


def _copying(results: Mapping[str, Any], paint: Mapping[str, str]) -> Chart | None:
    """The copy score of every model while it trains."""
    data = []
    shown = set()
    for role, curve in results["curves"].items():
        # base stands once more under its arm and seed
        if "/" not in role or not curve.get("copying"):
            continue
        arm = role.rsplit("/", 1)[0]
        tokens, scores = zip(*curve["copying"], strict=True)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": tokens,
                "y": scores,
                "name": arm,
                "legendgroup": arm,
                "showlegend": arm not in shown,  # once for all its seeds
                "line": {"color": paint[arm]},
            }
        )
        shown.add(arm)
    if not data:
        return None
    layout = _layout("tokens trained on", "copy score, nats per token")
    return {"id": "copying", "data": data, "layout": _beside(layout, len(shown))}


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


def _shares(results: Mapping[str, Any]) -> Chart | None:
    """Loss over the share of synthetic text, for arms that differ in nothing else."""
    arms = _scores_of(results["evaluate"])["arms"]
    by_recipe: dict[str, list[tuple[float, str]]] = {}
    for name, recipe in results["config"]["arms"].items():
        if recipe["synthetic"] and not recipe["sweep"]:
            # Recipes that are equal but for the share belong to one curve.
            rest = json.dumps(_without(recipe, "share"), sort_keys=True)
            by_recipe.setdefault(rest, []).append((recipe["share"], name))

    data = []
    for points in by_recipe.values():
        if len(points) < 2:
            continue
        points = sorted([(0.0, "repetition"), *points])
        shares = [share for share, _ in points]
        losses = [arms[name]["loss"] for _, name in points]
        data.append(_with_intervals(shares, losses, name=points[1][1]))
    if not data:
        return None

    layout = _layout("share of synthetic text (0: repetition)", "test loss")
    return {"id": "shares", "data": data, "layout": layout}


def _without(recipe: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in recipe.items() if name != key}


def _efficiency(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> Chart | None:
    """Loss over unique real tokens, and where on that curve the other arms would stand."""
    efficiency = evaluated["efficiency"]
    arms = _scores_of(evaluated)["arms"]
    # One point, repetition, is no curve: oracles make the others.
    if len(efficiency["points"]) < 2:
        return None

    x, y = zip(*efficiency["points"], strict=True)
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines+markers", "x": x, "y": y, "name": "real text alone"}
    ]
    for name, tokens in efficiency["worth"].items():
        if not tokens:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [tokens],
                "y": [arms[name]["loss"][0]],
                "name": name,
                "marker": {"size": 11, "symbol": "diamond", "color": paint[name]},
            }
        )
    layout = _layout("unique real tokens", "test loss, nats per token")
    layout["xaxis"]["type"] = "log"
    return {"id": "efficiency", "data": data, "layout": layout}


def _flops(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> Chart | None:
    """Loss over everything that was computed for an arm, its synthetic text included."""
    arms = _scores_of(evaluated)["arms"]
    # Seeds of an arm cost the same, so the first speaks for all.
    token_counts = {}
    for name, by_seed in evaluated["token_counts"].items():
        token_counts[name] = next(iter(by_seed.values()))
    if not any(counts["spent_flops"] for counts in token_counts.values()):
        return None

    data = []
    for name, counts in token_counts.items():
        flops = counts["train_flops"] + counts["spent_flops"]
        point = _with_intervals([flops], [arms[name]["loss"]], name)
        point["mode"] = "markers"
        point["marker"] = {"size": 10, "color": paint[name]}
        data.append(point)
    layout = _layout(
        "FLOPs: training, embedding, pairing, tuning, synthesis", "test loss, nats per token"
    )
    return {"id": "flops", "data": data, "layout": _beside(layout, len(token_counts))}


def _rounds(results: Mapping[str, Any]) -> Chart | None:
    """Entropy and distinct 4-grams of what each round wrote, beside the loss that it led to."""
    rows = rounds(results)
    if len(rows) < 2:
        return None

    names = [f"round {row['round']}: {row['arm']}" for row in rows]
    line: dict[str, Any] = {"type": "scatter", "mode": "lines+markers", "x": names}
    losses = [row["loss"][0] for row in rows]
    entropies = [row["entropy"] for row in rows]
    distinct = [row["distinct"] for row in rows]
    data = [
        {**line, "y": losses, "name": "test loss"},
        {**line, "y": entropies, "name": "entropy of samples, nats per token"},
        {**line, "y": distinct, "name": "distinct 4-grams (right)", "yaxis": "y2"},
    ]
    layout = _layout("", "nats per token")
    # Fractions beside nats: an axis of their own.
    layout["yaxis2"] = {"overlaying": "y", "side": "right", "tickformat": ".0%", "automargin": True}
    return {"id": "rounds", "data": data, "layout": layout}


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


def _questions(questions: Mapping[str, Any], paint: Mapping[str, str]) -> Chart:
    """Share answered right by arm, for every task and group of its items."""
    columns = []
    by_column = []
    for task, answers in questions.items():
        for group, by_arm in answers["groups"].items():
            columns.append(task if group == "all" else f"{task}: {group}")
            by_column.append(by_arm)

    data = []
    for name in by_column[0]:
        bars = _with_intervals(columns, [by_arm[name]["acc"] for by_arm in by_column], name)
        data.append({**bars, "type": "bar", "marker": {"color": paint[name]}})
    layout = _beside(_layout("", "answered right"), len(data))
    layout["barmode"] = "group"
    return {"id": "questions", "data": data, "layout": layout}


def _parts(parts: Mapping[str, Any]) -> Chart:
    """By arm and group, what of a document costs more or less than it costs repetition."""
    # Without groups of documents there is all of them.
    groups = [group for group in parts if group != "all"] or ["all"]
    arms = [arm for arm in parts["all"] if arm != "repetition"]

    data = []
    for part, color in zip(parts["all"]["repetition"], _PALETTE, strict=False):
        x = []
        y = []
        for arm in arms:
            for group in groups:
                by_arm = parts[group]
                x.append(by_arm[arm][part][0] - by_arm["repetition"][part][0])
                y.append(f"{arm}, {group}")
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": part,
                "marker": {"color": color},
                "x": x,
                "y": y,
            }
        )

    layout = _layout("nats a document, beside repetition", "")
    layout["barmode"] = "relative"
    layout["height"] = 120 + 22 * len(arms) * len(groups)
    layout["legend"] = {"orientation": "v", "x": 1.02, "y": 1}
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True, "dtick": 1}
    return {"id": "parts", "data": data, "layout": layout}


def _excess(curves: Mapping[str, Any]) -> Chart:
    data = []
    for name, curve in curves.items():
        tokens, above_world, above_corpus = zip(*curve["points"], strict=True)
        line: dict[str, Any] = {"type": "scatter", "mode": "lines+markers", "x": tokens}
        data.append({**line, "y": above_corpus, "name": f"{name}, above one who read D_pretrain"})
        data.append(
            {
                **line,
                "y": above_world,
                "name": f"{name}, above one who knows the world",
                "line": _DOTTED,
            }
        )
    layout = _layout("tokens tuned on", "excess nats per d2")
    # What is left of the excess falls by orders of magnitude.
    layout["yaxis"]["type"] = "log"
    return {"id": "excess", "data": data, "layout": layout}


def _similarities(pairs: Mapping[str, Any], analyzed: Mapping[str, Any] | None) -> Chart:
    edges = pairs["bins"]
    centers = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    histograms = pairs["histograms"]
    data = [
        _area("random pairs", centers, histograms["random"]),
        _area("nearest neighbours", centers, histograms["nearest"]),
        _area("kept pairs", centers, histograms["pairs"]),
    ]

    sampled = (analyzed or {}).get("relevance", {}).get("related")
    if sampled and sampled.get("histogram"):
        # Its bins divide similarities from -0.2 to 1.
        bins = len(sampled["histogram"])
        width = 1.2 / bins
        centers = [-0.2 + (i + 0.5) * width for i in range(bins)]
        data.append(_area("d1 and sampled d2", centers, sampled["histogram"]))

    layout = _layout("similarity of d1 and d2", "density")
    layout["shapes"] = [_vertical(pairs["alpha"])]
    return {"id": "similarities", "data": data, "layout": layout}


def _tuning(tuned: Mapping[str, Any]) -> Chart:
    names = {
        "given_d1": "given its d1",
        "given_random_d1": "given a random d1",
        "given_nothing": "given nothing",
        "base": "base, given nothing",
    }
    data = []
    shown: list[float] = []
    for role, result in tuned.items():
        losses = [result["conditioning"]["unseen"][key] for key in names]
        data.append(
            {
                "type": "bar",
                "x": list(names.values()),
                "y": losses,
                "name": role.removeprefix("tune/"),
                "text": [f"{loss:.3f}" for loss in losses],
            }
        )
        shown += losses

    # Bars from zero would all look alike.
    layout = _layout("", "loss on unseen d2, nats per token")
    margin = 0.25 * (max(shown) - min(shown)) + 0.01
    layout["yaxis"]["range"] = [min(shown) - margin, max(shown) + margin]
    return {"id": "tuning", "data": data, "layout": layout}


def _lengths(analyzed: Mapping[str, Any]) -> Chart:
    # Bins of 32 tokens, cut off behind the last that any kind of text has a document in.
    histograms = {name: measured["lengths"] for name, measured in analyzed["kinds"].items()}
    last = max(int(np.flatnonzero([1, *counts[1:]])[-1]) for counts in histograms.values())
    centers = [16 + 32 * i for i in range(64)][: last + 2]
    data = [_area(name, centers, counts[: last + 2]) for name, counts in histograms.items()]
    layout = _layout("tokens in a document", "share of documents")
    return {"id": "lengths", "data": data, "layout": layout}


def _with_intervals(
    x: Sequence[Any], values: Sequence[Sequence[float]], name: str
) -> dict[str, Any]:
    """A line through [value, low, high], with error bars."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": list(x),
        "y": [value[0] for value in values],
        "name": name,
        "error_y": _error_bars(values),
    }


def _error_bars(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Plotly's lengths of error bars, from [value, low, high]."""
    above = []
    below = []
    for value, low, high in values:
        above.append(high - value)
        below.append(value - low)
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _vertical(x: float) -> dict[str, Any]:
    """A dotted line from the bottom to the top."""
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": _DOTTED}


def _horizontal(y: float) -> dict[str, Any]:
    """A dotted line from the left to the right."""
    return {"type": "line", "x0": 0, "x1": 1, "xref": "paper", "y0": y, "y1": y, "line": _DOTTED}


def _area(name: str, x: Sequence[float], counts: Sequence[float]) -> dict[str, Any]:
    # Shares, so that kinds of text of different size lie on one another.
    total = sum(counts) or 1
    return {
        "type": "scatter",
        "mode": "lines",
        "fill": "tozeroy",
        "x": x,
        "y": [count / total for count in counts],
        "name": name,
    }


def _beside(layout: dict[str, Any], entries: int) -> dict[str, Any]:
    """With a legend of many entries at the right, where it covers nothing."""
    if entries > 5:
        layout["legend"] = {"orientation": "v", "x": 1.02, "y": 1}
        layout["height"] = max(360, 60 + 26 * entries)
    return layout


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        "margin": {"l": 70, "r": 10, "t": 10, "b": 50},
        "height": 320,
        "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
        "legend": {"orientation": "h", "y": 1.12},
        "paper_bgcolor": "white",
        "plot_bgcolor": "#f9fafb",
        "font": {"family": "system-ui, sans-serif", "size": 13},
    }
