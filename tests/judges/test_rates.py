import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthboot.judges import rates
from synthboot.judges.rates import ErrorRates


def errors(q0: float, q1: float, cases: int = 1_000_000) -> ErrorRates:
    return ErrorRates(round(q0 * cases), cases, round(q1 * cases), cases)


@given(st.floats(0, 1), st.floats(0.62, 1), st.floats(0.62, 1))
def test_the_corrected_rate_is_the_true_one(truth: float, q0: float, q1: float) -> None:
    """Without noise: what a judge of known errors calls faulty leads back to how much is."""
    items = 1_000_000
    called = truth * q1 + (1 - truth) * (1 - q0)
    corrected = errors(q0, q1).corrected(round(called * items), items)
    assert corrected is not None
    assert corrected.value == pytest.approx(truth, abs=1e-4)
    assert corrected.low <= corrected.value <= corrected.high


@pytest.mark.parametrize(
    ("truth", "q0", "q1", "items", "cases"),
    [(0.02, 0.95, 0.9, 200, 100), (0.3, 0.8, 0.7, 200, 60), (0.1, 0.99, 0.6, 400, 200), (0.9, 0.7, 0.9, 100, 50)],
)
def test_the_interval_covers_the_truth(truth: float, q0: float, q1: float, items: int, cases: int) -> None:
    """It has the calibration's own error in it: the judge's errors are drawn anew every time."""
    random = np.random.default_rng(0)
    trials, covered, naive = 1_500, 0, 0
    for _ in range(trials):
        error = ErrorRates(random.binomial(cases, q0), cases, random.binomial(cases, q1), cases)
        judged = random.binomial(items, truth * q1 + (1 - truth) * (1 - q0))
        corrected = error.corrected(judged, items)
        assert corrected is not None
        covered += corrected.low <= truth <= corrected.high
        plain = rates.share(judged, items)
        naive += plain.low <= truth <= plain.high
    assert 0.93 <= covered / trials <= 0.995
    assert naive / trials < 0.8  # a rate as it was judged is not the true one


def test_a_judge_that_guesses_is_refused_and_says_why() -> None:
    assert ErrorRates(60, 100, 59, 100).refusal == "q0 + q1 = 1.19, guessing has 1, 1.2 is needed"
    # not rounded up to what is needed
    assert ErrorRates(599, 1_000, 600, 1_000).refusal == "q0 + q1 = 1.199, guessing has 1, 1.2 is needed"
    assert ErrorRates(60, 100, 59, 100).corrected(5, 100) is None
    assert ErrorRates(60, 100, 60, 100).refusal == ""
    assert "19 faulty cases, 20 are needed" in ErrorRates(100, 100, 19, 19).refusal
    assert ErrorRates(0, 0, 0, 0).corrected(1, 2) is None
    assert errors(1, 1).corrected(0, 0) is None


def test_fewer_cases_make_a_rate_less_sure() -> None:
    few, many = (ErrorRates(9 * n, 10 * n, 8 * n, 10 * n).corrected(300, 1_000) for n in (4, 400))
    assert few is not None
    assert many is not None
    assert few.value == many.value
    assert few.high - few.low > 2 * (many.high - many.low)


def test_wilson_against_the_roots_of_its_equation() -> None:
    for count, of in [(0, 10), (3, 10), (10, 10), (47, 200)]:
        value, low, high = rates.share(count, of)
        assert value == count / of
        for end in (low, high):
            if 0 < end < 1:
                assert abs(value - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / of), rel=1e-5)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_no_threshold_is_better_than_the_one_that_is_chosen(clean: list[int], faulty: list[int]) -> None:
    def skill(limit: float) -> float:
        error = rates.measured(clean, faulty, limit)
        return error.passed / error.clean + error.found / error.faulty

    chosen = rates.threshold(np.array(clean, float), np.array(faulty, float))
    inner = [limit for limit in np.arange(0.5, 6) if min(clean + faulty) < limit < max(clean + faulty)]
    assert skill(chosen) == pytest.approx(max([skill(limit) for limit in inner], default=1.0))


def test_kappa_against_the_counts_of_the_table() -> None:
    first = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    second = np.array([1, 1, 1, 0, 1, 0, 0, 0, 0, 0], bool)
    by_chance = 0.4 * 0.4 + 0.6 * 0.6
    assert rates.kappa(first, second) == pytest.approx((0.8 - by_chance) / (1 - by_chance))
    assert rates.kappa(first, first) == 1
    assert rates.kappa(first, ~first) < 0
    assert rates.kappa(first & False, first & False) is None
    assert rates.kappa(first[:0], second[:0]) is None
