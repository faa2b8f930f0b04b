"""Power laws are found again where they are, and refused where the points do not say one."""

import numpy as np
import pytest

from synthboot import scaling


@pytest.mark.parametrize(("offset", "factor", "exponent"), [(1.7, 400.0, 0.34), (0.0, 9.0, 0.08), (2.5, 3e6, 1.2)])
def test_a_law_is_found_again(offset: float, factor: float, exponent: float) -> None:
    x = [2e4, 1e5, 4e5, 1.5e6, 6e6]
    losses = [offset + factor * tokens**-exponent for tokens in x]
    found = scaling.fit(x, losses)
    assert found.exponent == pytest.approx(exponent, rel=0.02)
    assert found.offset == pytest.approx(offset, abs=0.02)
    assert found.at(np.array([3e5]))[0] == pytest.approx(offset + factor * 3e5**-exponent, abs=1e-3)
    assert found.residual < 1e-3


def test_no_other_law_lies_nearer() -> None:
    rng = np.random.default_rng(0)
    x = np.geomspace(1e4, 1e7, 8)
    losses = 2 + 50 * x**-0.3 + rng.normal(0, 0.02, len(x))
    found = scaling.fit(x.tolist(), losses.tolist())
    least = np.sqrt(np.mean((found.at(x) - losses) ** 2))
    assert found.residual == pytest.approx(least)
    for exponent in np.linspace(0.05, 2, 400):
        design = np.stack((np.ones_like(x), x**-exponent), axis=1)
        solved, *_ = np.linalg.lstsq(design, losses, rcond=None)
        if (solved >= 0).all():
            assert least <= np.sqrt(np.mean((design @ solved - losses) ** 2)) + 1e-9


@pytest.mark.parametrize(
    ("x", "losses", "why"),
    [
        ([1, 2, 3], [3, 2, 1.5], "3 different values, and a power law with an offset takes 4"),
        ([1, 2, 3, 3, 3], [3, 2, 1.5, 1.4, 1.6], "3 different values"),
        ([0, 1, 2, 3], [4, 3, 2, 1.5], "above zero"),
        ([1, 2, 4, 8], [1, 2, 3, 4], "do not fall"),
        ([1, 10, 100, 1000], [6, 5.99, 5.98, 5.97], "do not bend"),
        ([1, 10, 100, 1000], [9, 3, 3, 3], "do not bend"),
    ],
)
def test_what_the_points_do_not_say_is_refused(x: list[float], losses: list[float], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        scaling.fit(x, losses)
