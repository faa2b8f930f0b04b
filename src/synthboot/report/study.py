"""The page of a study: its metrics over what is varied, fitted curves, the map of what sbp buys
against what d1 is worth, and the table of all runs.

A row is a mapping with the columns of `studies.rows.Row.flat`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from synthboot import scaling
from synthboot.report.charts import PALETTE, colors
from synthboot.report.figures import Curves, Dot, Dots, Line, short
from synthboot.report.page import rendered

Table = Sequence[Mapping[str, Any]]

_FITTED = (
    "budget.unique_tokens",
    "budget.train_tokens",
    "pool_tokens",
    "train_tokens",
    "parameters",
)
_MOST_TICKS = 8


class _Metric(NamedTuple):
    """A column that is drawn: its title, how to read it, and what zero means, if anything."""

    title: str
    read: str
    zero: str = ""


_METRICS = {
    "d1_worth": _Metric(
        "d1's worth",
        "What the synthesizer saves a token of d2 by reading d1. Higher is better.",
        "d1 is not read",
    ),
    "net_worth": _Metric(
        "Net worth",
        "Base without d1 minus the synthesizer given d1. Higher is better.",
        "no better than base",
    ),
    "minus_repetition": _Metric(
        "The method minus repetition",
        "Below zero the method is better.",
        "as good as repetition",
    ),
    "minus_self": _Metric(
        "The method minus self",
        "Below zero text from related documents is better than text from none, whose writer may "
        "have been trained less.",
        "as good as self",
    ),
    "base_loss": _Metric("Base", "The least validation loss of base. Lower is better."),
}


class _Series(NamedTuple):
    """A line of a figure: what of which runs, and how it is shown."""

    column: str
    label: str
    name: str
    color: str


@dataclass(frozen=True)
class FittedCurve:
    """A column's power law over an axis, for the runs of one line: measured from `low` to `high`.
    Where there is none, `refused` says why."""

    axis: str
    column: str
    line: str
    points: int
    low: float
    high: float
    law: scaling.PowerLaw | None = None
    refused: str = ""

    def drawn(self) -> list[tuple[float, float]]:
        """Its points over the values that were measured, and no further."""
        if self.law is None:
            return []
        x = np.geomspace(self.low, self.high, 60)
        return list(zip(x.tolist(), self.law.at(x).tolist(), strict=True))

    def as_json(self) -> dict[str, object]:
        """It as `study.json` has it."""
        plain: dict[str, object] = {
            "axis": self.axis,
            "column": self.column,
            "line": self.line,
            "points": self.points,
            "refused": self.refused,
        }
        if self.law is not None:
            plain |= {"from": self.low, "to": self.high, **asdict(self.law)}
        return plain


def curves(table: Table, varied: Sequence[str]) -> list[FittedCurve]:
    """Power laws of the losses over tokens and parameters, as far as there are two points."""
    found = []
    for axis in _axes(table, varied):
        if axis not in _FITTED:
            continue
        for column in ["base_loss", *_losses(table)]:
            for label, rows in _lines(table, varied, axis).items():
                # `all` is a size that no law has a place for
                numbers = [row for row in rows if _is_numeric([row], axis)]
                points = [row for row in numbers if row[column] is not None]
                if len(points) < 2:
                    continue
                x = [row[axis] for row in points]
                curve = FittedCurve(
                    axis=axis,
                    column=column,
                    line=label,
                    points=len(points),
                    low=min(x),
                    high=max(x),
                )
                try:
                    law = scaling.fit(x, [row[column] for row in points])
                except ValueError as reason:
                    found.append(replace(curve, refused=str(reason)))
                else:
                    found.append(replace(curve, law=law))
    return found


def study(
    name: str,
    varied: Sequence[str],
    table: Table,
    fitted: Sequence[FittedCurve],
) -> str:
    """The page; `fitted` is what `curves` found."""
    header, cells = _cells(table, varied)
    return rendered(
        "study.html.j2",
        title=f"synthboot study: {name}",
        name=name,
        sentence=sentence(table),
        test_sets=list(test_sets(table)),
        confidence=_confidence(table),
        maps=maps(table),
        sections=sections(table, varied, fitted),
        fitted=[curve for curve in fitted if curve.law],
        refused=_refusals(fitted),
        header=header,
        cells=cells,
        notes=[row for row in table if row["note"]],
    )


def maps(table: Table) -> list[Dots]:
    """The method minus self and minus repetition against d1's worth, as far as they are known."""
    return [found for found in (_map(table, kind) for kind in ("self", "repetition")) if found]


def sections(
    table: Table,
    varied: Sequence[str],
    fitted: Sequence[FittedCurve],
) -> dict[str, list[Curves]]:
    """Figures by what they are drawn over: each metric, a line for each value of what else is
    varied, and the arms' losses, a figure for each."""
    found: dict[str, list[Curves]] = {}
    of_arm = _arm_colors(table)
    for number, axis in enumerate(_axes(table, varied)):
        lines = _lines(table, varied, axis)
        paint = {label: f"other-{i % len(PALETTE)}" for i, label in enumerate(lines)}
        drawn: list[Curves | None] = []
        # parameters say no more than the setting does, but for the curves that are fitted
        for column in ["base_loss"] if axis == "parameters" else _METRICS:
            metric = _METRICS[column]
            series = [_Series(column, k, k or metric.title, paint[k]) for k in lines]
            drawn.append(_over(table, axis, f"{number}-{column}", metric, series, lines, fitted))
        for i, label in enumerate(lines):
            title = f"Test loss, {label}" if label else "Test loss"
            metric = _Metric(title, "Of every arm. Lower is better.")
            series = [_Series(loss, label, _arm(loss), color) for loss, color in of_arm.items()]
            drawn.append(_over(table, axis, f"{number}-loss-{i}", metric, series, lines, fitted))
        if any(drawn):
            found[axis] = [figure for figure in drawn if figure is not None]
    return found


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
        shown = [row for row in below if _is_shown(row, f"minus_{other}")]
        parts.append(
            f"the method below {other} in {len(below)} of {len(rows)}, {len(shown)} of them shown"
        )
    return "; ".join(parts) + "."


def test_sets(table: Table) -> dict[str, list[Mapping[str, Any]]]:
    """The rows by the documents that their losses are of, each called after the first run that has
    them; all under no name where they are the same."""
    first: dict[str, str] = {}
    for row in table:
        if row["test_set"] is not None:
            first.setdefault(row["test_set"], f"test set of {row['point']}")
    if len(first) < 2:
        return {"": list(table)}

    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in first.values()}
    for row in table:
        if row["test_set"] is not None:  # a run without a corpus has no losses either
            found[first[row["test_set"]]].append(row)
    return found


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
    """The rows by the documents that their losses are of and the values of what else is varied,
    each sorted along the axis."""
    lines = {}
    for of_text, rows in test_sets(table).items():
        for label, line in _lines_of_one_text(rows, varied, axis).items():
            lines[", ".join(part for part in (of_text, label) if part)] = line
    return lines


def _lines_of_one_text(
    table: Table,
    varied: Sequence[str],
    axis: str,
) -> dict[str, list[Mapping[str, Any]]]:
    """The rows by the values of what else is varied, each sorted along the axis."""

    def varies_along(other: str) -> bool:
        return other == axis or (axis == "parameters" and other.startswith("model."))

    others = [other for other in varied if not varies_along(other)]
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in _placed(table, axis):
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
    axis: str,
    id: str,
    metric: _Metric,
    series: Sequence[_Series],
    lines: Mapping[str, Table],
    fitted: Sequence[FittedCurve],
) -> Curves | None:
    """A figure of `series` of the runs in `lines`; None where each has less than two."""
    places = _places(table, axis)
    laws = {}
    for curve in fitted:
        if curve.axis == axis and curve.law:
            laws[curve.column, curve.line] = curve

    drawn = []
    curves = []
    for column, label, name, color in series:
        points = []
        for row in lines[label]:
            if row[column] is not None:
                points.append((places[_shown(row[axis])], *_with_ends(row, column)))
        law = laws.get((column, label))
        if law:
            curves.append(Line(name, color, law.drawn()))
        if points:
            drawn.append(Line(name, color, sorted(points), "points" if law else "marked"))
    if max((len(line.points) for line in drawn), default=0) < 2:
        return None

    is_numeric = _is_numeric(table, axis)
    names = {place: short(place) if is_numeric else name for name, place in places.items()}
    return Curves(
        id=f"over-{id}",
        title=metric.title,
        read=metric.read + (" Dotted: the fitted curve." if curves else ""),
        x=axis,
        y="nats a token",
        lines=drawn,
        laws=curves,
        x_log=is_numeric and min(places.values()) > 0,
        horizontals={metric.zero: 0.0} if metric.zero else {},
        ticks={} if is_numeric and len(names) > _MOST_TICKS else names,
    )


def _arm(column: str) -> str:
    return column.removeprefix("loss.")


def _arm_colors(table: Table) -> dict[str, str]:
    """The name of a colour for every arm's loss, of the method's in every figure the same."""
    methods = {row["method"] for row in table}
    kinds = {}
    for column in _losses(table):
        kinds[column] = "method" if _arm(column) in methods else _arm(column)
    return colors(kinds)


def _map(table: Table, other: str) -> Dots | None:
    """The method minus an arm against d1's worth, a dot a run."""
    column = f"minus_{other}"
    dots = []
    for number, row in enumerate(table, 1):
        if row[column] is not None and row["d1_worth"] is not None:
            x = _with_ends(row, "d1_worth")
            is_shown = _is_shown(row, column)
            dots.append(Dot(row["point"], str(number), x, _with_ends(row, column), is_shown))
    if not dots:
        return None
    return Dots(
        id=f"map-{other}",
        title=f"The method minus {other}, by what d1 is worth",
        read=(
            "A dot a run, with its number in the table; open ones are differences that are not "
            "shown. Further right more of d1 is read, below zero the method is better: if reading "
            "is what helps, dots fall to the right."
        ),
        x="d1's worth, nats a token",
        y=f"the method minus {other}, nats a token",
        color="method",
        dots=dots,
        verticals={"d1 is not read": 0.0},
        horizontals={f"as good as {other}": 0.0},
    )


def _is_shown(row: Mapping[str, Any], column: str) -> bool:
    """Whether a difference counts as shown, at the run's own confidence."""
    return bool(row[f"{column}.p_adjusted"] <= 1 - row["confidence"])


def _confidence(table: Table) -> str:
    """The confidence of the intervals, and where runs differ in it which ones have which."""
    runs: dict[float, list[str]] = {}
    for number, row in enumerate(table, 1):
        runs.setdefault(row["confidence"], []).append(str(number))
    if len(runs) == 1:
        return f"{100 * table[0]['confidence']:g} %"
    return " and ".join(f"{100 * c:g} % (of {', '.join(runs[c])})" for c in sorted(runs))


def _with_ends(row: Mapping[str, Any], column: str) -> tuple[float, ...]:
    """A value with the ends of its interval, where there is one."""
    value = row[column]
    if row.get(f"{column}.low") is not None:
        return value, row[f"{column}.low"], row[f"{column}.high"]
    if row.get(f"{column}.error") is not None:
        ends = NormalDist().inv_cdf((1 + row["confidence"]) / 2)  # in standard errors
        width = ends * row[f"{column}.error"]
        return value, value - width, value + width
    return (value,)


def _placed(table: Table, axis: str) -> list[Mapping[str, Any]]:
    """The rows with a place on an axis: a setting may be null, and a column is what is not known
    yet."""
    return [row for row in table if row[axis] is not None or "." in axis]


def _is_numeric(rows: Table, axis: str) -> bool:
    return all(type(row[axis]) in (int, float) for row in _placed(rows, axis))


def _places(table: Table, axis: str) -> dict[str, float]:
    """Where each value stands, by how it is shown: numbers at themselves, names in a row."""
    values = {_shown(row[axis]): row[axis] for row in _placed(table, axis)}
    if _is_numeric(table, axis):
        return {name: float(value) for name, value in values.items()}
    return {name: float(place) for place, name in enumerate(values)}


def _refusals(fitted: Sequence[FittedCurve]) -> list[str]:
    """Why there is no curve, each reason once."""
    found: dict[str, list[str]] = {}
    for curve in fitted:
        if curve.refused:
            name = curve.column.replace("base_loss", "base").removeprefix("loss.")
            line = ", ".join(part for part in (name, curve.line) if part)
            found.setdefault(f"{curve.axis}: {curve.refused}", []).append(line)
    return [f"{reason} ({'; '.join(lines)})" for reason, lines in found.items()]


def _cells(
    table: Table,
    varied: Sequence[str],
) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """The header and the cells of the table that is shown, each with what stands small beside it;
    columns that no run has are left out."""
    columns = {
        "test_set": "test set",
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
        "late_gain": "its last tenth saved",
        **{name: f"{name.removeprefix('loss.')}, test" for name in _losses(table)},
        "minus_repetition": "method minus repetition",
        "minus_self": "method minus self",
    }
    # what is varied has a column of its own already; runs that were collected are called by name
    used = {name: title for name, title in columns.items() if name not in varied}
    used = {name: t for name, t in used.items() if any(row[name] is not None for row in table)}
    if len(test_sets(table)) < 2:
        used.pop("test_set", None)  # the same in all
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
    if isinstance(value, str):
        return value, ""
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
