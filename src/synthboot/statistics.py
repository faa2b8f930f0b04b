"""Is A better than B, by how much, and how sure can one be? Arrays in, figures out; no torch.

Losses come as (seed, item): every seed is scored on the same items (documents, questions), so
seeds and items are *crossed*, and each brings noise of its own. With S seeds, D items and the mean
squares of the two-way layout,

    MS_seed = D * variance over seeds of the means over items
    MS_item = S * variance over items of the means over seeds
    MS_both = what is left, the interaction

the variance of the mean is (MS_seed + MS_item - MS_both) / (S D). The usual t-interval on
Satterthwaite's degrees of freedom is too sure with three seeds: where their noise rules, MS_seed
now and then comes out small, and it is just then that the degrees of freedom come out large
(`benchmarks/coverage.py`: 3.4 % false positives at 1 %). So each part gets the quantile of its own
degrees of freedom,

    half width^2 = t(S - 1)^2 * MS_seed / (S D) + t(D - 1)^2 * max(0, MS_item - MS_both) / (S D)

which is exact where either part rules and a little wide between. p-values invert it: p is the
least level at which the interval leaves zero out. The interval of a ratio holds every value that
this does not reject (Fieller). docs/statistics.md says it at length, with simulated coverage.

Source: mean squares and variance of a crossed layout, Cornfield and Tukey 1956; degrees of
freedom, Satterthwaite 1946; a quantile for each part, Graybill and Wang 1980 and Cochran 1964;
ratios, Fieller 1954; many comparisons, Holm 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Real

_LEAST = 1e-70
_MOST = 1e70
_MANY = 1e8
"""Right and wrong answers from which on the exact interval of a share is that of a mean."""
POWER = 0.8
"""How often a difference of the size that `detectable` gives is found."""


Name = TypeVar("Name", bound=Hashable)
"""Of a comparison."""


class Interval(NamedTuple):
    """A figure with the ends of its confidence interval; in JSON a list of the three."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A difference with the ends of its confidence interval, and the p-value of "it is zero"; in
    JSON a list of the four."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and items, with its confidence interval and the p-value of "it is zero".

    `df` are Satterthwaite's degrees of freedom, `by_seed` the mean of each seed. With one seed all
    of these are about items alone.
    """

    value: float
    low: float
    high: float
    p: float
    standard_error: float
    df: float
    by_seed: tuple[float, ...]
    items: int

    @property
    def interval(self) -> Interval:
        """Value and interval alone."""
        return Interval(self.value, self.low, self.high)

    @property
    def tested(self) -> Difference:
        """Value, interval and p-value alone, where it is a difference that was estimated."""
        return Difference(self.value, self.low, self.high, self.p)


@dataclass(frozen=True)
class Components:
    """Variance components: of seeds, of items, and of their interaction, in squared units."""

    seed: float
    item: float
    both: float


@dataclass(frozen=True)
class _Spread:
    """Mean squares over (S D), parts of the variance of the mean, with their degrees of freedom."""

    seed: float
    item: float
    both: float
    seed_df: int
    item_df: int

    def half_width(self, level: float) -> float:
        """Half the width of the interval that misses the truth at `level`."""
        # The interaction is part of both mean squares: it is counted with the seeds alone.
        item_alone = max(0.0, self.item - self.both)
        square = _quantile(level, self.item_df) ** 2 * item_alone
        if self.seed_df:
            square += _quantile(level, self.seed_df) ** 2 * self.seed
        return float(np.sqrt(square))

    def variance(self) -> float:
        """The variance of the mean; noise may make the plain sum of its parts too small."""
        return max(
            self.seed + self.item - self.both,
            self.item - self.both,
            self.seed,
            0.0,
        )


def estimate(
    values: Real[np.ndarray, "seed item"],
    weights: Real[np.ndarray, " item"] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The weighted mean of `values`, with its confidence interval and p-value.

    `values` are sums over each item (nats of a document), `weights` the sizes that they are divided
    by (its tokens), one for each item; ones unless given. The mean is sum(values) / sum(weights),
    so long documents count for more. Raises ValueError for fewer than two items.
    """
    values, sizes = _checked(values, weights)
    value, spread = _mean(values, sizes)
    width = spread.half_width(1 - confidence)
    return Estimate(
        value=value,
        low=value - width,
        high=value + width,
        p=_p_value(abs(value), spread),
        standard_error=float(np.sqrt(spread.variance())),
        df=_satterthwaite(spread),
        by_seed=tuple((values.sum(1) / sizes.sum()).tolist()),
        items=values.shape[1],
    )


def share(values: Real[np.ndarray, "seed item"], confidence: float = 0.95) -> Interval:
    """The mean of `values` from 0 to 1, such as right (1) and wrong answers, with its interval.

    That of `estimate` would reach beyond 0 and 1, and have no width where all answers are alike.
    This is the exact interval for as many independent answers as would be spread so far; for all
    alike, for as many as there are items. Raises ValueError for fewer than two items, and for a
    value beyond 0 and 1.

    Source: Clopper and Pearson 1934; effective numbers, Korn and Graubard 1998 (Survey Methodology
    24). Deviation: theirs come from the variance and its degrees of freedom; ours from the half
    width of `estimate`, which has a t quantile for seeds and one for items.
    """
    from scipy import special

    values, sizes = _checked(values, None)
    if ((values < 0) | (values > 1)).any():
        raise ValueError("a share lies from 0 to 1")
    mean, spread = _mean(values, sizes)
    tail = (1 - confidence) / 2
    z = -float(special.ndtri(tail))
    answer = mean * (1 - mean)
    variance = float(values.var())
    # by chance seeds may differ by next to nothing: no more answers than there are
    wide = max(spread.half_width(1 - confidence), z * float(np.sqrt(variance / values.size)))
    if _MANY * (wide / z) ** 2 < answer * min(mean, 1 - mean):
        return Interval(mean, mean - wide, mean + wide)  # a symmetric one, and none too long to sum
    number = answer / (wide / z) ** 2 if variance > 0 else float(values.shape[1])
    hits = mean * number
    low = float(special.betaincinv(hits, number - hits + 1, tail)) if mean > 0 else 0.0
    high = float(special.betaincinv(hits + 1, number - hits, 1 - tail)) if mean < 1 else 1.0
    return Interval(mean, low, high)


def difference(
    first: Real[np.ndarray, "seed item"],
    second: Real[np.ndarray, "seed item"],
    weights: Real[np.ndarray, " item"] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """`estimate` of the mean of `first` minus that of `second`, paired by seed and item."""
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return estimate(gaps, weights, confidence)


def ratio(
    numerator: Real[np.ndarray, "seed item"],
    denominator: Real[np.ndarray, "seed item"],
    weights: Real[np.ndarray, " item"] | None = None,
    confidence: float = 0.95,
) -> Interval | None:
    """Mean of `numerator` over mean of `denominator`, with Fieller's interval.

    The interval holds every r for which numerator - r * denominator is not shown to differ from
    zero. None where the denominator itself is not: a ratio to it says nothing.
    """
    above, sizes = _checked(numerator, weights)
    below, _ = _checked(denominator, weights)

    def excess(values: np.ndarray) -> float:
        """The squared mean minus its squared half width; negative where the mean may be zero."""
        mean, spread = _mean(values, sizes)
        return mean**2 - spread.half_width(1 - confidence) ** 2

    if excess(below) <= 0:
        return None

    def outside(r: float) -> float:
        return excess(above - r * below)

    value = float(above.sum() / below.sum())
    return Interval(value, _end(outside, value, side=-1), _end(outside, value, side=1))


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """p-values adjusted for their number by Holm's step-down method.

    The chance of one false finding or more stays at the level.
    """
    adjusted: dict[Name, float] = {}
    largest = 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for rank, name in enumerate(ordered):
        factor = len(ordered) - rank  # as many as are not decided yet
        largest = max(largest, min(1.0, factor * p_values[name]))
        adjusted[name] = largest

    return {name: adjusted[name] for name in p_values}


def components(
    values: Real[np.ndarray, "seed item"], weights: Real[np.ndarray, " item"] | None = None
) -> Components:
    """Variance components of a difference; none is below zero.

    With one seed, that of items holds the interaction too, and nothing is known of seeds (0).
    """
    values, sizes = _checked(values, weights)
    _, spread = _mean(values, sizes)
    seeds, items = values.shape
    return Components(
        seed=max(0.0, (spread.seed - spread.both) * seeds),
        item=max(0.0, (spread.item - spread.both) * items),
        both=spread.both * seeds * items,
    )


def detectable(noise: Components, seeds: int, items: int, confidence: float = 0.95) -> float:
    """The smallest true difference that so many seeds and items show four times in five (`POWER`).

    `noise` is that of a run like it. With one seed the result is about other items alone.
    Raises ValueError for fewer than two items.
    """
    from scipy import special

    if items < 2:
        raise ValueError("one item has no spread: at least two are needed")
    both = noise.both / (seeds * items)
    spread = _Spread(
        seed=noise.seed / seeds + both,
        item=noise.item / items + both,
        # with one seed nothing tells the interaction from the items
        both=both if seeds > 1 else 0.0,
        seed_df=seeds - 1,
        item_df=items - 1,
    )
    of_seeds = noise.seed / seeds if seeds > 1 else 0.0
    error = float(np.sqrt(of_seeds + noise.item / items + both))

    # The mean has to lie this far beyond the half width to be found with that chance.
    margin = float(special.ndtri(POWER)) * error
    return spread.half_width(1 - confidence) + margin


def seeds_for(wanted: float, noise: Components, items: int, confidence: float = 0.95) -> int | None:
    """How many seeds show a true difference of `wanted` four times in five.

    None where a thousand do not: then the items' noise is too large, whatever the seeds.
    """
    for seeds in range(2, 1_001):
        if detectable(noise, seeds, items, confidence) <= wanted:
            return seeds
    return None


def items_for(wanted: float, noise: Components, seeds: int, confidence: float = 0.95) -> int | None:
    """How many items show a true difference of `wanted` four times in five, with so many seeds.

    None where a thousand million do not: then the seeds' noise is too large, whatever the items.
    """
    enough = 10**9
    if detectable(noise, seeds, enough, confidence) > wanted:
        return None

    # Bisection. One item is never enough: it has no spread.
    too_few = 1
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if detectable(noise, seeds, middle, confidence) <= wanted:
            enough = middle
        else:
            too_few = middle
    return enough


def _checked(
    values: Real[np.ndarray, "seed item"],
    weights: Real[np.ndarray, " item"] | Sequence[float] | None,
) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(values, np.float64)
    sizes = np.ones(array.shape[1]) if weights is None else np.asarray(weights, np.float64)
    if array.shape[1] < 2:
        raise ValueError("one item has no spread: at least two are needed")
    if not np.isfinite(array).all():
        raise ValueError("a score is not finite")
    # what lies beyond squares to infinity, or to zero, and nothing would have any spread
    largest = float(np.abs(array).max())
    if largest and not _LEAST <= largest <= _MOST:
        raise ValueError(
            f"the largest score is {largest:.3g}, and squares need {_LEAST:g} to {_MOST:g}: scale "
            f"them all, or take logarithms"
        )
    return array, sizes


def _mean(values: np.ndarray, sizes: np.ndarray) -> tuple[float, _Spread]:
    """The weighted mean, and the spread of what is left when it is taken away."""
    mean = float(values.sum() / (len(values) * sizes.sum()))
    return mean, _spread((values - mean * sizes) / sizes.mean())


def _spread(residual: Real[np.ndarray, "seed item"]) -> _Spread:
    """The mean squares of residuals whose weighted mean is zero."""
    seeds, items = residual.shape
    cells = seeds * items
    by_item = residual.mean(0)  # (item,)
    item_mean_square = seeds * float(np.sum((by_item - by_item.mean()) ** 2)) / (items - 1)
    item = item_mean_square / cells
    if seeds == 1:
        return _Spread(seed=0.0, item=item, both=0.0, seed_df=0, item_df=items - 1)

    by_seed = residual.mean(1)  # (seed,)
    seed_mean_square = items * float(np.sum((by_seed - by_seed.mean()) ** 2)) / (seeds - 1)

    # What neither a seed's nor an item's mean explains: (seed, item)
    rest = residual - by_seed[:, None] - by_item[None, :] + residual.mean()
    both_mean_square = float(np.sum(rest**2)) / ((seeds - 1) * (items - 1))

    return _Spread(
        seed=seed_mean_square / cells,
        item=item,
        both=both_mean_square / cells,
        seed_df=seeds - 1,
        item_df=items - 1,
    )


def _satterthwaite(spread: _Spread) -> float:
    parts = spread.item**2 / spread.item_df
    if spread.seed_df:
        parts += spread.seed**2 / spread.seed_df
        parts += spread.both**2 / (spread.seed_df * spread.item_df)
    total = spread.seed + spread.item - spread.both
    return float(total**2 / parts) if parts else float(spread.item_df)


def _p_value(distance: float, spread: _Spread) -> float:
    """The least level at which an interval around a value this far from zero leaves zero out."""
    from scipy import optimize

    least = 1e-12
    most = 1 - 1e-9
    if distance <= spread.half_width(most):
        return 1.0
    if distance >= spread.half_width(least):
        return least

    def beyond(log_level: float) -> float:
        return spread.half_width(float(np.exp(log_level))) - distance

    # Over the logarithm, so that small p-values are as exact as large ones.
    log_level = optimize.brentq(beyond, np.log(least), np.log(most), xtol=1e-6)
    return float(np.exp(log_level))


def _quantile(level: float, df: int) -> float:
    from scipy import special

    return -float(special.stdtrit(df, level / 2))


def _end(outside: Callable[[float], float], value: float, side: int) -> float:
    """Where `outside` turns positive, on one side of `value`; infinity where it never does."""
    from scipy import optimize

    if outside(value) > 0:  # by rounding: both are proportional, and there is no other ratio
        return value
    step = max(abs(value), 1e-3)
    while outside(value + side * step) <= 0:
        step *= 2
        if step > 1e12:
            return side * float("inf")
    ends = sorted((value, value + side * step))
    return float(optimize.brentq(outside, *ends))
