"""A judge's own error, and what a rate is worth that it has found.

With q0 the share of clean cases that a judge lets pass (specificity), q1 the share of faulty ones
that it finds (sensitivity) and p the share of texts that it calls faulty, the true share is

    theta = (p + q0 - 1) / (q0 + q1 - 1)

The interval is by the delta method and carries the error of p, q0 and q1 alike. Counts are adjusted
before, p by z^2 / 2 in z^2, q0 and q1 by 1 in 2, as the plain Wald interval is too narrow near 0
and 1, where these rates lie.

Source: Rogan and Gladen 1978; the interval, Lang and Reiczigel 2014 (doi:10.1016/
j.prevetmed.2013.09.015); both for judges, arXiv:2511.21140. Wilson 1927 for q0 and q1 themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import special

from synthboot.errors import below
from synthboot.statistics import Interval

LEAST_SKILL = 1.2
"""Least q0 + q1 of a judge whose rates are given; guessing has 1."""
LEAST_CASES = 20
"""Least clean and least faulty cases by which a judge is believed."""

_Z = float(special.ndtri(0.975))
"""Standard errors to either side in an interval of 95 %."""


@dataclass(frozen=True)
class ErrorRates:
    """How many of the `clean` cases were let pass, and how many of the `faulty` ones found."""

    passed: int
    clean: int
    found: int
    faulty: int

    @property
    def specificity(self) -> Interval:
        """q0, with Wilson's interval."""
        return share(self.passed, self.clean)

    @property
    def sensitivity(self) -> Interval:
        """q1, with Wilson's interval."""
        return share(self.found, self.faulty)

    @property
    def refusal(self) -> str:
        """Why no rate by this judge is given; empty where there is no reason."""
        if min(self.clean, self.faulty) < LEAST_CASES:
            return f"{self.clean} clean and {self.faulty} faulty cases, {LEAST_CASES} are needed"
        skill = self.passed / self.clean + self.found / self.faulty
        if skill < LEAST_SKILL:
            shown = below(skill, LEAST_SKILL, digits=2)
            return f"q0 + q1 = {shown}, guessing has 1, {LEAST_SKILL} is needed"
        return ""

    def corrected(self, judged: int, items: int) -> Interval | None:
        """The true share of faulty items where `judged` of `items` were called faulty, in [0, 1].

        None where there is a `refusal`, or no items.
        """
        if self.refusal or not items:
            return None
        value = _true_share(judged / items, self.passed / self.clean, self.found / self.faulty)

        # the interval is that of the adjusted counts
        z = _Z
        p = _adjusted(judged, items, z**2 / 2)
        q0 = _adjusted(self.passed, self.clean, 1)
        q1 = _adjusted(self.found, self.faulty, 1)
        theta = _true_share(p.share, q0.share, q1.share)

        # by the derivatives of theta, each of them times q0 + q1 - 1: 1, 1 - theta and -theta
        variance = p.variance + (1 - theta) ** 2 * q0.variance + theta**2 * q1.variance
        half_width = z * math.sqrt(variance) / (q0.share + q1.share - 1)

        # what the adjustment has moved the middle by, moved back
        middle = theta + 2 * z**2 * (theta * q1.variance - (1 - theta) * q0.variance)
        return _interval(value, middle, half_width)


class _Adjusted(NamedTuple):
    """A share of adjusted counts, and the variance of it."""

    share: float
    variance: float


def _adjusted(count: int, of: int, added: float) -> _Adjusted:
    """A share to whose counts so many were added of either kind, those that count and others."""
    total = of + 2 * added
    share = (count + added) / total
    return _Adjusted(share, variance=share * (1 - share) / total)


def _true_share(p: float, q0: float, q1: float) -> float:
    """The true share theta, in [0, 1]: noise alone would take it beyond."""
    return _as_share((p + q0 - 1) / (q0 + q1 - 1))


def _as_share(value: float) -> float:
    """The nearest value in [0, 1]."""
    return min(1.0, max(0.0, value))


def _interval(value: float, middle: float, half_width: float) -> Interval:
    """A share and the ends of its interval, in [0, 1]."""
    return Interval(
        value,
        low=_as_share(middle - half_width),
        high=_as_share(middle + half_width),
    )


def share(count: int, of: int) -> Interval:
    """A share of so many, with Wilson's interval; of nothing, anything is possible."""
    if not of:
        return Interval(math.nan, 0.0, 1.0)
    z = _Z
    p = count / of
    middle = (count + z**2 / 2) / (of + z**2)
    variance = p * (1 - p) / of + z**2 / (4 * of**2)
    half_width = z / (1 + z**2 / of) * math.sqrt(variance)
    return _interval(p, middle, half_width)


def threshold(
    clean: Float[np.ndarray, " clean"],
    faulty: Float[np.ndarray, " faulty"],
) -> float:
    """The score above which a text is called faulty: where q0 + q1 is most, of several such the
    middle one; infinity where nothing is to be told apart."""
    values = np.unique(np.concatenate((clean, faulty)))
    if not len(clean) or not len(faulty) or len(values) < 2:
        return math.inf
    limits = (values[1:] + values[:-1]) / 2  # halfway between neighbours

    # of sorted scores, as many lie below a limit as stand before its place
    q0 = np.searchsorted(np.sort(clean), limits) / len(clean)
    q1 = 1 - np.searchsorted(np.sort(faulty), limits) / len(faulty)
    skill = q0 + q1
    best = np.flatnonzero(np.isclose(skill, skill.max()))
    middle = best[len(best) // 2]
    return float(limits[middle])


def kappa(first: Bool[np.ndarray, " item"], second: Bool[np.ndarray, " item"]) -> float | None:
    """Cohen's kappa of two passes over the same items; None where both say the same of all.

    Source: Cohen 1960.
    """
    if not len(first):
        return None
    agreed = float((first == second).mean())
    both_faulty = float(first.mean() * second.mean())
    both_clean = float((1 - first.mean()) * (1 - second.mean()))
    by_chance = both_faulty + both_clean
    if by_chance == 1:
        return None
    return (agreed - by_chance) / (1 - by_chance)


def measured(
    clean: Sequence[float],
    faulty: Sequence[float],
    limit: float,
) -> ErrorRates:
    """The error of a judge on cases that are known, by the scores that it gave them."""
    return ErrorRates(
        passed=int(sum(score <= limit for score in clean)),
        clean=len(clean),
        found=int(sum(score > limit for score in faulty)),
        faulty=len(faulty),
    )
