"""Figures: where values stand, what their tables hold, and that names are text."""

import math
import re

import pytest

from synthboot.report.figures import Curves, Dot, Dots, Line, Mark, Scale, Values, short


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 1, False), (-0.0565, 0.0389, False), (3.2, 3.9, False), (5e17, 4e19, True), (800, 900, True)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float, log: bool) -> None:
    scale = Scale.over([low, high], 0, 100, log)
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 6
    places = [scale(tick) for tick in ticks]
    assert places == sorted(places)
    assert places[0] >= -1e-6
    assert places[-1] <= 100 + 1e-6
    assert all(len(short(tick)) <= 8 for tick in ticks)


def test_values_keep_their_order_and_distances() -> None:
    linear = Scale.over([0, 10], 0, 110)
    assert linear(5) == pytest.approx(55)
    assert linear(10) - linear(5) == pytest.approx(linear(5) - linear(0))
    log = Scale.over([1, 100], 0, 110, log=True)
    assert log(10) == pytest.approx(55)
    assert log(0) == 0  # what has no logarithm stands at the end
    assert linear(math.inf) == 110
    assert Scale.over([], 0, 100)(0.5) > 0
    assert min(Scale.over([0.0, 0.0], 0, 100).ticks()) == 0  # not as many below it as above
    assert Scale.over([3.0, 3.0], 0, 100)(3.0) == pytest.approx(50)


@pytest.mark.parametrize(
    ("value", "said"), [(0.30000000000000004, "0.3"), (12_000, "12k"), (2_500_000, "2.5M"), (-0.05, "-0.05"), (1e18, "1e+18")]
)
def test_round_values_are_short(value: float, said: str) -> None:
    assert short(value) == said


def test_shares_on_an_axis_are_told_apart() -> None:
    assert short(0.25, percent=True) == "25%"
    ticks = Scale.over([0.0, 0.021], 0, 100).ticks()
    labels = [short(tick, percent=True) for tick in ticks]
    assert labels == ["0%", "0.5%", "1%", "1.5%", "2%"]


def test_all_numbers_of_values_are_in_the_table() -> None:
    marks = [Mark("ours", "method", -0.5, (-0.75, -0.25), [-0.4, -0.6]), Mark("self", "other-0", 0.125)]
    figure = Values("x", "X", "How.", "nats", {"": marks}, "+.3f", seeds=[3, 0])
    headers, rows = figure.table()
    assert headers == ["", "nats", "low", "high", "seed 3", "seed 0"]
    assert rows == [["ours", "-0.500", "-0.750", "-0.250", "-0.400", "-0.600"], ["self", "+0.125", "", "", "", ""]]
    picture = figure.svg()
    assert picture.count('class="seed"') == 2
    assert "ours: -0.500 (-0.750 to -0.250)" in picture  # what the pointer shows
    left, right = [float(x) for x in re.findall(r'class="value" cx="([\d.]+)"', picture)]
    assert left < right


def test_bars_start_at_zero() -> None:
    picture = Values("x", "X", "How.", "nats", {"": [Mark("a", "ink", 2.0), Mark("b", "ink", -1.0)]}, bars=True).svg()
    [(above, wide), (below, half)] = [
        (float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', picture)
    ]
    assert wide == pytest.approx(2 * half, abs=0.2)
    assert below + half == pytest.approx(above, abs=0.2)


def test_curves_stand_beside_each_other_in_the_table() -> None:
    lines = [
        Line("a, seed 0", "ink", [(1, 3.0), (2, 2.5)]),
        Line("a, seed 1", "ink", [(1, 3.25)]),
        Line("b", "faint", [(2, 4, 3, 5)], "points"),
    ]
    figure = Curves("x", "X", "How.", "tokens", "loss", lines, verticals={"here": 1.5})
    headers, rows = figure.table()
    assert headers == ["tokens", "a, seed 0", "a, seed 1", "b"]
    assert rows == [["1", "3", "3.25", ""], ["2", "2.5", "", "4 (3 to 5)"]]
    assert figure.legend() == [("a", "ink", "solid"), ("b", "faint", "points")]
    assert figure.svg().count("<polyline") == 2


def test_no_dot_lies_over_the_name_of_a_vertical() -> None:
    """As where d1 is not read at all, and the method is as far above its control as it is anywhere."""
    dots = [Dot("a", "1", (0.01, -0.02, 0.04), (0.9, 0.8, 1.0), True), Dot("b", "2", (1.0, 0.9, 1.1), (-0.5, -0.6, -0.4), True)]
    picture = Dots("x", "X", "How.", "worth", "nats", "method", dots, verticals={"d1 is not read": 0.0}).svg()
    [below] = [float(y) for y in re.findall(r'y="([\d.]+)" text-anchor="start">d1 is not read<', picture)]
    assert min(float(y) - 5 for y in re.findall(r'class="value" cx="[\d.]+" cy="([\d.]+)"', picture)) > below + 3
    assert min(float(y) for y in re.findall(r'class="thin" [^>]*y2="([\d.]+)"', picture)) > below


@pytest.mark.parametrize(("near", "anchor"), [([0.0], "end"), ([0.5], "start"), ([0.0, 1.0], "start")])
def test_no_dot_lies_over_the_name_of_a_horizontal_while_either_end_is_free(near: list[float], anchor: str) -> None:
    """As where d1 is not read at all, and the method is about as good as its control."""
    places = [(0.0, -1.0), (1.0, -1.0), *((x, 0.05) for x in near)]
    dots = [Dot("a", "1", (x, x, x), (y, y, y), True) for x, y in places]
    picture = Dots("x", "X", "How.", "worth", "nats", "method", dots, horizontals={"as good as it": 0.0}).svg()
    assert re.findall(r'text-anchor="(\w+)">as good as it<', picture) == [anchor]


def test_a_curve_with_two_values_at_a_place_has_both_in_the_table() -> None:
    """As two runs of a study have that differ in what it is not drawn over."""
    figure = Curves("x", "X", "How.", "tokens", "loss", [Line("a", "ink", [(1, 3.0), (1, 4, 3, 5), (2, 2.5)])])
    assert figure.table()[1] == [["1", "3; 4 (3 to 5)"], ["2", "2.5"]]


def test_names_are_text() -> None:
    attack = "</title><script>1</script>"
    for figure in (
        Values("x", attack, attack, attack, {attack: [Mark(attack, "ink", 1.0)]}, references={attack: 0.5}),
        Curves(
            "x", attack, attack, attack, attack, [Line(attack, "ink", [(1, 1)])], verticals={attack: 1}, horizontals={attack: 1}
        ),
    ):
        assert "<script" not in figure.svg()
        assert "&lt;script&gt;" in figure.svg()


@pytest.mark.parametrize("name", ["self", "given a random d1", "base, given nothing"])
def test_a_name_beside_values_has_room_before_the_least(name: str) -> None:
    picture = Values("x", "X", "How.", "nats", {"related": [Mark(name, "ink", 1.17), Mark("b", "ink", 1.3)]}, ".4f").svg()
    least = min(float(x) for x in re.findall(r'class="value" cx="([\d.]+)"', picture))
    assert 14 + 7 * len(name) <= least - 5


def test_names_on_an_axis_neither_meet_nor_leave_the_picture() -> None:
    names = {0.0: "an optimizer with a long name " * 3, 1.0: "another one " * 4, 1.001: "meets it", 3.0: "short"}
    picture = Curves("x", "X", "How.", "optimizer", "loss", [Line("a", "ink", [(x, 1.0) for x in names])], ticks=names).svg()
    said = [(float(x), text) for x, text in re.findall(r'<text x="([\d.]+)" y="253.0" text-anchor="middle">([^<]*)<', picture)]
    assert [text[:5] for _, text in said] == ["an op", "anoth", "short"]
    ends = [(x - 4 * len(text), x + 4 * len(text)) for x, text in said]
    assert all(left >= 0 and right <= 480 for left, right in ends)
    assert all(right <= left for (_, right), (left, _) in zip(ends, ends[1:], strict=False))
