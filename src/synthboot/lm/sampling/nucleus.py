"""Top-p sampling of the next token, without sorting.

A token is drawn from the full softmax by inverse CDF and accepted if the mass of strictly likelier
tokens is below p, which gives exactly the truncated distribution. A request's random numbers depend
on its seed, the step and the try alone, so that no result depends on what else is in the batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from synthboot.kernels import decoding, library

TRIES = 2
"""Draws that one step may reject before the row waits for the next step."""

_LAST_TRY = 64
"""Tries after which the likeliest token is taken: the nucleus is that token, or hardly more."""


def sample_top_p(
    logits: Float[Tensor, "row vocab"],
    seeds: Int64[Tensor, " row"],
    steps: Int64[Tensor, " row"],
    tries: Int64[Tensor, " row"],
    temperature: float,
    top_p: float,
    absent: Int64[Tensor, " entry"] | None = None,
) -> tuple[Int64[Tensor, " row"], Float[Tensor, " row"], Bool[Tensor, " row"]]:
    """A token per row, its log-probability at temperature 1, and whether it was accepted.

    Where it was not, call again with `tries` larger by `TRIES`. What is accepted has exactly the
    top-p distribution at `temperature` (0: the likeliest token), from uniforms that depend on the
    row's seed, step and try alone. Entries that are `absent` are never drawn; log-probabilities are
    the model's own, them included. Nothing here waits for a GPU.
    """
    logits = logits.float()
    if absent is not None:
        # drawn from what is left, and then brought back to the model's own normalisation
        masked = logits.index_fill(1, absent, -torch.inf)
        token, logprob, accepted = sample_top_p(masked, seeds, steps, tries, temperature, top_p)
        correction = masked.logsumexp(1) - logits.logsumexp(1)
        return token, logprob + correction, accepted

    if library.available(logits.device.type):
        token, logprob = decoding.sample_top_p(
            logits.contiguous(), seeds, steps, temperature, top_p
        )
        return token, logprob, torch.ones_like(token, dtype=torch.bool)

    likeliest = logits.argmax(1)
    if temperature == 0:
        logprob = torch.log_softmax(logits, 1).gather(1, likeliest[:, None])[:, 0]
        return likeliest, logprob, torch.ones_like(likeliest, dtype=torch.bool)

    probabilities = torch.softmax(logits / temperature, 1)
    cumulative = probabilities.cumsum(1)
    accepted = tries >= _LAST_TRY
    chosen = likeliest
    for more in range(TRIES):
        # inverse CDF; scaled by the last sum, which rounding leaves a little off 1: (row, 1)
        u = uniforms(seeds, steps, tries + more)[:, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, u, right=True).clamp_(max=logits.shape[1] - 1)
        own = probabilities.gather(1, token)  # (row, 1)
        likelier = torch.where(probabilities > own, probabilities, 0.0).sum(1)

        chosen = torch.where(accepted, chosen, token[:, 0])
        # rounding may lead to an entry of no mass at all
        accepted = accepted | ((likelier < top_p) & (own[:, 0] > 0))

    # at temperature 1 the softmax is there already
    if temperature == 1.0:
        logprob = probabilities.gather(1, chosen[:, None])[:, 0].log()
    else:
        picked = logits.gather(1, chosen[:, None])[:, 0]
        logprob = picked - torch.logsumexp(logits, 1)
    return chosen, logprob, accepted


def uniforms(
    seeds: Int64[Tensor, " row"],
    steps: Int64[Tensor, " row"],
    tries: Int64[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """Uniform numbers in [0, 1), 24 bits each, by splitmix64 of (seed, step, try).

    Sums and products are modulo 2^64.
    """
    x = seeds + (steps * 64 + tries + 1) * signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * signed(0x94D049BB133111EB)
    x = x ^ _shifted(x, 31)
    return _shifted(x, 40).float() * 2**-24


def signed(x: int) -> int:
    """The signed 64-bit integer of the same bits: torch has no unsigned arithmetic."""
    return (x + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right, where torch's own fills up with the sign."""
    return (x >> bits) & (2 ** (64 - bits) - 1)
