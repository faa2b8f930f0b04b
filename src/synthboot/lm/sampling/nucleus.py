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


Draw = tuple[Int64[Tensor, " row"], Float[Tensor, " row"], Bool[Tensor, " row"]]
"""A token per row, its log-probability at temperature 1, and whether it was accepted."""


def sample_top_p(
    logits: Float[Tensor, "row vocab"],
    seeds: Int64[Tensor, " row"],
    steps: Int64[Tensor, " row"],
    tries: Int64[Tensor, " row"],
    temperature: float,
    top_p: float,
    absent: Int64[Tensor, " entry"] | None = None,
) -> Draw:
    """A token per row, its log-probability at temperature 1, and whether it was accepted.

    Where it was not, call again with `tries` larger by `TRIES`. What is accepted has exactly the
    top-p distribution at `temperature` (0: the likeliest token), from uniforms that depend on the
    row's seed, step and try alone. Entries that are `absent` are never drawn; log-probabilities are
    the model's own, them included. Nothing here waits for a GPU.
    """
    logits = logits.float()
    if absent is not None:
        # drawn from what is left, and then brought back to the model's own normalisation
        left = logits.index_fill(1, absent, -torch.inf)
        token, logprob, accepted = sample_top_p(left, seeds, steps, tries, temperature, top_p)
        correction = left.logsumexp(1) - logits.logsumexp(1)
        return token, logprob + correction, accepted

    if library.available(logits.device.type):
        rows = logits.contiguous()
        token, logprob = decoding.sample_top_p(rows, seeds, steps, temperature, top_p)
        return token, logprob, _all_true(token)

    if temperature and library.has_triton(logits.device.type):
        from synthboot.kernels import gpu

        numbers = torch.arange(_LAST_TRY, device=logits.device)
        all_tries = uniforms(seeds[:, None], steps[:, None], numbers)  # (row, try)
        token, logprob = gpu.draw(logits.contiguous(), all_tries, temperature, top_p)
        return token, logprob, _all_true(token)

    likeliest = logits.argmax(1)
    if temperature == 0:
        logprobs = torch.log_softmax(logits, 1)
        return likeliest, _picked(logprobs, likeliest), _all_true(likeliest)

    probabilities = torch.softmax(logits / temperature, 1)
    chosen, accepted = _draw(probabilities, likeliest, seeds, steps, tries, top_p)
    if temperature == 1.0:  # the softmax is there already
        logprob = _picked(probabilities, chosen).log()
    else:
        logprob = _picked(logits, chosen) - torch.logsumexp(logits, 1)
    return chosen, logprob, accepted


def _draw(
    probabilities: Tensor,
    likeliest: Tensor,
    seeds: Tensor,
    steps: Tensor,
    tries: Tensor,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """Tokens (row) by a few tries at once, and which of them are accepted (row).

    probabilities  [ 0.10 | 0.60 | 0.05 | 0.25 ]   u = 0.72 lies in the third token's part
    cumulative     [ 0.10 | 0.70 | 0.75 | 1.00 ]   of the sums
    likelier than the third: 0.10 + 0.60 + 0.25 = 0.95, not below top_p 0.9: rejected
    """
    cumulative = probabilities.cumsum(1)  # (row, vocab)
    total = cumulative[:, -1:]  # (row, 1), which rounding leaves a little off 1
    last_token = probabilities.shape[1] - 1
    # a row that was rejected too often takes its likeliest token, whatever it draws now
    accepted = tries >= _LAST_TRY
    chosen = likeliest
    for more in range(TRIES):
        u = uniforms(seeds, steps, tries + more)[:, None] * total  # (row, 1)
        token = torch.searchsorted(cumulative, u, right=True)  # (row, 1)
        token = token.clamp_(max=last_token)
        own = probabilities.gather(1, token)  # (row, 1)
        is_likelier = probabilities > own
        likelier = torch.where(is_likelier, probabilities, 0.0).sum(1)  # (row,)

        chosen = torch.where(accepted, chosen, token[:, 0])
        # rounding may lead to an entry of no mass at all
        has_mass = own[:, 0] > 0
        in_nucleus = (likelier < top_p) & has_mass
        accepted = accepted | in_nucleus
    return chosen, accepted


def _picked(values: Tensor, token: Tensor) -> Tensor:
    """The value of each row's token: (row, vocab) and (row) -> (row)."""
    column = token[:, None]
    return values.gather(1, column)[:, 0]


def _all_true(token: Tensor) -> Tensor:
    return torch.ones_like(token, dtype=torch.bool)


def uniforms(
    seeds: Int64[Tensor, "*#row"],
    steps: Int64[Tensor, "*#row"],
    tries: Int64[Tensor, "*#row"],
) -> Float[Tensor, "*row"]:
    """Uniform numbers in [0, 1), 24 bits each, by splitmix64 of (seed, step, try).

    Shapes are those of any tensors that go together. Sums and products are modulo 2^64.
    """
    stream = steps * 64 + tries + 1  # a step has 64 tries at most
    x = seeds + stream * signed(0x9E3779B97F4A7C15)
    x ^= _shifted(x, 30)
    x *= signed(0xBF58476D1CE4E5B9)
    x ^= _shifted(x, 27)
    x *= signed(0x94D049BB133111EB)
    x ^= _shifted(x, 31)
    return _shifted(x, 40).float() * 2**-24


def signed(x: int) -> int:
    """The signed 64-bit integer of the same bits: torch has no unsigned arithmetic."""
    return (x + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right, where torch's own fills up with the sign."""
    kept = 2 ** (64 - bits) - 1
    return (x >> bits) & kept
