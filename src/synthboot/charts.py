"""The report's charts: plotly traces and layouts as plain values, from the JSON of the other stages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

COLORS = {"repetition": "#6b7280", "method": "#2563eb", "oracle": "#d97706"}
"""The colour of the first arm of a kind, the same in every chart; the others take theirs from the palette."""
_PALETTE = (
    "#059669", "#9333ea", "#db2777", "#0891b2", "#65a30d", "#b91c1c", "#4338ca", "#a16207", "#0f766e", "#be185d", "#1e3a8a",
    "#7c2d12",
)  # fmt: skip


def charts(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every chart: the id of its place, plotly traces and layout."""
    evaluated = results["evaluate"]
    paint = colors(evaluated[evaluated["checkpoint"]]["kinds"])
    found = [_scores(evaluated, paint), _curves(results, paint)]
    differences = _differences(evaluated, paint)
    if differences is not None:
        found.append(differences)
    found += [
        c
        for c in (
            _shares(results),
            _efficiency(evaluated, paint),
            _flops(evaluated, paint),
            _rounds(results),
        )
        if c is not None
    ]
    if evaluated["questions"]:
        found.append(_questions(evaluated["questions"], paint))
    if evaluated.get("parts"):
        found.append(_parts(evaluated["parts"]))
    related = next((p for role, p in results["pairs"].items() if role.endswith("related")), None)
    if related:
        found.append(_similarities(related, results["analyze"]))
    if results["tune"]:
        found.append(_tuning(results["tune"]))
    if results["analyze"]:
        found.append(_lengths(results["analyze"]))
        if results["analyze"].get("world"):
            found.append(_excess(results["analyze"]["world"]["excess"]))
    return found


def colors(kinds: Mapping[str, str]) -> dict[str, str]:
    """A colour for every arm, from what each is."""
    found: dict[str, str] = {}
    others = 0
    for arm, kind in kinds.items():
        own = COLORS.get(kind)
        if own is not None and own not in found.values():
            found[arm] = own
        else:
            found[arm] = _PALETTE[others % len(_PALETTE)]
            others += 1
    return found


def _scores(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> dict[str, Any]:
    arms = evaluated[evaluated["checkpoint"]]["arms"]
    names = list(arms)
    losses = [arms[n]["loss"] for n in names]
    bars = {
        "type": "scatter", "mode": "markers", "x": [v[0] for v in losses], "y": names,
        "marker": {"size": 12, "color": [paint[n] for n in names]},
        "error_x": {
            "type": "data", "symmetric": False, "array": [v[2] - v[0] for v in losses],
            "arrayminus": [v[0] - v[1] for v in losses],
        },
        "showlegend": False,
    }  # fmt: skip
    seeds = [(v, n) for n in names for v in arms[n]["loss_by_seed"]]
    dots = {
        "type": "scatter", "mode": "markers", "x": [v for v, _ in seeds], "y": [n for _, n in seeds], "name": "one seed",
        "marker": {"symbol": "line-ns-open", "size": 14, "color": "#111827"},
    }  # fmt: skip
    layout = _layout("test loss, nats per token", "")
    layout["height"] = max(layout["height"], 90 + 28 * len(names))
    layout["yaxis"]["autorange"] = "reversed"
    return {"id": "scores", "data": [bars, dots], "layout": layout}


def _differences(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> dict[str, Any] | None:
    """Each arm's difference to repetition, with its interval and a dot for every seed; oracles, which would flatten the
    rest, are left out."""
    scores = evaluated[evaluated["checkpoint"]]
    names = [n for n in scores["arms"] if scores["kinds"][n] in ("method", "control")]
    if not names:
        return None
    found = [scores["arms"][n]["difference"] for n in names]
    bars = _with_intervals(names, found, "all seeds")
    bars = {
        "x": bars["y"],
        "y": bars["x"],
        "error_x": bars["error_y"],
        "type": "scatter",
        "mode": "markers",
    }
    bars |= {"showlegend": False, "marker": {"size": 12, "color": [paint[n] for n in names]}}
    seeds = [(value, n) for n in names for value in scores["arms"][n]["difference_by_seed"]]
    dots = {
        "type": "scatter", "mode": "markers", "x": [v for v, _ in seeds], "y": [n for _, n in seeds], "name": "one seed",
        "marker": {"symbol": "circle-open", "size": 8, "color": "#111827"},
    }  # fmt: skip
    layout = _layout("difference to repetition, nats per token", "")
    layout["height"] = max(layout["height"], 90 + 28 * len(names))
    layout["yaxis"]["autorange"] = "reversed"
    zero = {
        "type": "line",
        "x0": 0,
        "x1": 0,
        "y0": 0,
        "y1": 1,
        "yref": "paper",
        "line": {"dash": "dot"},
    }
    layout["shapes"] = [zero]
    return {"id": "differences", "data": [bars, dots], "layout": layout}


def _curves(results: Mapping[str, Any], paint: Mapping[str, str]) -> dict[str, Any]:
    data, seen = [], set()
    names = list(results["evaluate"]["ledgers"])
    for role, curve in results["curves"].items():
        if role == "base" or "/" not in role:
            continue
        arm = role.rsplit("/", 1)[0]
        x, y = zip(*curve["validation"], strict=True)
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "name": arm, "legendgroup": arm,
                "showlegend": arm not in seen, "line": {"color": paint[arm]}, "marker": {"size": 5},
            }
        )  # fmt: skip
        seen.add(arm)
    layout = _beside(_layout("tokens trained on", "validation loss, nats per token"), len(names))
    evaluated = results["evaluate"]
    subject = evaluated[evaluated["checkpoint"]]["subject"]
    cross = crossing(results, subject) if subject else None
    if cross is not None:
        line = {
            "type": "line",
            "x0": cross,
            "x1": cross,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"dash": "dot"},
        }
        layout["shapes"] = [line]
        layout["annotations"] = [
            {
                "x": cross,
                "y": 1,
                "yref": "paper",
                "text": f"{subject} overtakes",
                "showarrow": False,
            }
        ]
    return {"id": "curves", "data": data, "layout": layout}


def crossing(results: Mapping[str, Any], arm: str) -> float | None:
    """Tokens trained on from which an arm's validation loss, meaned over seeds, stays below repetition's; None where it does
    not in the end."""

    def mean(name: str) -> tuple[list[float], list[float]]:
        curves = [
            c["validation"]
            for role, c in results["curves"].items()
            if role.rsplit("/", 1)[0] == name
        ]
        rows = min(map(len, curves), default=0)
        return [curves[0][i][0] for i in range(rows)], [
            sum(c[i][1] for c in curves) / len(curves) for i in range(rows)
        ]

    x, ours = mean(arm)
    other_x, theirs = mean("repetition")
    if not x or not other_x or x[-1] != other_x[-1]:
        return None
    gaps = [a - _at(t, other_x, theirs) for t, a in zip(x, ours, strict=True)]
    if gaps[-1] >= 0:
        return None
    last = max((i for i, gap in enumerate(gaps) if gap >= 0), default=None)
    if last is None:
        return x[0]
    return x[last] + (x[last + 1] - x[last]) * gaps[last] / (gaps[last] - gaps[last + 1])


def _at(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The value at x on the line through the points."""
    return float(np.interp(x, xs, ys))


def _shares(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Loss over the share of synthetic text, for arms that differ in nothing else."""
    evaluated = results["evaluate"]
    arms, recipes = evaluated[evaluated["checkpoint"]]["arms"], results["config"]["arms"]
    by_recipe: dict[str, list[tuple[float, str]]] = {}
    for name, recipe in recipes.items():
        if recipe["synthetic"] and not recipe["sweep"]:
            rest = json.dumps({k: v for k, v in recipe.items() if k != "share"}, sort_keys=True)
            by_recipe.setdefault(rest, []).append((recipe["share"], name))
    several = [
        sorted([(0.0, "repetition"), *points]) for points in by_recipe.values() if len(points) > 1
    ]
    if not several:
        return None
    data = [
        _with_intervals([s for s, _ in points], [arms[n]["loss"] for _, n in points], points[1][1])
        for points in several
    ]
    return {
        "id": "shares",
        "data": data,
        "layout": _layout("share of synthetic text (0: repetition)", "test loss"),
    }


def _efficiency(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> dict[str, Any] | None:
    """Loss over unique real tokens, and where on that curve the other arms would stand."""
    found, arms = evaluated["efficiency"], evaluated[evaluated["checkpoint"]]["arms"]
    if len(found["points"]) < 2:
        return None
    x, y = zip(*found["points"], strict=True)
    data: list[dict[str, Any]] = [
        {"type": "scatter", "mode": "lines+markers", "x": x, "y": y, "name": "real text alone"}
    ]
    worth = {name: tokens for name, tokens in found["worth"].items() if tokens}
    for name, tokens in worth.items():
        data.append(
            {
                "type": "scatter", "mode": "markers", "x": [tokens], "y": [arms[name]["loss"][0]], "name": name,
                "marker": {"size": 11, "symbol": "diamond", "color": paint[name]},
            }
        )  # fmt: skip
    layout = _layout("unique real tokens", "test loss, nats per token")
    layout["xaxis"]["type"] = "log"
    return {"id": "efficiency", "data": data, "layout": layout}


def _flops(evaluated: Mapping[str, Any], paint: Mapping[str, str]) -> dict[str, Any] | None:
    """Loss over everything that was computed for an arm, its synthetic text included."""
    arms, names = evaluated[evaluated["checkpoint"]]["arms"], list(evaluated["ledgers"])
    if not any(
        next(iter(seeds.values()))["spent_flops"] for seeds in evaluated["ledgers"].values()
    ):
        return None
    data = []
    for name, seeds in evaluated["ledgers"].items():
        ledger = next(iter(seeds.values()))
        paid = [ledger["train_flops"] + ledger["spent_flops"]]
        point = _with_intervals(paid, [arms[name]["loss"]], name)
        data.append(point | {"mode": "markers", "marker": {"size": 10, "color": paint[name]}})
    layout = _layout(
        "FLOPs: training, embedding, pairing, tuning, synthesis", "test loss, nats per token"
    )
    return {"id": "flops", "data": data, "layout": _beside(layout, len(names))}


def _rounds(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Entropy and distinct 4-grams of what each round wrote, beside the loss of the model trained on it."""
    rows = rounds(results)
    if len(rows) < 2:
        return None
    x = [f"round {r['round']}: {r['arm']}" for r in rows]
    left: dict[str, Any] = {"type": "scatter", "mode": "lines+markers", "x": x}
    data = [left | {"y": [r["loss"][0] for r in rows], "name": "test loss"}]
    data += [
        left | {"y": [r["entropy"] for r in rows], "name": "entropy of samples, nats per token"}
    ]
    data += [
        left
        | {"y": [r["distinct"] for r in rows], "name": "distinct 4-grams (right)", "yaxis": "y2"}
    ]
    layout = _layout("", "nats per token")
    layout["yaxis2"] = {"overlaying": "y", "side": "right", "tickformat": ".0%", "automargin": True}
    return {"id": "rounds", "data": data, "layout": layout}


def rounds(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every round of bootstrapping of the longest chain of arms: its loss, and what its synthesizer wrote."""
    recipes, evaluated, analyzed = (
        results["config"]["arms"],
        results["evaluate"],
        results["analyze"],
    )
    last = max(recipes, key=lambda name: recipes[name]["rounds"])
    if recipes[last]["rounds"] < 2 or not analyzed:
        return []
    same = {k: v for k, v in recipes[last].items() if k != "rounds"}
    chain = sorted(
        (recipe["rounds"], name)
        for name, recipe in recipes.items()
        if {k: v for k, v in recipe.items() if k != "rounds"} == same
    )
    found = []
    for number, name in chain:
        before = next((n for r, n in chain if r == number - 1), None)
        kind = analyzed["kinds"][
            f"{same['synthetic']}-after-{before}" if before else same["synthetic"]
        ]
        loss = evaluated[evaluated["checkpoint"]]["arms"][name]["loss"]
        measured = {"entropy": kind["entropy"], "distinct": kind["distinct_ngrams"]["4"]}
        found.append({"round": number, "arm": name, "loss": loss, **measured})
    return found


def _questions(asked: Mapping[str, Any], paint: Mapping[str, str]) -> dict[str, Any]:
    """Share answered right by arm, for every task and group of its items."""
    data = []
    first = next(iter(asked.values()))["groups"]["all"]
    names = list(first)
    for name in names:
        cells = [
            (task, group, by_arm[name])
            for task, t in asked.items()
            for group, by_arm in t["groups"].items()
        ]
        x = [task if group == "all" else f"{task}: {group}" for task, group, _ in cells]
        data.append(
            _with_intervals(x, [c["acc"] for *_, c in cells], name)
            | {"type": "bar", "marker": {"color": paint[name]}}
        )  # fmt: skip
    layout = _beside(_layout("", "answered right"), len(names))
    layout["barmode"] = "group"
    return {"id": "questions", "data": data, "layout": layout}


def _parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """By arm and group, what of a document costs more or less than it costs repetition."""
    groups = [g for g in parts if g != "all"] or ["all"]
    arms = [a for a in parts["all"] if a != "repetition"]
    cells = [(group, arm) for arm in arms for group in groups]
    data = [
        {
            "type": "bar", "orientation": "h", "name": part, "marker": {"color": color},
            "x": [parts[g][a][part][0] - parts[g]["repetition"][part][0] for g, a in cells],
            "y": [f"{a}, {g}" for g, a in cells],
        }
        for part, color in zip(parts["all"]["repetition"], _PALETTE, strict=False)
    ]  # fmt: skip
    layout = _layout("nats a document, beside repetition", "")
    layout |= {
        "barmode": "relative",
        "height": 120 + 22 * len(cells),
        "legend": {"orientation": "v", "x": 1.02, "y": 1},
    }
    layout["yaxis"] |= {"autorange": "reversed", "automargin": True, "dtick": 1}
    return {"id": "parts", "data": data, "layout": layout}


def _excess(curves: Mapping[str, Any]) -> dict[str, Any]:
    data = []
    for name, curve in curves.items():
        x, world, corpus = zip(*curve["points"], strict=True)
        line: dict[str, Any] = {"type": "scatter", "mode": "lines+markers", "x": x}
        data += [line | {"y": corpus, "name": f"{name}, above one who read D_pretrain"}]
        data += [
            line
            | {
                "y": world,
                "name": f"{name}, above one who knows the world",
                "line": {"dash": "dot"},
            }
        ]
    layout = _layout("tokens tuned on", "excess nats per d2")
    layout["yaxis"]["type"] = "log"
    return {"id": "excess", "data": data, "layout": layout}


def _with_intervals(
    x: Sequence[Any], values: Sequence[Sequence[float]], name: str
) -> dict[str, Any]:
    """A line of [value, low, high]."""
    bars = {"array": [v[2] - v[0] for v in values], "arrayminus": [v[0] - v[1] for v in values]}
    return {
        "type": "scatter", "mode": "lines+markers", "x": list(x), "y": [v[0] for v in values], "name": name,
        "error_y": {"type": "data", "symmetric": False, **bars},
    }  # fmt: skip


def _similarities(pairs: Mapping[str, Any], analyzed: Mapping[str, Any] | None) -> dict[str, Any]:
    bins = pairs["bins"]
    centers = [(a + b) / 2 for a, b in zip(bins, bins[1:], strict=False)]
    shown = {"random pairs": "random", "nearest neighbours": "nearest", "kept pairs": "pairs"}
    data = [_area(name, centers, pairs["histograms"][key]) for name, key in shown.items()]
    synthetic = (analyzed or {}).get("relevance", {}).get("related")
    if synthetic and synthetic.get("histogram"):
        step = 1.2 / len(synthetic["histogram"])
        points = [-0.2 + (i + 0.5) * step for i in range(len(synthetic["histogram"]))]
        data.append(_area("d1 and sampled d2", points, synthetic["histogram"]))
    layout = _layout("similarity of d1 and d2", "density")
    layout["shapes"] = [
        {
            "type": "line",
            "x0": pairs["alpha"],
            "x1": pairs["alpha"],
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"dash": "dot"},
        }
    ]
    return {"id": "similarities", "data": data, "layout": layout}


def _tuning(tuned: Mapping[str, Any]) -> dict[str, Any]:
    names = {
        "given_d1": "given its d1", "given_random_d1": "given a random d1", "given_nothing": "given nothing",
        "base": "base, given nothing",
    }  # fmt: skip
    data = []
    for role, result in tuned.items():
        conditioning = result["conditioning"]["unseen"]
        values = [conditioning[key] for key in names]
        data.append(
            {
                "type": "bar",
                "x": list(names.values()),
                "y": values,
                "name": role.removeprefix("tune/"),
                "text": [f"{v:.3f}" for v in values],
            }
        )
    layout = _layout("", "loss on unseen d2, nats per token")
    values = [v for trace in data for v in trace["y"]]
    margin = 0.25 * (max(values) - min(values)) + 0.01
    layout["yaxis"]["range"] = [min(values) - margin, max(values) + margin]
    return {"id": "tuning", "data": data, "layout": layout}


def _lengths(analyzed: Mapping[str, Any]) -> dict[str, Any]:
    centers = [16 + 32 * i for i in range(64)]
    kinds = analyzed["kinds"]
    top = max(i for m in kinds.values() for i, n in enumerate(m["lengths"]) if n or i == 0)
    data = [_area(name, centers[: top + 2], m["lengths"][: top + 2]) for name, m in kinds.items()]
    return {
        "id": "lengths",
        "data": data,
        "layout": _layout("tokens in a document", "share of documents"),
    }


def _area(name: str, x: Sequence[float], counts: Sequence[float]) -> dict[str, Any]:
    total = sum(counts) or 1
    return {
        "type": "scatter",
        "mode": "lines",
        "fill": "tozeroy",
        "x": x,
        "y": [c / total for c in counts],
        "name": name,
    }


def _beside(layout: dict[str, Any], entries: int) -> dict[str, Any]:
    """With a legend of many entries at the right, where it covers nothing."""
    if entries > 5:
        layout["legend"], layout["height"] = (
            {"orientation": "v", "x": 1.02, "y": 1},
            max(360, 60 + 26 * entries),
        )
    return layout


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        "margin": {"l": 70, "r": 10, "t": 10, "b": 50}, "height": 320, "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True}, "legend": {"orientation": "h", "y": 1.12},
        "paper_bgcolor": "white", "plot_bgcolor": "#f9fafb", "font": {"family": "system-ui, sans-serif", "size": 13},
    }  # fmt: skip
