"""One self-contained HTML page from the JSON of all the other stages: plotly inline, no network.

Corpus text reaches the page as JSON and is placed with `textContent`, so nothing in it can become markup or script.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from synthboot.data.artifacts import flat

COLORS = {"repetition": "#6b7280", "sbp": "#2563eb", "oracle": "#d97706"}
_PALETTE = ("#059669", "#9333ea", "#db2777", "#0891b2", "#65a30d")
PAPER = {
    "headers": ["200B, 3B", "1T, 3B", "1T, 6B", "real text"],
    "rows": {
        "repetition within a document": ["4.3 %", "3.9 %", "2.6 %", "1.8 %"],
        "duplicates in a 1M sample": ["0.8 %", "0.8 %", "0.3 %", "0.7 %"],
        "non-factual": ["15.1 %", "8.7 %", "6.5 %", "1.8 %"],
        "d2 unrelated to d1": ["25.6 %", "7.8 %", "6.0 %", "-"],
        "d2 copies d1": ["0.1 %", "0.9 %", "0.3 %", "-"],
        "share of the oracle's gain (QA)": ["42 %", "48 %", "58 %", "-"],
    },
}


def report(results: Mapping[str, Any]) -> str:
    """The page."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=PackageLoader("synthboot", "stages"), autoescape=select_autoescape(["html", "j2"]))
    evaluated = results["evaluate"]
    scores = evaluated[evaluated["checkpoint"]]
    page = environment.get_template("report.html.j2").render(
        results=results,
        scores=scores,
        other=evaluated["last" if evaluated["checkpoint"] == "best" else "best"],
        ledgers={arm: next(iter(seeds.values())) for arm, seeds in evaluated["ledgers"].items()},
        settings=sorted(flat(results["config"]).items()),
        quality=quality(results["analyze"]),
        proof={role: t["proof"] for role, t in results["tune"].items()},
        pair=next((p for role, p in results["pairs"].items() if role.endswith("related")), None),
        costs=results["costs"],
        paper=PAPER,
        charts=Markup(_script(charts(results))),
        examples=Markup(_script(results["examples"])),
        spread=Markup(_script(results["pair_examples"])),
        plotly=Markup(get_plotlyjs()),
    )
    return page + "\n"


def charts(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every chart: the id of its place, plotly traces and layout."""
    found = [_scores(results["evaluate"]), _curves(results)]
    related = next((p for role, p in results["pairs"].items() if role.endswith("related")), None)
    if related:
        found.append(_similarities(related, results["analyze"]))
    if results["tune"]:
        found.append(_tuning(results["tune"]))
    if results["analyze"]:
        found.append(_lengths(results["analyze"]))
    return found


def quality(analyzed: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The quality table: a column per kind of text, a row per measure."""
    if not analyzed:
        return None
    kinds = analyzed["kinds"]
    relevance = {"unseen real": analyzed["relevance"].get("real pairs")} | analyzed["relevance"]

    def row(read: Any) -> list[str]:
        return [read(name, measures) for name, measures in kinds.items()]

    def share(*path: str) -> list[str]:
        def read(_: str, measures: Any) -> str:
            for key in path:
                measures = measures.get(key) if isinstance(measures, Mapping) else None
            return "-" if measures is None else f"{measures:.1%}"

        return row(read)

    def similarity(name: str, _: Any) -> str:
        found = relevance.get(name)
        return "-" if not found or found["mean"] is None else f"{found['mean']:.3f}"

    n = analyzed["copy_tokens"]
    return {
        "headers": list(kinds),
        "rows": {
            "documents": row(lambda _, m: f"{m['docs']:,}"),
            "tokens, mean": row(lambda _, m: f"{m['tokens_mean']:.0f}"),
            "4-grams that repeat an earlier one of the document": share("repeated_4grams"),
            "documents that loop (over 10 % repeated 8-grams)": share("looping"),
            "documents with a near-duplicate in the sample": share("duplicates"),
            f"tokens in a run of {n} that D_pretrain holds": share("copied_from_corpus", "tokens"),
            f"documents with such a run of {n}": share("copied_from_corpus", "docs"),
            "longest such run, tokens": row(lambda _, m: f"{m['copied_from_corpus']['longest_max']:.0f}"),
            f"documents with a run of {n} from their d1": share("copied_from_d1", "docs"),
            "longest run from d1, tokens": row(
                lambda _, m: f"{m['copied_from_d1']['longest_max']:.0f}" if "copied_from_d1" in m else "-"
            ),
            "2-grams that D_pretrain does not hold": share("novel_ngrams", "2"),
            "4-grams that D_pretrain does not hold": share("novel_ngrams", "4"),
            "similarity of d1 and d2 (first column: real pairs)": row(similarity),
        },
    }  # fmt: skip


def _color(arm: str, names: list[str]) -> str:
    others = [n for n in names if n not in COLORS]
    return COLORS.get(arm) or _PALETTE[others.index(arm) % len(_PALETTE)]


def _scores(evaluated: Mapping[str, Any]) -> dict[str, Any]:
    arms = evaluated[evaluated["checkpoint"]]["arms"]
    names = list(arms)
    losses = [arms[n]["loss"] for n in names]
    bars = {
        "type": "scatter", "mode": "markers", "x": [v[0] for v in losses], "y": names,
        "marker": {"size": 12, "color": [_color(n, names) for n in names]},
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
    return {"id": "scores", "data": [bars, dots], "layout": _layout("holdout loss, nats per token", "")}


def _curves(results: Mapping[str, Any]) -> dict[str, Any]:
    data, seen = [], set()
    names = list(results["evaluate"]["ledgers"])
    for role, curve in results["curves"].items():
        if role == "base":
            continue
        arm = role.rsplit("/", 1)[0]
        x, y = zip(*curve["validation"], strict=True)
        data.append(
            {
                "type": "scatter", "mode": "lines+markers", "x": x, "y": y, "name": arm, "legendgroup": arm,
                "showlegend": arm not in seen, "line": {"color": _color(arm, names)}, "marker": {"size": 5},
            }
        )  # fmt: skip
        seen.add(arm)
    return {"id": "curves", "data": data, "layout": _layout("tokens trained on", "validation loss, nats per token")}


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
        proof = result["proof"]["unseen"]
        values = [proof[key] for key in names]
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
    return {"id": "lengths", "data": data, "layout": _layout("tokens in a document", "share of documents")}


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


def _layout(x: str, y: str) -> dict[str, Any]:
    return {
        "margin": {"l": 70, "r": 10, "t": 10, "b": 50}, "height": 320, "xaxis": {"title": {"text": x}, "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True}, "legend": {"orientation": "h", "y": 1.12},
        "paper_bgcolor": "white", "plot_bgcolor": "#f9fafb", "font": {"family": "system-ui, sans-serif", "size": 13},
    }  # fmt: skip


def _script(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False)
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )
