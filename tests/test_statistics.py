"""Intervals that hold what they promise: against known formulas, and by simulation at small size (`benchmarks/coverage.py`
has the whole table)."""

import numpy as np
import pytest
from benchmarks import coverage
from scipy import stats

from synthboot import statistics


def noise(seed: int, seeds: int, items: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((seeds, items))


def test_one_seed_is_a_one_sample_t_test_over_items() -> None:
    values = 0.2 + noise(0, 1, 40)
    found = statistics.estimate(values)
    known = stats.ttest_1samp(values[0], 0)
    interval = known.confidence_interval(0.95)
    assert found.p == pytest.approx(known.pvalue, rel=1e-5)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 40**0.5)
    assert found.df == pytest.approx(39)


def test_where_seeds_rule_it_is_a_t_test_over_seeds() -> None:
    by_seed = np.array([0.004, 0.009, 0.044])
    values = np.repeat(by_seed[:, None], 1_000, axis=1)
    found = statistics.estimate(values)
    assert found.p == pytest.approx(stats.ttest_1samp(by_seed, 0).pvalue, rel=1e-5)  # 0.27, where a bootstrap said 0.001
    assert found.df == pytest.approx(2)
    assert found.by_seed == pytest.approx(tuple(by_seed))


def test_the_variance_is_that_of_a_crossed_layout() -> None:
    """Against the textbook's mean squares, computed one by one."""
    values = noise(1, 4, 7)
    seeds, items = values.shape
    grand = values.mean()
    of_seed = items * sum((row.mean() - grand) ** 2 for row in values) / (seeds - 1)
    of_item = seeds * sum((column.mean() - grand) ** 2 for column in values.T) / (items - 1)
    cells = [(values[s, i] - values[s].mean() - values[:, i].mean() + grand) ** 2 for s in range(seeds) for i in range(items)]
    both = sum(cells) / ((seeds - 1) * (items - 1))
    found = statistics.components(values)
    assert found.seed == pytest.approx(max(0, (of_seed - both) / items))
    assert found.item == pytest.approx(max(0, (of_item - both) / seeds))
    assert found.both == pytest.approx(both)


@pytest.mark.parametrize("right", [0, 1, 3, 20, 39, 40])
def test_a_share_of_one_seed_is_nearly_the_exact_interval_and_stays_between_0_and_1(right: int) -> None:
    answers = np.arange(40)[None] < right
    found = statistics.share(answers.astype(float))
    known = stats.binomtest(right, 40).proportion_ci(0.95, "exact")
    assert 0 <= found.low <= found.value == right / 40 <= found.high <= 1
    # the same where all are alike; else a t quantile stands for a normal one, and the sample's variance for the binomial's
    assert (found.low, found.high) == pytest.approx((known.low, known.high), abs=1e-9 if right in (0, 40) else 0.015)
    assert found.high - found.low >= (known.high - known.low) * 0.99


def test_a_share_is_held_by_its_interval_however_seldom_it_is() -> None:
    """Items of different difficulty, seeds of different skill, and truths near zero, where a t interval holds little."""
    rng = np.random.default_rng(0)
    for truth, seeds in ((0.01, 1), (0.01, 3), (0.05, 3), (0.5, 3), (0.97, 5)):
        held = 0
        for _ in range(300):
            difficulty = rng.beta(2 * truth, 2 * (1 - truth), 200)
            skill = rng.normal(0, 0.1, (seeds, 1))
            chance = np.clip(difficulty + skill * truth * (1 - truth), 0, 1)
            found = statistics.share((rng.random(chance.shape) < chance).astype(float))
            held += found.low <= truth <= found.high
        assert held / 300 > 0.94, (truth, seeds)


def test_a_share_of_numbers_that_hardly_differ_is_as_sure_as_their_mean() -> None:
    values = 0.4 + 0.01 * noise(3, 3, 100)
    found, mean = statistics.share(values), statistics.estimate(values)
    assert (found.low, found.high) == pytest.approx((mean.low, mean.high), abs=2e-4)
    assert statistics.share(np.full((2, 9), 0.25)) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-12, 1e-20, 1e-40])
def test_a_share_however_small_has_the_interval_of_its_size(size: float) -> None:
    values = size * np.random.default_rng(0).random((3, 200))
    found, mean = statistics.share(values), statistics.estimate(values)
    assert (found.low, found.high) == pytest.approx((mean.low, mean.high), rel=0.05)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.7])
def test_shares_that_are_all_the_same_have_no_spread(value: float) -> None:
    """Not even where their mean is rounded, and so the squares of what is left."""
    assert statistics.share(np.full((3, 7), value)) == pytest.approx((value, value, value), abs=1e-12)


def test_a_share_beyond_1_is_no_share() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        statistics.share(np.array([[0.2, 1.2]]))


@pytest.mark.parametrize("size", [1e-200, 1e-80, 1e100, 1e200])
def test_what_cannot_be_squared_is_an_error_and_not_sure(size: float) -> None:
    with pytest.raises(ValueError, match="scale them all, or take logarithms"):
        statistics.estimate(size * noise(0, 2, 9))
    assert statistics.estimate(1e-60 * noise(0, 2, 9)).p == pytest.approx(statistics.estimate(noise(0, 2, 9)).p)


def test_items_weigh_as_their_size() -> None:
    sizes = np.array([1.0, 99.0, 50.0])
    values = np.array([[10.0, 99.0, 100.0]])
    assert statistics.estimate(values, sizes).value == pytest.approx(209 / 150)
    even = statistics.estimate(2.0 * sizes[None], sizes)  # two nats a token everywhere, whatever the size
    assert (even.low, even.high) == pytest.approx((2.0, 2.0))


def test_pairing_takes_away_what_both_share() -> None:
    hard = 5 * noise(2, 1, 300)
    first, second = hard + 0.1 * noise(3, 3, 300), hard + 0.05 + 0.1 * noise(4, 3, 300)
    alone, paired = statistics.estimate(first), statistics.difference(first, second)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)
    assert paired.value == pytest.approx(-0.05, abs=0.02)
    swapped = statistics.difference(second, first)
    assert (swapped.value, swapped.p) == pytest.approx((-paired.value, paired.p))


def test_p_and_interval_agree() -> None:
    for seed in range(20):
        values = 0.1 + noise(seed, 3, 50)
        found = statistics.estimate(values)
        level = statistics.estimate(values, confidence=1 - found.p)
        assert min(abs(level.low), abs(level.high)) == pytest.approx(0, abs=1e-4)
        assert (found.p <= 0.05) == (not found.low <= 0 <= found.high)


def test_nothing_at_all_is_no_difference() -> None:
    found = statistics.estimate(np.zeros((3, 10)))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_one_item_is_refused() -> None:
    with pytest.raises(ValueError, match="one item has no spread"):
        statistics.estimate(np.ones((3, 1)))


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="a score is not finite"):
        statistics.estimate(np.array([[1.0, np.nan, 2.0]]))


@pytest.mark.parametrize(("seeds", "of_seeds"), [(2, 10.0), (3, 0.0), (3, 3.0), (5, 10.0)])
def test_coverage(seeds: int, of_seeds: float) -> None:
    """The bounds of the whole table, widened by three standard errors of 200 trials."""
    row = coverage.one_kind(np.random.default_rng([seeds, int(of_seeds)]), seeds, 60, of_seeds, trials=200)
    assert row["coverage"] >= 0.93 - 0.05
    assert row["p<=0.05"] <= 0.06 + 0.06
    assert row["p<=0.01"] <= 0.015 + 0.03
    if seeds > 2:
        assert row["coverage"] <= 0.995


def test_a_ratio_of_gains_that_are_proportional_is_that_alone() -> None:
    """Rounding must not leave them without an interval."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        gain = 0.5 + rng.random((3, 20))
        part = rng.random()
        assert statistics.ratio(part * gain, gain) == pytest.approx((part, part, part))


def test_a_ratio_holds_what_its_parts_do_not_reject_and_is_none_without_a_denominator() -> None:
    gain = -1 + 0.2 * noise(5, 3, 200)
    part = 0.4 * gain + 0.1 * noise(6, 3, 200)
    found = statistics.ratio(part, gain)
    assert found is not None
    assert found.low < 0.4 < found.high
    for end in (found.low, found.high):
        at = statistics.estimate(part - end * gain)
        assert min(abs(at.low), abs(at.high)) == pytest.approx(0, abs=1e-6)
    assert statistics.ratio(part, noise(7, 3, 200)) is None


def test_holm_steps_down() -> None:
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert statistics.holm({}) == {}


def test_a_difference_that_is_called_detectable_is_found_four_times_in_five() -> None:
    known = statistics.Components(seed=0.04, item=1.0, both=1.0)
    truth = statistics.detectable(known, 5, 100)
    rng = np.random.default_rng(8)
    found = 0
    for _ in range(200):
        values = truth + 0.2 * rng.standard_normal((5, 1)) + rng.standard_normal((1, 100)) + rng.standard_normal((5, 100))
        found += statistics.estimate(values).low > 0
    assert 0.65 <= found / 200 <= 0.93


def test_what_one_seed_can_show_counts_all_of_its_noise() -> None:
    one = statistics.detectable(statistics.Components(seed=0.0, item=0.0, both=1.0), 1, 100)
    assert one == pytest.approx(statistics.detectable(statistics.Components(seed=0.0, item=1.0, both=0.0), 1, 100))


def test_more_seeds_show_smaller_differences_until_items_are_what_is_missing() -> None:
    known = statistics.Components(seed=0.04, item=1.0, both=0.1)
    shown = [statistics.detectable(known, seeds, 400) for seeds in (2, 3, 5, 10, 50)]
    assert shown == sorted(shown, reverse=True)
    wanted = statistics.detectable(known, 5, 400)
    assert statistics.seeds_for(wanted, known, 400) == 5
    assert statistics.seeds_for(0.01, known, 400) is None
