"""Figures as inline SVG: values with their intervals, a line each, and curves or dots over x and y.

A figure knows its title, how to read it, its picture and its numbers as a table. Colours are names
of the page's classes, so that a figure is dark where the page is; what a pointer rests on says its
value by `title`. Names come from the user: Markup's `format` escapes them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import chain

from markupsafe import Markup

_WIDTH = 480
_HEIGHT = 280
_LEFT = 56
_RIGHT = 14
_TOP = 26
_BOTTOM = 44
_NAME = 125  # how wide a column of names is, and one of values
_VALUE = 180
_NAME_HEIGHT = 16  # of a reference's name, and a little room below it
_RADIUS = 5  # of a dot
_LETTER = 8  # a little more than a letter of the page's font takes

_MOST_TICKS = 6
_DIGITS = ((1, 2, 5), (1, 3), (1,))  # of the ticks of a logarithmic scale, by how many fit

Legend = list[tuple[str, str, str]]
"""Name, colour and style of each."""

Table = tuple[list[str], list[list[str]]]
"""Headers and rows."""


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

        Nothing to show, and nothing but zeros, is shown from 0 to 1.
        """
        shown = list(filter(math.isfinite, values))
        if log:
            shown = [value for value in shown if value > 0]
        shown = shown or [0.1, 1.0]

        low = min(shown)
        high = max(shown)
        if low == high == 0:
            high = 1.0
        if log:
            low = math.log10(low)
            high = math.log10(high)
        # one value alone stands in the middle
        width = high - low or abs(high) or 1.0
        margin = 0.05 * width
        return Scale(
            low=low - margin,
            high=high + margin,
            start=start,
            end=end,
            log=log,
        )

    def __call__(self, value: float) -> float:
        """The pixel of a value; the nearest end for one beyond (an interval may have no end)."""
        if self.log:
            value = math.log10(value) if value > 0 else -math.inf
        inside = min(max(value, self.low), self.high)
        share = (inside - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Two to six round values within."""
        if self.log:
            return self._powers()
        rough = (self.high - self.low) / 5
        magnitude = math.floor(math.log10(rough))
        unit = 10.0**magnitude
        # the least round step that leaves five at most
        round_steps = (unit * factor for factor in (1, 2, 5, 10))
        step = next(size for size in round_steps if size >= rough)
        first = math.ceil(self.low / step)
        last = math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]

    def _powers(self) -> list[float]:
        """Ticks of a logarithmic scale: fewer digits of each power of ten the more powers."""
        first = math.floor(self.low)
        last = math.ceil(self.high)
        powers = [10.0**exponent for exponent in range(first, last + 1)]
        within = []
        for digits in _DIGITS:
            values = [digit * power for power in powers for digit in digits]
            within = list(filter(self._is_inside, values))
            if len(within) <= _MOST_TICKS:
                break
        if not within:  # between 6 and 9, say, there is no round one
            middle = (self.low + self.high) / 2
            return [10.0**middle]
        every = math.ceil(len(within) / _MOST_TICKS)
        return within[::every]

    def _is_inside(self, value: float) -> bool:
        return self.low <= math.log10(value) <= self.high


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
        ends = self.interval or ()
        return [self.value, *ends, *self.seeds]


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


class _Picture:
    """Shapes in the order in which they are drawn, later ones over earlier ones."""

    def __init__(self) -> None:
        self.shapes: list[Markup] = []

    def draw(self, template: str, *values: object) -> None:
        """A shape from its template, with the values escaped."""
        shape = Markup(template).format(*values)
        self.shapes.append(shape)

    def group(self, color: str, inner: _Picture) -> None:
        """What `inner` holds, in a colour."""
        own = Markup(' class="{}"').format(color) if color else ""
        self.draw("<g{}>{}</g>", own, inner.markup)

    def title(self, text: str) -> None:
        """What a pointer that rests on this picture's group shows."""
        self.draw("<title>{}</title>", text)

    def horizontal(self, y: float, left: float, right: float, kind: str) -> None:
        """A line from left to right."""
        self._line(kind, left, y, right, y)

    def vertical(self, x: float, top: float, bottom: float, kind: str) -> None:
        """A line from top to bottom."""
        self._line(kind, x, top, x, bottom)

    def _line(self, kind: str, *ends: float) -> None:
        template = '<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
        self.draw(template, kind, *ends)

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        """A circle around (x, y)."""
        template = '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>'
        self.draw(template, kind, x, y, radius)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str,
        kind: str = "",
    ) -> None:
        """Words that start, end or have their middle at x."""
        # no class of its own: what most texts are
        own = Markup(' class="{}"').format(kind) if kind else ""
        template = '<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>'
        self.draw(template, x, y, anchor, own, text)

    @property
    def markup(self) -> Markup:
        """All of it."""
        return Markup("").join(self.shapes)


@dataclass(frozen=True)
class Figure(ABC):
    """What every figure has; `id` is its place on the page."""

    id: str
    title: str
    read: str

    @abstractmethod
    def table(self) -> Table:
        """All numbers."""

    def legend(self) -> Legend:
        """What the picture does not name itself."""
        return []

    @abstractmethod
    def svg(self) -> Markup:
        """The picture."""

    def _framed(self, height: float, *pictures: _Picture) -> Markup:
        frame = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}. {}">{}</svg>')
        inside = Markup("").join(picture.markup for picture in pictures)
        return frame.format(
            _WIDTH,
            height,
            self.title,
            self.read,
            inside,
        )


@dataclass(frozen=True)
class Values(Figure):
    """A line for every value, by groups; an unnamed group has no heading.

    `bars` start at zero; `references` are lines through a group, such as what chance gives;
    `seeds` are those that marks have values of.
    """

    axis: str
    groups: Mapping[str, Sequence[Mark]]
    pattern: str = "+.4f"
    bars: bool = False
    references: Mapping[str, float] = field(default_factory=dict)
    seeds: Sequence[int] = ()

    def table(self) -> Table:
        """A row for every value."""
        headers = ["", self.axis, "low", "high"]
        headers += [f"seed {seed}" for seed in self.seeds]
        rows = []
        for group, marks in self.groups.items():
            for mark in marks:
                name = f"{group}: {mark.name}" if group else mark.name
                cells = [name, *self._cells(mark)]
                missing = len(headers) - len(cells)
                rows.append(cells + [""] * missing)
        return headers, rows

    def _cells(self, mark: Mark) -> Iterator[str]:
        ends = mark.interval or (None, None)
        for number in (mark.value, *ends, *mark.seeds):
            yield "" if number is None else format(number, self.pattern)

    def svg(self) -> Markup:
        """Name and value stand above each line, so that a narrow screen has room for both; beside
        it where groups make many of them."""
        grouped = any(self.groups)
        x = self._scale(grouped)
        row_height = 20 if grouped else 40
        below_text = 8 if grouped else 21
        picture = _Picture()
        y = 4.0
        for group, marks in self.groups.items():
            if group:
                picture.text(_RIGHT, y + 16, group, "start", "strong")
                y += 24
            top = y
            for mark in marks:
                drawn = self._mark(mark, x, y + 12, y + below_text)
                picture.group(mark.color, drawn)
                y += row_height
            if group in self.references:
                at = x(self.references[group])
                picture.vertical(at, top, y, "reference")

        # the lines of the scale lie behind, and are as long as all groups together
        behind = _Picture()
        is_percent = self.pattern.endswith("%")
        for tick in x.ticks():
            behind.vertical(x(tick), 0, y, "grid")
            label = short(tick, is_percent)
            picture.text(x(tick), y + 16, label, "middle")
        if self._has_zero:
            behind.vertical(x(0), 0, y, "reference")
        picture.text(_WIDTH / 2, y + 34, self.axis, "middle")
        return self._framed(y + 42, behind, picture)

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
            every_mark = chain.from_iterable(self.groups.values())
            longest = max((len(mark.name) for mark in every_mark), default=0)
            names = min(max(_NAME, _RIGHT + longest * _LETTER), _WIDTH - _VALUE - _NAME)
            return Scale.over(numbers, names, _WIDTH - _VALUE)
        return Scale.over(numbers, _RIGHT, _WIDTH - _RIGHT)

    def _mark(
        self,
        mark: Mark,
        x: Scale,
        text_y: float,
        y: float,
    ) -> _Picture:
        text = format(mark.value, self.pattern)
        if mark.interval:
            low, high = mark.interval
            text += f" ({low:{self.pattern}} to {high:{self.pattern}})"

        picture = _Picture()
        picture.title(f"{mark.name}: {text}")
        at = x(mark.value)
        if mark.interval:
            picture.horizontal(y, x(low), x(high), "interval")
        if self.bars:
            left, right = sorted((x(0), at))
            template = '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="10"/>'
            picture.draw(template, left, y - 5, right - left)
        else:
            picture.dot(at, y, _RADIUS, "value")
        for seed in mark.seeds:
            picture.dot(x(seed), y + 7, 3, "seed")
        picture.text(_RIGHT, text_y, mark.name, "start")
        picture.text(_WIDTH - _RIGHT, text_y, text, "end")
        return picture


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
    def _points(self) -> list[tuple[float, float]]:
        """Where a dot lies, by x and y."""

    @abstractmethod
    def _draw_contents(self, picture: _Picture, x: Scale, y: Scale) -> None:
        """What lies over the grid."""

    @property
    def x_scale(self) -> Scale:
        """Where an x stands."""
        xs, _ = self._numbers()
        right = _WIDTH - _RIGHT
        return Scale.over([*xs, *self.verticals.values()], _LEFT, right, self.x_log)

    @property
    def _y_scale(self) -> Scale:
        _, ys = self._numbers()
        # pixels count downwards
        bottom = _HEIGHT - _BOTTOM
        return Scale.over([*ys, *self.horizontals.values()], bottom, self._highest, self.y_log)

    @property
    def _highest(self) -> float:
        """The pixel that contents reach up to."""
        return _TOP

    def svg(self) -> Markup:
        """Grid and axes, lines of reference, and the contents."""
        x = self.x_scale
        y = self._y_scale
        picture = _Picture()
        self._draw_axes(picture, x, y)
        self._draw_references(picture, x, y)
        self._draw_contents(picture, x, y)
        return self._framed(_HEIGHT, picture)

    def _draw_axes(self, picture: _Picture, x: Scale, y: Scale) -> None:
        bottom = _HEIGHT - _BOTTOM
        for tick in y.ticks():
            at = y(tick)
            picture.horizontal(at, _LEFT, _WIDTH - _RIGHT, "grid")
            picture.text(_LEFT - 6, at + 4, short(tick), "end")
        for tick in self.ticks or x.ticks():
            picture.vertical(x(tick), _TOP, bottom, "grid")
        if self.ticks:
            self._draw_names(picture, x, bottom + 17)
        else:
            for tick in x.ticks():
                picture.text(x(tick), bottom + 17, short(tick), "middle")
        picture.text(0, 13, self.y, "start")
        picture.text(_WIDTH / 2, _HEIGHT - 6, self.x, "middle")

    def _draw_references(self, picture: _Picture, x: Scale, y: Scale) -> None:
        for name, value in self.horizontals.items():
            at = y(value)
            picture.horizontal(at, _LEFT, _WIDTH - _RIGHT, "reference")
            # the name stands where no dot hides it: at the left, unless that side alone has some
            width = 4 + len(name) * _LETTER
            is_hidden_left = self._hides(x.start, x.start + width, at, x, y)
            is_hidden_right = self._hides(x.end - width, x.end, at, x, y)
            if is_hidden_left and not is_hidden_right:
                picture.text(x.end - 4, at - 4, name, "end")
            else:
                picture.text(x.start + 4, at - 4, name, "start")
        for name, value in self.verticals.items():
            at = x(value)
            picture.vertical(at, _TOP, _HEIGHT - _BOTTOM, "reference")
            # the name stands on the side that has more room
            if at > _WIDTH / 2:
                picture.text(at - 4, _TOP + 10, name, "end")
            else:
                picture.text(at + 4, _TOP + 10, name, "start")

    def _hides(self, left: float, right: float, bottom: float, x: Scale, y: Scale) -> bool:
        """Whether a dot lies over words between these pixels, above `bottom`."""
        for across, down in ((x(at), y(value)) for at, value in self._points()):
            is_beside = left - _RADIUS < across < right + _RADIUS
            if is_beside and bottom - _NAME_HEIGHT - _RADIUS < down < bottom + _RADIUS:
                return True
        return False

    def _draw_names(self, picture: _Picture, x: Scale, y: float) -> None:
        """The names of places, cut to an equal share of the room; one that would lie on the name
        before it is left out."""
        letters = int((x.end - x.start) / len(self.ticks) / _LETTER)
        free = 0.0
        for value, name in sorted(self.ticks.items()):
            text = name if len(name) <= letters else f"{name[: max(letters - 1, 1)]}…"
            half = len(text) * _LETTER / 2
            middle = min(max(x(value), half), _WIDTH - half)
            if middle - half >= free:
                picture.text(middle, y, text, "middle")
                free = middle + half


@dataclass(frozen=True)
class Curves(Plane):
    """Curves over x; `laws` are lines that were computed from others, drawn dotted and no more."""

    lines: Sequence[Line]
    laws: Sequence[Line] = field(default=(), kw_only=True)

    def table(self) -> Table:
        """A row for every x, a column for every curve."""
        names = [line.name for line in self.lines]
        by_x: dict[float, list[str]] = {}
        for number, line in enumerate(self.lines):
            for x, y, *ends in line.points:
                cells = by_x.setdefault(x, [""] * len(names))
                # several runs may stand at one place
                cells[number] = "; ".join(filter(None, (cells[number], _with_ends(y, ends))))
        rows = []
        for x, cells in sorted(by_x.items()):
            rows.append([self.ticks.get(x) or _plain(x), *cells])
        return [self.x, *names], rows

    def legend(self) -> Legend:
        """Every curve, but one for all seeds of an arm."""
        entries = []
        for line in self.lines:
            arm = line.name.partition(", seed ")[0]
            entries.append((arm, line.color, line.style))
        return list(dict.fromkeys(entries))

    def _numbers(self) -> tuple[list[float], list[float]]:
        points = list(chain.from_iterable(line.points for line in [*self.lines, *self.laws]))
        return [point[0] for point in points], [y for point in points for y in point[1:]]

    def _points(self) -> list[tuple[float, float]]:
        return [(point[0], point[1]) for line in self.lines for point in line.points]

    def _draw_contents(self, picture: _Picture, x: Scale, y: Scale) -> None:
        for law in self.laws:
            dotted = _Picture()
            dotted.draw('<polyline class="dotted" points="{}"/>', _path(_pixels(law, x, y)))
            picture.group(law.color, dotted)
        for line in self.lines:
            picture.group(line.color, _curve(line, x, y))


@dataclass(frozen=True)
class Dots(Plane):
    """Dots of one colour with an interval each way."""

    color: str
    dots: Sequence[Dot]

    def table(self) -> Table:
        """A row for every dot."""
        rows = []
        for dot in self.dots:
            x, y = (_with_ends(value, ends) for value, *ends in (dot.x, dot.y))
            rows.append([f"{dot.label} {dot.name}", x, y])
        return ["", self.x, self.y], rows

    @property
    def _highest(self) -> float:
        # a dot hides what it lies over: the names of verticals stand above all of them
        return _TOP + _NAME_HEIGHT if self.verticals else _TOP

    def _numbers(self) -> tuple[list[float], list[float]]:
        return [x for dot in self.dots for x in dot.x], [y for dot in self.dots for y in dot.y]

    def _points(self) -> list[tuple[float, float]]:
        return [(dot.x[0], dot.y[0]) for dot in self.dots]

    def _draw_contents(self, picture: _Picture, x: Scale, y: Scale) -> None:
        behind = _Picture()
        dots = _Picture()
        for dot in self.dots:
            (at_x, left, right), (at_y, low, high) = dot.x, dot.y
            across, down = x(at_x), y(at_y)
            behind.horizontal(down, x(left), x(right), "thin")
            behind.vertical(across, y(low), y(high), "thin")
            behind.text(across + 7, down - 7, dot.label, "start")

            of_dot = _Picture()
            of_x, of_y = (_with_ends(value, ends) for value, *ends in (dot.x, dot.y))
            of_dot.title(f"{dot.name}: {of_x}; {of_y}")
            of_dot.dot(across, down, _RADIUS, "value" if dot.is_filled else "open")
            dots.group("", of_dot)
        # nothing lies over a dot
        picture.group(self.color, behind)
        picture.group(self.color, dots)


def short(value: float, percent: bool = False) -> str:
    """A round value in few characters: 0.05, 12k, 3M, 1e+18."""
    if percent:
        return f"{100 * value:.4g}%"
    units = {"B": 1e9, "M": 1e6, "k": 1e3}
    for unit, size in units.items():
        if size <= abs(value) < 1e12:
            return f"{value / size:g}{unit}"
    # what is left of a sum such as 3 * 0.1
    return f"{value:.6g}"


def _plain(value: float) -> str:
    if 1e3 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _with_ends(value: float, ends: Sequence[float]) -> str:
    text = _plain(value)
    if ends:
        low, high = map(_plain, ends)
        text += f" ({low} to {high})"
    return text


def _pixels(line: Line, x: Scale, y: Scale) -> list[tuple[float, float]]:
    return [(x(point[0]), y(point[1])) for point in line.points]


def _path(pixels: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{across:.1f},{down:.1f}" for across, down in pixels)


def _curve(line: Line, x: Scale, y: Scale) -> _Picture:
    pixels = _pixels(line, x, y)
    path = _path(pixels)
    picture = _Picture()
    if line.style == "area":
        base = y(0)
        first = f"{pixels[0][0]:.1f},{base:.1f}"
        last = f"{pixels[-1][0]:.1f},{base:.1f}"
        picture.draw('<polygon points="{} {} {}"/>', first, path, last)
    if line.style != "points":
        picture.draw('<polyline class="{}" points="{}"/>', line.style, path)

    for point, (across, down) in zip(line.points, pixels, strict=True):
        at, value, *ends = point
        if ends:
            picture.vertical(across, y(ends[0]), y(ends[1]), "interval")
        is_shown = line.style in ("points", "marked") or bool(ends)
        kind = "value" if is_shown else "hidden"

        # in a group of its own, so that what a pointer rests on says its value
        of_point = _Picture()
        shown = _with_ends(value, ends)
        of_point.title(f"{line.name} at {_plain(at)}: {shown}")
        of_point.dot(across, down, _RADIUS, kind)
        picture.group("", of_point)
    return picture
