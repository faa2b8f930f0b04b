"""Figures of what can be got out again, and of what changed."""

from synthboot.artifacts.analysis import Topics
from synthboot.artifacts.extraction import FIGURES, ArmExtraction, Extraction, GivenBack
from synthboot.report import leaks
from synthboot.report.figures import Curves, Values
from synthboot.statistics import Difference, Interval

PAINT = {"repetition": "repetition", "sbp": "method"}


def extracted(asked: bool = True, planted: bool = True) -> Extraction:
    nothing = GivenBack(None, None)
    share = GivenBack(Interval(0.5, 0.4, 0.6), Interval(0.1, 0.0, 0.2))
    less = GivenBack(Interval(0.1, 0.0, 0.2), Interval(0.0, 0.0, 0.1), Difference(-0.4, -0.5, -0.3, 0.01), 0.01)
    exposure = {
        "repetition": {1: Interval(2.0, 1.0, 3.0), 16: Interval(6.0, 5.0, 7.0)},
        "sbp": {1: None, 16: Interval(3.0, 2.0, 4.0)},
    }
    arms = {}
    for arm, exact in {"repetition": share, "sbp": less}.items():
        figures = {**dict.fromkeys(FIGURES, nothing), "exact": exact if asked else nothing}
        arms[arm] = ArmExtraction(figures, exposure[arm] if planted else {})
    return Extraction(
        arms=arms,
        seen_docs=9,
        unseen_docs=9,
        prefix_tokens=5,
        continuation_tokens=5,
        samples=3,
        seeds=1,
        canaries=2,
        candidates=63,
        confidence=0.95,
    )


def test_what_is_given_back_stands_beside_what_is_guessed() -> None:
    figure = leaks.extraction(extracted(), PAINT)
    assert isinstance(figure, Values)
    [marks] = figure.groups.values()
    assert [(mark.name, mark.value, mark.interval) for mark in marks] == [
        ("repetition", 0.5, (0.4, 0.6)),
        ("sbp", 0.1, (0.0, 0.2)),
    ]
    assert figure.references == {"exactly": 0.1}
    assert leaks.extraction(extracted(asked=False), PAINT) is None


def test_exposure_is_a_line_an_arm_over_copies_with_chance_beside() -> None:
    figure = leaks.exposures(extracted(), PAINT)
    assert isinstance(figure, Curves)
    assert {line.name: list(line.points) for line in figure.lines} == {
        "repetition": [(1.0, 2.0, 1.0, 3.0), (16.0, 6.0, 5.0, 7.0)],
        "sbp": [(16.0, 3.0, 2.0, 4.0)],
    }
    assert "log2(64)" in figure.read
    assert leaks.exposures(extracted(planted=False), PAINT) is None


def test_the_topics_that_changed_most_are_shown() -> None:
    compared = Topics(
        names=tuple(f"{i}: a, <b>" for i in range(10)),
        shares={"D_pretrain": (0.1,) * 10, "unseen real": (0.1,) * 10, "related": (0.1,) * 7 + (0.0, 0.25, 0.05)},
        docs={},
        distance={},
        gained={},
        lost={},
    )
    assert leaks.most_changed(compared) == [8, 7, 9, 0, 1, 2, 3, 4]
    figure = leaks.topics(compared, {"related": "method"})
    assert isinstance(figure, Values)
    first = next(iter(figure.groups.values()))
    assert [(mark.name, mark.value) for mark in first] == [("D_pretrain", 0.1), ("unseen real", 0.1), ("related", 0.25)]
    assert "<b>" not in figure.svg()
