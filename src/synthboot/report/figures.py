"""Figures as inline SVG: values with their intervals, a line each, and curves or dots over x and y.

A figure knows its title, how to read it, its picture and its numbers as a table. Colours are names
of the page's classes, so that a figure is dark where the page is; what a pointer rests on says its
value by `title`. Names come from the user: Markup's `format` escapes them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

from markupsafe import Markup

_WIDTH = 480
_HEIGHT = 280
_LEFT = 56
_RIGHT = 14
_TOP = 26
_BOTTOM = 44
_NAME = 125  # how wide a column of names is, and one of values
_VALUE = 180
_LETTER = 8  # a little more than a letter of the page's font takes


@dataclass(frozen=True)
class Scale:
    """From values to pixels; `log` by orders of magnitude."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @staticmethod
    def over(values: Iterable[float], start: float, end: float, log: bool = False) -> Scale:
        """The scale that has all finite values within, with a margin; logarithmic ones above zero.

        Nothing to show is shown from 0 to 1.
        """
        shown = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [0.1, 1.0]
        low, high = min(shown), max(shown)
        if log:
            low, high = math.log10(low), math.log10(high)
        # one value alone stands in the middle
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
        return Scale(low - margin, high + margin, start, end, log)

    def __call__(self, value: float) -> float:
        """The pixel of a value; the nearest end for one beyond (an interval may have no end)."""
        if self.log:
            value = math.log10(value) if value > 0 else -math.inf
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Two to six round values within."""
        if self.log:
            return self._powers()
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]

    def _powers(self) -> list[float]:
        exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
        within = []
        for digits in ((1, 2, 5), (1, 3), (1,)):
            values = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            within = [value for value in values if self.low <= math.log10(value) <= self.high]
            if len(within) <= 6:
                break
        if not within:  # between 6 and 9, say, there is no round one
            return [10.0 ** ((self.low + self.high) / 2)]
        return within[:: math.ceil(len(within) / 6)]


@dataclass(frozen=True)
class Mark:
    """A named value, its interval where there is one, and what each seed gave."""

    name: str
    color: str
    value: float
    interval: tuple[float, float] | None = None
    seeds: Sequence[float] = ()

    @property
    def numbers(self) -> list[float]:
        """All that has to be within the picture."""
        return [self.value, *(self.interval or ()), *self.seeds]


@dataclass(frozen=True)
class Line:
    """Points (x, y) or (x, y, low, high), least x first.

    `style`: a line that is solid or dotted or marked at its points, an area, or points alone.
    """

    name: str
    color: str
    points: Sequence[Sequence[float]]
    style: str = "solid"


@dataclass(frozen=True)
class Dot:
    """Something at x and y, each [value, low, high], with a short `label` beside it; open dots are
    those that one should not rest on."""

    name: str
    label: str
    x: Sequence[float]
    y: Sequence[float]
    is_filled: bool


@dataclass(frozen=True)
class Figure(ABC):
    """What every figure has; `id` is its place on the page."""

    id: str
    title: str
    read: str

    @abstractmethod
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and rows of all numbers."""

    def legend(self) -> list[tuple[str, str, str]]:
        """Name, colour and style of what the picture does not name itself."""
        return []

    @abstractmethod
    def svg(self) -> Markup:
        """The picture."""

    def _framed(self, height: float, parts: Iterable[Markup]) -> Markup:
        picture = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}. {}">{}</svg>')
        return picture.format(_WIDTH, height, self.title, self.read, _joined(parts))


@dataclass(frozen=True)
class Values(Figure):
    """A line for every value, by groups; an unnamed group has no heading.

    `bars` start at zero; `references` are lines through a group, such as what chance gives.
    """

    axis: str
    groups: Mapping[str, Sequence[Mark]]
    pattern: str = "+.4f"
    bars: bool = False
    references: Mapping[str, float] = field(default_factory=dict)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row for every value."""
        marks = [(group, mark) for group, of_group in self.groups.items() for mark in of_group]
        seeds = max((len(mark.seeds) for _, mark in marks), default=0)
        rows = []
        for group, mark in marks:
            numbers = [mark.value, *(mark.interval or (None, None)), *mark.seeds]
            cells = ["" if n is None else format(n, self.pattern) for n in numbers]
            name = f"{group}: {mark.name}" if group else mark.name
            rows.append([name, *cells, *[""] * (seeds - len(mark.seeds))])
        return ["", self.axis, "low", "high", *(f"seed {n + 1}" for n in range(seeds))], rows

    def svg(self) -> Markup:
        """Name and value stand above each line, so that a narrow screen has room for both; beside
        it where groups make many of them."""
        grouped = any(self.groups)
        x = self._scale(grouped)
        parts = []
        y = 4.0
        for group, marks in self.groups.items():
            if group:
                parts.append(_text(_RIGHT, y + 16, group, "start", "strong"))
                y += 24
            top = y
            for mark in marks:
                below_text = y + 8 if grouped else y + 21
                parts.append(self._mark(mark, x, y + 12, below_text))
                y += 20 if grouped else 40
            if group in self.references:
                parts.append(_vertical(x(self.references[group]), top, y, "reference"))

        behind = [_vertical(x(tick), 0, y, "grid") for tick in x.ticks()]
        if self._has_zero:
            behind.append(_vertical(x(0), 0, y, "reference"))
        percent = self.pattern.endswith("%")
        for tick in x.ticks():
            parts.append(_text(x(tick), y + 16, short(tick, percent), "middle"))
        parts.append(_text(_WIDTH / 2, y + 34, self.axis, "middle"))
        return self._framed(y + 42, [*behind, *parts])

    @property
    def _has_zero(self) -> bool:
        return self.bars or self.pattern.startswith("+")

    def _scale(self, grouped: bool) -> Scale:
        numbers = list(self.references.values())
        for marks in self.groups.values():
            for mark in marks:
                numbers += mark.numbers
        if self._has_zero:
            numbers.append(0.0)
        if grouped:
            return Scale.over(numbers, _NAME, _WIDTH - _VALUE)
        return Scale.over(numbers, _RIGHT, _WIDTH - _RIGHT)

    def _mark(self, mark: Mark, x: Scale, of_text: float, y: float) -> Markup:
        text = format(mark.value, self.pattern)
        parts = []
        if mark.interval:
            low, high = mark.interval
            text += f" ({low:{self.pattern}} to {high:{self.pattern}})"
            parts.append(_horizontal(y, x(low), x(high), "interval"))
        if self.bars:
            left, right = sorted((x(0), x(mark.value)))
            bar = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="10"/>')
            parts.append(bar.format(left, y - 5, right - left))
        else:
            parts.append(_dot(x(mark.value), y, 5, "value"))
        parts += [_dot(x(seed), y + 7, 3, "seed") for seed in mark.seeds]
        parts.append(_text(_RIGHT, of_text, mark.name, "start"))
        parts.append(_text(_WIDTH - _RIGHT, of_text, text, "end"))
        title = Markup("<title>{}: {}</title>").format(mark.name, text)
        return _group(mark.color, [title, *parts])


@dataclass(frozen=True)
class Plane(Figure):
    """What lies over x and y, with lines of reference across, each with its name.

    `ticks` are names for places on x, in place of round values.
    """

    x: str
    y: str
    _: KW_ONLY
    x_log: bool = False
    y_log: bool = False
    verticals: Mapping[str, float] = field(default_factory=dict)
    horizontals: Mapping[str, float] = field(default_factory=dict)
    ticks: Mapping[float, str] = field(default_factory=dict)

    @abstractmethod
    def _numbers(self) -> tuple[list[float], list[float]]:
        """Every x and every y that has to be within the picture."""

    @abstractmethod
    def _contents(self, x: Scale, y: Scale) -> list[Markup]:
        """What is drawn over the grid."""

    @property
    def x_scale(self) -> Scale:
        """Where an x stands."""
        xs, _ = self._numbers()
        return Scale.over([*xs, *self.verticals.values()], _LEFT, _WIDTH - _RIGHT, self.x_log)

    def svg(self) -> Markup:
        """Grid and axes, lines of reference, and the contents."""
        bottom = _HEIGHT - _BOTTOM
        _, ys = self._numbers()
        x = self.x_scale
        y = Scale.over([*ys, *self.horizontals.values()], bottom, _TOP, self.y_log)

        right = _WIDTH - _RIGHT
        parts = []
        for tick in y.ticks():
            parts.append(_horizontal(y(tick), _LEFT, right, "grid"))
            parts.append(_text(_LEFT - 6, y(tick) + 4, short(tick), "end"))
        for tick in self.ticks or x.ticks():
            parts.append(_vertical(x(tick), _TOP, bottom, "grid"))
        if self.ticks:
            parts += self._named(x, bottom + 17)
        else:
            parts += [_text(x(tick), bottom + 17, short(tick), "middle") for tick in x.ticks()]
        parts.append(_text(0, 13, self.y, "start"))
        parts.append(_text(_WIDTH / 2, _HEIGHT - 6, self.x, "middle"))

        for name, value in self.horizontals.items():
            parts.append(_horizontal(y(value), _LEFT, right, "reference"))
            parts.append(_text(_LEFT + 4, y(value) - 4, name, "start"))
        for name, value in self.verticals.items():
            at = x(value)
            parts.append(_vertical(at, _TOP, bottom, "reference"))
            # inside the picture on either side
            if at > _WIDTH / 2:
                parts.append(_text(at - 4, _TOP + 10, name, "end"))
            else:
                parts.append(_text(at + 4, _TOP + 10, name, "start"))
        return self._framed(_HEIGHT, [*parts, *self._contents(x, y)])

    def _named(self, x: Scale, y: float) -> list[Markup]:
        """The names of places, cut to an equal share of the room; one that would lie on the name
        before it is left out."""
        letters = int((x.end - x.start) / len(self.ticks) / _LETTER)
        parts = []
        free = 0.0
        for value, name in sorted(self.ticks.items()):
            text = name if len(name) <= letters else f"{name[: max(letters - 1, 1)]}…"
            half = len(text) * _LETTER / 2
            middle = min(max(x(value), half), _WIDTH - half)
            if middle - half >= free:
                parts.append(_text(middle, y, text, "middle"))
                free = middle + half
        return parts


@dataclass(frozen=True)
class Curves(Plane):
    """Curves over x; `laws` are lines that were computed from others, drawn dotted and no more."""

    lines: Sequence[Line]
    laws: Sequence[Line] = field(default=(), kw_only=True)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row for every x, a column for every curve."""
        by_x: dict[float, list[str]] = {}
        for number, line in enumerate(self.lines):
            for x, y, *ends in line.points:
                cells = by_x.setdefault(x, [""] * len(self.lines))
                cells[number] = _with_ends(y, ends)
        rows = [[self.ticks.get(x) or _plain(x), *by_x[x]] for x in sorted(by_x)]
        return [self.x, *(line.name for line in self.lines)], rows

    def legend(self) -> list[tuple[str, str, str]]:
        """Every curve, but one for all seeds of an arm."""
        return list(dict.fromkeys((_arm(line.name), line.color, line.style) for line in self.lines))

    def _numbers(self) -> tuple[list[float], list[float]]:
        points = [point for line in [*self.lines, *self.laws] for point in line.points]
        return [point[0] for point in points], [y for point in points for y in point[1:]]

    def _contents(self, x: Scale, y: Scale) -> list[Markup]:
        laws = []
        for law in self.laws:
            path = _path((x(point[0]), y(point[1])) for point in law.points)
            line = Markup('<polyline class="dotted" points="{}"/>').format(path)
            laws.append(_group(law.color, [line]))
        return [*laws, *(_curve(line, x, y) for line in self.lines)]


@dataclass(frozen=True)
class Dots(Plane):
    """Dots of one colour with an interval each way."""

    color: str
    dots: Sequence[Dot]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """A row for every dot."""
        rows = []
        for dot in self.dots:
            x, y = (_with_ends(value, ends) for value, *ends in (dot.x, dot.y))
            rows.append([f"{dot.label} {dot.name}", x, y])
        return ["", self.x, self.y], rows

    def _numbers(self) -> tuple[list[float], list[float]]:
        return [x for dot in self.dots for x in dot.x], [y for dot in self.dots for y in dot.y]

    def _contents(self, x: Scale, y: Scale) -> list[Markup]:
        intervals = []
        labels = []
        dots = []
        for dot in self.dots:
            (at_x, left, right), (at_y, low, high) = dot.x, dot.y
            across, down = x(at_x), y(at_y)
            intervals.append(_horizontal(down, x(left), x(right), "thin"))
            intervals.append(_vertical(across, y(low), y(high), "thin"))
            labels.append(_text(across + 7, down - 7, dot.label, "start"))

            of_x, of_y = (_with_ends(value, ends) for value, *ends in (dot.x, dot.y))
            said = Markup("<title>{}: {}; {}</title>").format(dot.name, of_x, of_y)
            picture = _dot(across, down, 5, "value" if dot.is_filled else "open")
            dots.append(_group("", [said, picture]))
        # nothing lies over a dot
        return [_group(self.color, [*intervals, *labels, *dots])]


def short(value: float, percent: bool = False) -> str:
    """A round value in few characters: 0.05, 12k, 3M, 1e+18."""
    if percent:
        return f"{value:.0%}"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= abs(value) < 1e12:
            return f"{value / size:g}{unit}"
    # what is left of a sum such as 3 * 0.1
    return f"{value:.6g}"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def _with_ends(value: float, ends: Sequence[float]) -> str:
    interval = f" ({_plain(ends[0])} to {_plain(ends[1])})" if ends else ""
    return _plain(value) + interval


def _arm(name: str) -> str:
    return name.partition(", seed ")[0]


def _curve(line: Line, x: Scale, y: Scale) -> Markup:
    pixels = [(x(point[0]), y(point[1])) for point in line.points]
    path = _path(pixels)
    parts = []
    if line.style == "area":
        first = f"{pixels[0][0]:.1f},{y(0):.1f}"
        last = f"{pixels[-1][0]:.1f},{y(0):.1f}"
        parts.append(Markup('<polygon points="{} {} {}"/>').format(first, path, last))
    if line.style != "points":
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(line.style, path))

    for (across, down), point in zip(pixels, line.points, strict=True):
        at, value, *ends = point
        title = Markup("<title>{} at {}: {}</title>")
        of_point = [title.format(line.name, _plain(at), _with_ends(value, ends))]
        if ends:
            parts.append(_vertical(across, y(ends[0]), y(ends[1]), "interval"))
        is_shown = line.style in ("points", "marked") or bool(ends)
        of_point.append(_dot(across, down, 5, "value" if is_shown else "hidden"))
        parts.append(_group("", of_point))
    return _group(line.color, parts)


def _path(pixels: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in pixels)


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _group(color: str, parts: Iterable[Markup]) -> Markup:
    own = Markup(' class="{}"').format(color) if color else ""
    return Markup("<g{}>{}</g>").format(own, _joined(parts))


def _horizontal(y: float, left: float, right: float, kind: str) -> Markup:
    return _line(kind, left, y, right, y)


def _vertical(x: float, top: float, bottom: float, kind: str) -> Markup:
    return _line(kind, x, top, x, bottom)


def _line(kind: str, *ends: float) -> Markup:
    picture = '<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
    return Markup(picture).format(kind, *ends)


def _dot(x: float, y: float, radius: float, kind: str) -> Markup:
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(kind, x, y, radius)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    # no class of its own: what most texts are
    own = Markup(' class="{}"').format(kind) if kind else ""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>').format(
        x, y, anchor, own, text
    )
