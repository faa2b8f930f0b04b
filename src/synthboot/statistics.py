"""Is A better than B, by how much, and how sure can one be? Arrays in, figures out; no torch, no files.

Losses come as (seed, item): the same items (documents, questions) for every seed, so seeds and items are *crossed* and each
brings noise of its own. With S seeds, D items and the mean squares of the two-way layout,

    MS_seed = D * variance over seeds of the means over items      MS_item = S * variance over items of the means over seeds
    MS_both = what is left, the interaction

the mean's variance is (MS_seed + MS_item - MS_both) / (S D). The usual t-interval on Satterthwaite's degrees of freedom is
too sure with three seeds: where their noise rules, MS_seed now and then comes out small, and it is just then that the
degrees of freedom come out large (`benchmarks/coverage.py`: 3.4 % false positives at 1 %). So each part gets the quantile of
its own degrees of freedom,

    half width^2 = t(S - 1)^2 * MS_seed / (S D) + t(D - 1)^2 * max(0, MS_item - MS_both) / (S D)

which is exact where either part rules and a little wide between. p-values invert it: p is the least level at which the
interval leaves zero out. A ratio's interval holds every value that this does not reject (Fieller).

Source: mean squares and variance of a crossed layout, Cornfield and Tukey 1956; degrees of freedom, Satterthwaite 1946; a
quantile for each part, Graybill and Wang 1980 and Cochran 1964; ratios, Fieller 1954; many comparisons, Holm 1979.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Real
from scipy import optimize, special

POWER = 0.8
"""How often a difference of the size that `detectable` gives is found."""


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and items: interval, standard error, Satterthwaite's degrees of freedom, the p-value of "it is
    zero", and the mean of each seed. With one seed all of these are about items alone."""

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


@dataclass(frozen=True)
class Components:
    """Where the noise of a mean comes from: variances of seeds, of items, and of what they make together, in squares of the
    figure's unit."""

    seed: float
    item: float
    both: float


@dataclass(frozen=True)
class _Spread:
    """Mean squares over (S D), so that they are parts of the mean's variance, with their degrees of freedom."""

    seed: float
    item: float
    both: float
    seed_df: int
    item_df: int

    def half_width(self, level: float) -> float:
        """Half the width of the interval that misses the truth at `level`."""
        beside = max(0.0, self.item - self.both)
        square = _quantile(level, self.item_df) ** 2 * beside
        if self.seed_df:
            square += _quantile(level, self.seed_df) ** 2 * self.seed
        return float(np.sqrt(square))


def estimate(
    values: Real[np.ndarray, "seed item"],
    weights: Real[np.ndarray, " item"] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The weighted mean of `values` with what is known of it.

    `values` are sums over each item (nats of a document), `weights` the sizes that they are divided by (its tokens), one for
    each item; ones unless given. The mean is sum(values) / sum(weights), so long documents count for more.
    Raises ValueError for fewer than two items.
    """
    values, sizes = _checked(values, weights)
    value, spread = _mean(values, sizes)
    width = spread.half_width(1 - confidence)
    variance = max(
        spread.seed + spread.item - spread.both, spread.item - spread.both, spread.seed, 0.0
    )
    return Estimate(
        value=value,
        low=value - width,
        high=value + width,
        p=_p_value(abs(value), spread),
        standard_error=float(np.sqrt(variance)),
        df=_satterthwaite(spread),
        by_seed=tuple((values.sum(1) / sizes.sum()).tolist()),
        items=values.shape[1],
    )


def difference(
    first: Real[np.ndarray, "seed item"],
    second: Real[np.ndarray, "seed item"],
    weights: Real[np.ndarray, " item"] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """The mean of `first` less that of `second`, paired by seed and item: `estimate` of what they differ by."""
    return estimate(
        np.asarray(first, np.float64) - np.asarray(second, np.float64), weights, confidence
    )


def ratio(
    numerator: Real[np.ndarray, "seed item"],
    denominator: Real[np.ndarray, "seed item"],
    weights: Real[np.ndarray, " item"] | None = None,
    confidence: float = 0.95,
) -> Interval | None:
    """Mean of `numerator` over mean of `denominator`: every value r for which numerator - r * denominator is not shown to
    differ from zero. None where the denominator is not clear of zero: a ratio to it says nothing.

    """
    above, sizes = _checked(numerator, weights)
    below, _ = _checked(denominator, weights)

    def excess(values: np.ndarray) -> float:
        """How far the square of a mean lies beyond that of its half width; negative where it may be zero."""
        mean, spread = _mean(values, sizes)
        return mean**2 - spread.half_width(1 - confidence) ** 2

    if excess(below) <= 0:
        return None

    def outside(r: float) -> float:
        return excess(above - r * below)

    value = float(above.sum() / below.sum())
    return Interval(value, _end(outside, value, side=-1), _end(outside, value, side=1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for their number by Holm's step-down: the chance of one false finding or more stays at the level."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for rank, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def components(
    values: Real[np.ndarray, "seed item"], weights: Real[np.ndarray, " item"] | None = None
) -> Components:
    """The variance of seeds, of items and of their interaction in a difference; none is below zero. With one seed, that of
    items holds the interaction too, and nothing is known of seeds (0)."""
    values, sizes = _checked(values, weights)
    _, spread = _mean(values, sizes)
    seeds, items = values.shape
    return Components(
        seed=max(0.0, (spread.seed - spread.both) * seeds),
        item=max(0.0, (spread.item - spread.both) * items),
        both=spread.both * seeds * items,
    )


def detectable(noise: Components, seeds: int, items: int, confidence: float = 0.95) -> float:
    """The smallest true difference that a run of so many seeds and items shows four times in five (`POWER`), from the noise
    of a run like it. With one seed it is about other items alone. Raises ValueError for fewer than two items."""
    if items < 2:
        raise ValueError("one item has no spread: at least two are needed")
    both = noise.both / (seeds * items)
    spread = _Spread(
        seed=noise.seed / seeds + both,
        item=noise.item / items + both,
        both=both,
        seed_df=seeds - 1,
        item_df=items - 1,
    )
    of_seeds = noise.seed / seeds if seeds > 1 else 0.0
    error = np.sqrt(of_seeds + noise.item / items + both)
    return spread.half_width(1 - confidence) + float(special.ndtri(POWER)) * float(error)


def seeds_for(
    wanted: float, noise: Components, items: int, confidence: float = 0.95, most: int = 1_000
) -> int | None:
    """How many seeds show a true difference of `wanted` four times in five; None where `most` do not: then the items'
    noise is too large, whatever the seeds."""
    for seeds in range(2, most + 1):
        if detectable(noise, seeds, items, confidence) <= wanted:
            return seeds
    return None


def items_for(
    wanted: float, noise: Components, seeds: int, confidence: float = 0.95, most: int = 10**9
) -> int | None:
    """How many items show a true difference of `wanted` four times in five, with so many seeds; None where `most` do not:
    then the seeds' noise is too large, whatever the items."""
    if detectable(noise, seeds, most, confidence) > wanted:
        return None
    low, high = 1, most  # `high` items are enough, `low` are not
    while high - low > 1:
        middle = (low + high) // 2
        if middle >= 2 and detectable(noise, seeds, middle, confidence) <= wanted:
            high = middle
        else:
            low = middle
    return high


def _checked(
    values: Real[np.ndarray, "seed item"],
    weights: Real[np.ndarray, " item"] | Sequence[float] | None,
) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(values, np.float64)
    sizes = np.ones(array.shape[1]) if weights is None else np.asarray(weights, np.float64)
    if array.shape[1] < 2:
        raise ValueError("one item has no spread: at least two are needed")
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
    item = seeds * float(np.sum((by_item - by_item.mean()) ** 2)) / (items - 1)
    if seeds == 1:
        return _Spread(seed=0.0, item=item / cells, both=0.0, seed_df=0, item_df=items - 1)
    by_seed = residual.mean(1)  # (seed,)
    seed = items * float(np.sum((by_seed - by_seed.mean()) ** 2)) / (seeds - 1)
    rest = residual - by_seed[:, None] - by_item[None, :] + residual.mean()
    both = float(np.sum(rest**2)) / ((seeds - 1) * (items - 1))
    return _Spread(seed / cells, item / cells, both / cells, seeds - 1, items - 1)


def _satterthwaite(spread: _Spread) -> float:
    parts = spread.item**2 / spread.item_df
    if spread.seed_df:
        parts += spread.seed**2 / spread.seed_df
        parts += spread.both**2 / (spread.seed_df * spread.item_df)
    total = spread.seed + spread.item - spread.both
    return float(total**2 / parts) if parts else float(spread.item_df)


def _p_value(distance: float, spread: _Spread) -> float:
    """The least level at which an interval around a value this far from zero leaves zero out."""
    least, most = 1e-12, 1 - 1e-9
    if distance <= spread.half_width(most):
        return 1.0
    if distance >= spread.half_width(least):
        return least

    def beyond(log_level: float) -> float:
        return spread.half_width(float(np.exp(log_level))) - distance

    return float(np.exp(optimize.brentq(beyond, np.log(least), np.log(most), xtol=1e-6)))


def _quantile(level: float, df: int) -> float:
    return -float(special.stdtrit(df, level / 2))


def _end(outside: Callable[[float], float], value: float, side: int) -> float:
    """Where `outside` turns positive, on one side of `value`."""
    step = max(abs(value), 1e-3)
    while outside(value + side * step) <= 0:
        step *= 2
        if step > 1e12:
            return side * float("inf")
    ends = sorted((value, value + side * step))
    return float(optimize.brentq(outside, *ends))
