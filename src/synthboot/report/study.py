"""The page of a study: its metrics over what is varied, fitted curves, the map of what sbp buys
against what d1 is worth, and the table of all runs.

A row is a mapping with the columns of `studies.rows.Row.flat`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from synthboot import scaling
from synthboot.report.charts import PALETTE, colors
from synthboot.report.page import palette
from synthboot.report.traces import Chart, axes, error_bars, rendered, vertical
from synthboot.report.traces import horizontal as horizontal_line
from synthboot.statistics import Interval

Table = Sequence[Mapping[str, Any]]

LEVEL = 0.05
"""From which adjusted p-value on a difference counts as shown."""

_NORMAL = 1.96  # standard errors to an end of a 95 % interval
_FITTED = (
    "budget.unique_tokens",
    "budget.train_tokens",
    "pool_tokens",
    "train_tokens",
    "parameters",
)
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "star", "cross", "hexagon")
_METRICS = {
    "d1_worth": "d1's worth",
    "net_worth": "net worth",
    "minus_repetition": "the method minus repetition",
    "minus_self": "the method minus self",
    "base_loss": "validation loss of base",
    "loss": "test loss of every arm",
}
_MOST_TICKS = 8


def curves(table: Table, varied: Sequence[str]) -> list[dict[str, Any]]:
    """Power laws of the losses over tokens and parameters, a mapping each; where there is none,
    `refused` says why."""
    found = []
    for axis in _axes(table, varied):
        if axis not in _FITTED:
            continue
        for column in ["base_loss", *_losses(table)]:
            for label, rows in _lines(table, varied, axis).items():
                points = [row for row in rows if row[column] is not None]
                if len(points) < 2:
                    continue
                curve: dict[str, Any] = {
                    "axis": axis,
                    "column": column,
                    "line": label,
                    "points": len(points),
                    "refused": "",
                }
                x = [row[axis] for row in points]
                try:
                    law = scaling.fit(x, [row[column] for row in points])
                except ValueError as reason:
                    curve["refused"] = str(reason)
                else:
                    curve |= {"from": min(x), "to": max(x), **asdict(law)}
                found.append(curve)
    return found


def study(
    name: str,
    varied: Sequence[str],
    table: Table,
    fitted: Sequence[Mapping[str, Any]],
) -> str:
    """The page; `fitted` is what `curves` found."""
    maps = [chart for chart in (_map(table, kind) for kind in ("self", "repetition")) if chart]
    sections: list[dict[str, Any]] = []
    for number, axis in enumerate(_axes(table, varied)):
        drawn = []
        # parameters say no more than the setting does, but for the curves that are fitted
        metrics = ("base_loss", "loss") if axis == "parameters" else _METRICS
        for metric in metrics:
            chart = _over(table, varied, axis, metric, fitted)
            if chart is not None:
                drawn.append(chart | {"id": f"over-{number}-{metric}"})
        if drawn:
            sections.append({"axis": axis, "charts": drawn})

    everything: list[Chart] = [*maps]
    for section in sections:
        everything += section["charts"]
    header, cells = _cells(table, varied)
    return rendered(
        "study.html.j2",
        {"charts": everything},
        name=name,
        sentence=sentence(table),
        maps=maps,
        sections=sections,
        fitted=[curve for curve in fitted if not curve["refused"]],
        refused=_refusals(fitted),
        header=header,
        cells=cells,
        notes=[row for row in table if row["note"]],
    )


def sentence(table: Table) -> str:
    """What the study shows, in a sentence or two."""
    parts = [f"{len(table)} runs"]
    worths = [row["d1_worth"] for row in table if row["d1_worth"] is not None]
    if worths:
        parts.append(f"d1's worth from {min(worths):+.4f} to {max(worths):+.4f} nats a token")
    for other in ("repetition", "self"):
        rows = [row for row in table if row[f"minus_{other}"] is not None]
        if not rows:
            continue
        below = [row for row in rows if row[f"minus_{other}"] < 0]
        shown = [row for row in below if row[f"minus_{other}.p_adjusted"] <= LEVEL]
        parts.append(
            f"the method below {other} in {len(below)} of {len(rows)}, {len(shown)} of them shown"
        )
    return "; ".join(parts) + "."


def _axes(table: Table, varied: Sequence[str]) -> list[str]:
    """What figures are drawn over: what is varied, and for sizes of a model also its parameters."""
    found = list(varied)
    sizes = {row["parameters"] for row in table} - {None}
    if len(sizes) > 1 and any(axis.startswith("model.") for axis in varied):
        found.append("parameters")
    return found


def _losses(table: Table) -> list[str]:
    """The columns of the arms' losses."""
    # an arm's name may have dots too
    return [name for name in table[0] if name.startswith("loss.") and f"{name}.low" in table[0]]


def _lines(
    table: Table,
    varied: Sequence[str],
    axis: str,
) -> dict[str, list[Mapping[str, Any]]]:
    """The rows by the values of what else is varied, each sorted along the axis."""

    def varies_along(other: str) -> bool:
        return other == axis or (axis == "parameters" and other.startswith("model."))

    others = [other for other in varied if not varies_along(other)]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        if row[axis] is None:
            continue
        label = ", ".join(f"{_short(other)} {_shown(row[other])}" for other in others)
        lines.setdefault(label, []).append(row)
    # settings that go together leave a line for each point: they are one line
    if all(len(rows) == 1 for rows in lines.values()):
        lines = {"": [row for rows in lines.values() for row in rows]} if lines else {}
    for rows in lines.values():
        if _is_numeric(rows, axis):
            rows.sort(key=lambda row: row[axis])
    return lines


def _over(
    table: Table,
    varied: Sequence[str],
    axis: str,
    metric: str,
    fitted: Sequence[Mapping[str, Any]],
) -> Chart | None:
    """A metric over an axis, a line for each value of what else is varied."""
    columns = _losses(table) if metric == "loss" else [metric]
    lines = _lines(table, varied, axis)
    paint = _paint(table, columns, lines)
    laws = {}
    for curve in fitted:
        if curve["axis"] == axis and not curve["refused"]:
            laws[curve["column"], curve["line"]] = curve

    data: list[dict[str, Any]] = []
    for column in columns:
        for number, (label, rows) in enumerate(lines.items()):
            points = [row for row in rows if row[column] is not None]
            if not points:
                continue
            color = paint[column, label]
            name = ", ".join(part for part in (column.removeprefix("loss."), label) if part)
            law = laws.get((column, label))
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers" if law else "lines+markers",
                    "x": [_at(row[axis]) for row in points],
                    "y": [row[column] for row in points],
                    "error_y": error_bars([_interval(row, column) for row in points]),
                    "name": name if metric == "loss" else label,
                    "marker": {"color": color, "size": 9, "symbol": _symbol(number)},
                    "line": {"color": color},
                    "showlegend": metric == "loss" or len(lines) > 1,
                }
            )
            if law:
                data.append(_curve(law, color))
    if max((len(line["x"]) for line in data), default=0) < 2:
        return None

    layout = axes("", "nats a token")
    layout["xaxis"] |= _scale(table, axis)
    layout["margin"]["b"] = 30
    if metric not in ("loss", "base_loss"):
        layout["shapes"] = [horizontal_line(0)]
    entries = sum(line["showlegend"] for line in data)
    if metric == "loss":
        layout["legend"] = {"orientation": "v", "x": 1.02, "y": 1}
        layout["height"] = max(layout["height"], 60 + 20 * entries)
    else:
        layout["legend"] = {"orientation": "h", "y": -0.12}
        layout["height"] = 260 + 10 * entries
    return {
        "title": _METRICS[metric],
        "wide": metric == "loss",
        "data": data,
        "layout": layout,
    }


def _paint(
    table: Table,
    columns: Sequence[str],
    lines: Mapping[str, Any],
) -> dict[tuple[str, str], str]:
    """A colour for each line of a chart: of its arm where several are drawn."""
    if len(columns) == 1:
        return {(columns[0], label): PALETTE[i % len(PALETTE)][0] for i, label in enumerate(lines)}
    methods = {row["method"] for row in table}
    kinds = {}
    for column in columns:
        arm = column.removeprefix("loss.")
        kinds[column] = "method" if arm in methods else arm
    of_arm = colors(kinds)
    on_white = {name: light for name, (light, _) in palette().items()}
    return {(column, label): on_white[of_arm[column]] for column in columns for label in lines}


def _curve(law: Mapping[str, Any], color: str) -> dict[str, Any]:
    """A fitted curve over the values that were measured, and no further."""
    x = np.geomspace(law["from"], law["to"], 60)
    y = law["offset"] + law["factor"] * x ** -law["exponent"]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x.tolist(),
        "y": y.tolist(),
        "line": {"color": color, "dash": "dot", "width": 1.5},
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _map(table: Table, other: str) -> Chart | None:
    """The method minus an arm against d1's worth, a dot a run."""
    column = f"minus_{other}"
    points = []
    for number, row in enumerate(table, 1):
        if row[column] is not None and row["d1_worth"] is not None:
            points.append((number, row))
    if not points:
        return None

    rows = [row for _, row in points]
    shown = [row[f"{column}.p_adjusted"] <= LEVEL for row in rows]
    dots: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [row["d1_worth"] for row in rows],
        "y": [row[column] for row in rows],
        "error_x": error_bars([_interval(row, "d1_worth") for row in rows]),
        "error_y": error_bars([_interval(row, column) for row in rows]),
        "text": [str(number) for number, _ in points],
        "textposition": "top right",
        "hovertext": [row["point"] for row in rows],
        "marker": {
            "size": 11,
            "color": "#2563eb",
            "symbol": ["circle" if is_shown else "circle-open" for is_shown in shown],
        },
        "showlegend": False,
    }
    for bars in ("error_x", "error_y"):
        dots[bars] |= {"color": "#93c5fd", "thickness": 1.5}
    layout = axes("d1's worth, nats a token", f"the method minus {other}, nats a token")
    layout["height"] = 420
    layout["shapes"] = [vertical(0), horizontal_line(0)]
    return {"id": f"map-{other}", "data": [dots], "layout": layout}


def _interval(row: Mapping[str, Any], column: str) -> Interval:
    """A value with the ends of its interval; where none is known, they are the value."""
    value = row[column]
    if row.get(f"{column}.low") is not None:
        return Interval(value, row[f"{column}.low"], row[f"{column}.high"])
    width = _NORMAL * (row.get(f"{column}.error") or 0.0)
    return Interval(value, value - width, value + width)


def _is_numeric(rows: Table, axis: str) -> bool:
    return all(type(row[axis]) in (int, float) for row in rows)


def _scale(table: Table, axis: str) -> dict[str, Any]:
    """The kind of an axis, and where it has ticks: at what was measured, if that is not much."""
    rows = [row for row in table if row[axis] is not None]
    if not _is_numeric(rows, axis):
        return {"type": "category"}
    values = sorted({row[axis] for row in rows})
    kind = "log" if values[0] > 0 else "linear"
    if len(values) > _MOST_TICKS:
        return {"type": kind}
    return {"type": kind, "tickvals": values, "ticktext": [_brief(value) for value in values]}


def _brief(value: float) -> str:
    """A number in few characters: 400k, 1.5M, 0.0005."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _at(value: Any) -> Any:
    """A value as a place on an axis; what is no number is a name."""
    return value if type(value) in (int, float) else _shown(value)


def _symbol(number: int) -> str:
    return _SYMBOLS[number % len(_SYMBOLS)]


def _refusals(fitted: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why there is no curve, each reason once."""
    found: dict[str, list[str]] = {}
    for curve in fitted:
        if curve["refused"]:
            name = curve["column"].replace("base_loss", "base").removeprefix("loss.")
            line = ", ".join(part for part in (name, curve["line"]) if part)
            found.setdefault(f"{curve['axis']}: {curve['refused']}", []).append(line)
    return [f"{reason} ({'; '.join(lines)})" for reason, lines in found.items()]


def _cells(
    table: Table,
    varied: Sequence[str],
) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """The header and the cells of the table that is shown, each with what stands small beside it;
    columns that no run has are left out."""
    columns = {
        "train_tokens": "tokens trained on",
        "parameters": "parameters",
        "batch_tokens": "tokens a step",
        "pool_tokens": "pool, tokens",
        "contexts": "d1 at most",
        "tuned_tokens": "tokens tuned on",
        "seeds": "seeds",
        "ceiling": "ceiling",
        "copy_score": "copy score",
        "d1_worth": "d1's worth",
        "net_worth": "net worth",
        "base_loss": "base, validation",
        **{name: f"{name.removeprefix('loss.')}, test" for name in _losses(table)},
        "minus_repetition": "method minus repetition",
        "minus_self": "method minus self",
    }
    # what is varied has a column of its own already; runs that were collected are called by name
    used = {name: title for name, title in columns.items() if name not in varied}
    used = {name: t for name, t in used.items() if any(row[name] is not None for row in table)}
    named = {axis: _short(axis) for axis in varied} or {"point": "run"}
    if any(axis in columns for axis in varied):
        named = {"point": "run"} | {axis: columns[axis] for axis in varied}

    rows = []
    for number, row in enumerate(table, 1):
        cells = [(str(number), "")]
        cells += [(_shown(row[name]), "") for name in named]
        cells += [_cell(row, name) for name in used]
        rows.append(cells)
    return ["#", *named.values(), *used.values()], rows


def _cell(row: Mapping[str, Any], column: str) -> tuple[str, str]:
    value = row[column]
    if value is None:
        return "", ""
    if isinstance(value, int):
        return f"{value:,}", ""
    if column.startswith("minus_"):
        low, high, p = (row[f"{column}.{end}"] for end in ("low", "high", "p_adjusted"))
        return f"{value:+.4f}", f"{low:+.4f} to {high:+.4f}, p {p:.2g}"
    if row.get(f"{column}.error") is not None:
        return f"{value:+.4f}", f"± {row[f'{column}.error']:.4f}"
    if row.get(f"{column}.low") is not None:
        return f"{value:.4f}", f"{row[f'{column}.low']:.4f} to {row[f'{column}.high']:.4f}"
    return f"{value:.4f}", ""


def _short(setting: str) -> str:
    return setting.rpartition(".")[2]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:,}" if isinstance(value, int) else str(value)
