"""The loop of the overlap of pairs: the share of runs of tokens that two texts have in common."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int32, Int64

from synthboot.kernels.library import Argument, array, call

Texts = tuple[Int32[np.ndarray, " _"], Int64[np.ndarray, " _"]]
"""Texts end to end, and their bounds: text i is `tokens[bounds[i]:bounds[i + 1]]`."""


def containments(
    a: Texts,
    b: Texts,
    x: Int64[np.ndarray, " pair"],
    y: Int64[np.ndarray, " pair"],
    n: int,
) -> Float64[np.ndarray, " pair"]:
    """Of the different runs of `n` tokens of texts `a[x[i]]` and `b[y[i]]`, the share of the
    smaller set that the other also holds.

    Where a text has fewer tokens, runs as long as the shorter one are compared; with a text of no
    tokens it is 0. Fastest where equal `x` follow each other. Raises IndexError for a text that is
    not there.
    """
    import torch

    shares = torch.empty(len(x), dtype=torch.float64)
    accepted = call(
        "containments",
        *_arguments("a", a),
        *_arguments("b", b),
        len(x),
        array("x", torch.from_numpy(x), (len(y),), torch.int64),
        array("y", torch.from_numpy(y), (len(x),), torch.int64),
        n,
        array("shares", shares, (len(x),), torch.float64),
    )
    if not accepted:
        raise IndexError("x or y names no text")
    return shares.numpy()


def _arguments(name: str, texts: Texts) -> tuple[Argument, ...]:
    """Raises ValueError where the bounds are not those of the tokens."""
    import torch

    tokens, bounds = texts
    if bounds[0] != 0 or bounds[-1] != len(tokens) or (np.diff(bounds) < 0).any():
        raise ValueError(f"{name}: the bounds do not fit its {len(tokens)} tokens")
    return (
        array(name, torch.from_numpy(tokens), (len(tokens),), torch.int32),
        array(f"bounds of {name}", torch.from_numpy(bounds), (len(bounds),), torch.int64),
        len(bounds) - 1,
    )
