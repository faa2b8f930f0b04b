"""Figures of what can be got out again, and of what changed."""

from typing import Any

from synthboot.report import leaks
from synthboot.report.figures import Curves, Values

PAINT = {"repetition": "repetition", "sbp": "method"}


def extracted() -> dict[str, Any]:
    share = {"seen": [0.5, 0.4, 0.6], "unseen": [0.1, 0.0, 0.2]}
    less = {"seen": [0.1, 0.0, 0.2], "unseen": [0.0, 0.0, 0.1], "difference": [-0.4, -0.5, -0.3, 0.01], "p_adjusted": 0.01}
    return {
        "arms": {
            "repetition": {"figures": {"exact": share}, "exposure": {"1": [2.0, 1.0, 3.0], "16": [6.0, 5.0, 7.0]}},
            "sbp": {"figures": {"exact": less}, "exposure": {"1": None, "16": [3.0, 2.0, 4.0]}},
        },
        "candidates": 63,
    }


def test_what_is_given_back_stands_beside_what_is_guessed() -> None:
    figure = leaks.extraction(extracted(), PAINT)
    assert isinstance(figure, Values)
    [marks] = figure.groups.values()
    assert [(mark.name, mark.value, mark.interval) for mark in marks] == [
        ("repetition", 0.5, (0.4, 0.6)),
        ("sbp", 0.1, (0.0, 0.2)),
    ]
    assert figure.references == {"exactly": 0.1}
    none = extracted()
    for arm in none["arms"].values():
        arm["figures"]["exact"]["seen"] = None
    assert leaks.extraction(none, PAINT) is None


def test_exposure_is_a_line_an_arm_over_copies_with_chance_beside() -> None:
    figure = leaks.exposures(extracted(), PAINT)
    assert isinstance(figure, Curves)
    assert {line.name: list(line.points) for line in figure.lines} == {
        "repetition": [(1.0, 2.0, 1.0, 3.0), (16.0, 6.0, 5.0, 7.0)],
        "sbp": [(16.0, 3.0, 2.0, 4.0)],
    }
    assert "log2(64)" in figure.read
    none = extracted()
    for arm in none["arms"].values():
        arm["exposure"] = {}
    assert leaks.exposures(none, PAINT) is None


def test_the_topics_that_changed_most_are_shown() -> None:
    shares = {"D_pretrain": [0.1] * 10, "unseen real": [0.1] * 10, "related": [0.1] * 7 + [0.0, 0.25, 0.05]}
    compared = {"names": [f"{i}: a, <b>" for i in range(10)], "shares": shares}
    assert leaks.most_changed(compared) == [8, 7, 9, 0, 1, 2, 3, 4]
    figure = leaks.topics(compared, {"related": "method"})
    assert isinstance(figure, Values)
    first = next(iter(figure.groups.values()))
    assert [(mark.name, mark.value) for mark in first] == [("D_pretrain", 0.1), ("unseen real", 0.1), ("related", 0.25)]
    assert "<b>" not in figure.svg()
