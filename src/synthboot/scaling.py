"""A power law with an offset through measured losses: loss = offset + factor * x^-exponent.

For a given exponent the other two follow from least squares, none of them below zero; so the search
is over the exponent alone, and finds the best one there is.

Source: the form, Kaplan et al. 2020 (arXiv:2001.08361) and Hoffmann et al. 2022 (arXiv:2203.15556);
eliminating what is linear, Golub and Pereyra 1973.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import optimize

LEAST_POINTS = 4
"""Of different x: three parameters go through any three, and one more has to agree with them."""

_EXPONENTS = (1e-2, 4.0)
_TRIED = 60


@dataclass(frozen=True)
class PowerLaw:
    """The law, and how far the measured losses lie from it (root of the mean square, in nats)."""

    offset: float
    factor: float
    exponent: float
    residual: float

    def at(self, x: Float64[np.ndarray, " point"]) -> Float64[np.ndarray, " point"]:
        """The loss at each x."""
        return self.offset + self.factor * x**-self.exponent


def fit(x: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The power law of least squares, all points weighing the same.

    Raises ValueError, saying why, where the points do not determine one.
    """
    points = np.array(x, np.float64)
    measured = np.array(losses, np.float64)
    different = len(set(points.tolist()))
    if different < LEAST_POINTS:
        raise ValueError(
            f"{different} different values, and a power law with an offset takes {LEAST_POINTS}"
        )
    if points.min() <= 0:
        raise ValueError("a power law takes values above zero")

    unit = float(np.exp(np.log(points).mean()))  # so that powers are near one

    def best(log_exponent: float) -> tuple[np.ndarray, float]:
        """Offset and factor for an exponent, and the distance that they leave."""
        powers = (points / unit) ** -np.exp(log_exponent)
        design = np.stack((np.ones_like(powers), powers), axis=1)  # (point, parameter)
        parameters, distance = optimize.nnls(design, measured)
        return parameters, float(distance)

    low, high = np.log(_EXPONENTS)
    tried = np.linspace(low, high, _TRIED)
    nearest = int(np.argmin([best(exponent)[1] for exponent in tried]))
    around = (tried[max(0, nearest - 1)], tried[min(_TRIED - 1, nearest + 1)])
    found = optimize.minimize_scalar(lambda e: best(e)[1], bounds=around, method="bounded")
    (offset, factor), distance = best(float(found.x))

    if factor <= 0:
        raise ValueError("the losses do not fall")
    if nearest in (0, _TRIED - 1):
        raise ValueError("the losses do not bend as a power law does")
    exponent = float(np.exp(found.x))
    return PowerLaw(
        offset=float(offset),
        factor=float(factor * unit**exponent),
        exponent=exponent,
        residual=float(distance / np.sqrt(len(points))),
    )
