"""The loops of a GPU, in Triton: one token of attention, a token drawn from logits, the loss.

Each is one pass over what torch goes over ten times or more, and takes the place of a compiled loop
of the CPU. Triton comes with torch where that is built for CUDA; `library.has_triton` says whether
it is there, and callers have torch's own operations.

Tests run them on a CPU, by Triton's interpreter, and compile them for cards that are not there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HEAD_DIMS = (32, 64, 128, 256)
"""Dimensions of a head that `attend` knows: half of one is a factor of a matmul."""

LEAST_GROUP = 16
"""Rows that a matmul of a GPU has at the least: heads that share keys are filled up to it."""

ENTRIES = 4_096
"""Entries of the vocabulary that are read at once."""


def attend(
    qkv: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    cosine: Tensor,
    sine: Tensor,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """One token of attention for every row, (row, head x dim).

    torch's own goes over the cache as far as the longest row reaches, with a mask. As
    `decoding.attend` on a CPU: queries and keys are normalized and rotated, the token
    appended to the cache, then attended from. `qkv` (row, head + 2 x kv_head, dim) holds queries,
    keys and values; `norms` the weights (dim) for queries and keys; `cosine`, `sine` (row, dim);
    `position` (row) where each row's token goes, which is not checked. `keys` and `values` are
    (row, kv_head, capacity, dim).
    """
    rows, kv_heads, capacity, dim = values.shape
    heads = qkv.shape[1] - 2 * kv_heads
    group = heads // kv_heads
    out = torch.empty(rows, heads * dim, dtype=qkv.dtype, device=qkv.device)
    q_norm, k_norm = (qkv, qkv) if norms is None else norms  # without norms they are not read
    _attend[rows, kv_heads](
        qkv,
        q_norm,
        k_norm,
        cosine,
        sine,
        position,
        keys,
        values,
        out,
        eps,
        dim**-0.5,
        capacity,
        kv_heads=kv_heads,
        group=group,
        padded_group=max(LEAST_GROUP, 1 << (group - 1).bit_length()),
        half=dim // 2,
        normed=norms is not None,
        block=positions_at_once(dim, keys.itemsize),
    )
    return out


def positions_at_once(head_dim: int, itemsize: int) -> int:
    """Positions of a cache that `attend` reads at once.

    Three times 16 KiB of keys and of values wait in shared memory, of which the smaller cards have
    99 KiB.
    """
    return min(64, 2**14 // (head_dim * itemsize))


def draw(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float,
    top_p: float,
) -> tuple[Tensor, Tensor]:
    """A token per row of `logits` (row, vocab) and its log-probability at temperature 1.

    It is the first that is accepted of those that `uniforms` (row, try; float32) lead to, the
    likeliest where none is. `temperature` is above 0. A logit that is not a number makes the
    log-probability none.
    """
    rows, vocab = logits.shape
    token = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprob = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _draw[rows,](
        logits,
        uniforms,
        token,
        logprob,
        1 / temperature,
        top_p,
        vocab,
        tries=uniforms.shape[1],
        block=ENTRIES,
        num_warps=8,
    )
    return token, logprob


def softmax_gradient(
    logits: Tensor,
    targets: Tensor,
    scale: float,
    z_loss: float,
) -> Tensor:
    """The sums of cross-entropy and of squared logsumexp, in nats, float64, (2).

    Turns logits (row, vocab; contiguous, of any precision) in place into the gradient of
    scale x (cross-entropy + z_loss x logsumexp squared).
    """
    rows, vocab = logits.shape
    by_row = torch.empty(2, rows, dtype=torch.float32, device=logits.device)
    _softmax_gradient[rows,](
        logits,
        targets,
        by_row[0],
        by_row[1],
        scale,
        z_loss,
        vocab,
        block=ENTRIES,
        num_warps=8,
    )
    return by_row.sum(1, dtype=torch.float64)


@triton.jit
def _halves(start, index, half: tl.constexpr):  # type: ignore[no-untyped-def]
    """Both halves of a head's numbers, which turn together."""
    first = tl.load(start + index)
    second = tl.load(start + index + half)
    return first.to(tl.float32), second.to(tl.float32)


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    qkv,
    q_norm,
    k_norm,
    cosine,
    sine,
    position,
    keys,
    values,
    out,
    eps,
    scale,
    capacity,
    kv_heads: tl.constexpr,
    group: tl.constexpr,
    padded_group: tl.constexpr,
    half: tl.constexpr,
    normed: tl.constexpr,
    block: tl.constexpr,
):
    """One row's heads that share keys: program (row, kv_head)."""
    dim: tl.constexpr = 2 * half
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    end = tl.load(position + row)
    kind = keys.dtype.element_ty

    of_half = tl.arange(0, half)
    of_dim = tl.arange(0, dim)
    of_group = tl.arange(0, padded_group)
    is_head = (of_group < group)[:, None]

    row_qkv = qkv + row * (kv_heads * (group + 2)) * dim
    head = kv_head * group + of_group
    q_start = row_qkv + head[:, None] * dim + of_half[None, :]  # (group, half)
    q1 = tl.load(q_start, is_head, 0.0).to(tl.float32)
    q2 = tl.load(q_start + half, is_head, 0.0).to(tl.float32)
    k_start = row_qkv + (kv_heads * group + kv_head) * dim
    k1, k2 = _halves(k_start, of_half, half)  # (half,)
    v_start = row_qkv + (kv_heads * (group + 1) + kv_head) * dim
    v = tl.load(v_start + of_dim)  # (dim,)

    if normed:
        weight1, weight2 = _halves(q_norm, of_half, half)
        q_square = tl.sum(q1 * q1 + q2 * q2, 1)
        q_scale = tl.rsqrt(q_square / dim + eps)[:, None]
        q1 = q1 * q_scale * weight1[None, :]
        q2 = q2 * q_scale * weight2[None, :]
        weight1, weight2 = _halves(k_norm, of_half, half)
        k_scale = tl.rsqrt(tl.sum(k1 * k1 + k2 * k2, 0) / dim + eps)
        k1 = k1 * k_scale * weight1
        k2 = k2 * k_scale * weight2

    # the two halves turn by the same angles
    cos = tl.load(cosine + row * dim + of_half).to(tl.float32)
    sin = tl.load(sine + row * dim + of_half).to(tl.float32)
    turned_q1 = ((q1 * cos - q2 * sin) * scale).to(kind)
    turned_q2 = ((q2 * cos + q1 * sin) * scale).to(kind)
    turned_k1 = (k1 * cos - k2 * sin).to(kind)
    turned_k2 = (k2 * cos + k1 * sin).to(kind)

    cache = (row * kv_heads + kv_head) * capacity * dim
    own = cache + end * dim
    tl.store(keys + own + of_half, turned_k1)
    tl.store(keys + own + half + of_half, turned_k2)
    tl.store(values + own + of_dim, v.to(kind))

    # the running softmax begins with the row's own token, which is not read back
    first = turned_q1.to(tl.float32) * turned_k1.to(tl.float32)
    second = turned_q2.to(tl.float32) * turned_k2.to(tl.float32)
    top = tl.sum(first + second, 1)  # (group,)
    mass = tl.full((padded_group,), 1.0, tl.float32)
    total = tl.zeros((padded_group, dim), tl.float32) + v.to(tl.float32)[None, :]

    for start in range(0, end, block):
        at = start + tl.arange(0, block)
        is_before = at < end
        k_at = keys + cache + at[None, :] * dim + of_half[:, None]  # (half, block)
        past_k1 = tl.load(k_at, is_before[None, :], 0.0)
        past_k2 = tl.load(k_at + half, is_before[None, :], 0.0)
        scores = tl.dot(turned_q1, past_k1, input_precision="ieee")
        scores += tl.dot(turned_q2, past_k2, input_precision="ieee")
        scores = tl.where(is_before[None, :], scores, float("-inf"))  # (group, block)

        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - new_top)
        weight = tl.exp(scores - new_top[:, None])
        v_at = values + cache + at[:, None] * dim + of_dim[None, :]  # (block, dim)
        past_v = tl.load(v_at, is_before[:, None], 0.0)
        seen = tl.dot(weight.to(kind), past_v, input_precision="ieee")
        total = total * shrink[:, None] + seen
        mass = mass * shrink + tl.sum(weight, 1)
        top = new_top

    attended = total / mass[:, None]
    o_at = out + (row * kv_heads * group + head[:, None]) * dim + of_dim[None, :]
    tl.store(o_at, attended.to(out.dtype.element_ty), is_head)


@triton.jit
def _draw(  # type: ignore[no-untyped-def]
    logits,
    uniforms,
    token,
    logprob,
    coldness,
    top_p,
    vocab,
    tries: tl.constexpr,
    block: tl.constexpr,
):
    """One row: program (row)."""
    row = tl.program_id(0).to(tl.int64)
    numbers = logits + row * vocab
    of_block = tl.arange(0, block)

    top = tl.full((), float("-inf"), tl.float32)
    likeliest = tl.full((), 0, tl.int32)
    for start in range(0, vocab, block):
        entry = start + of_block
        x = tl.load(numbers + entry, entry < vocab, float("-inf")).to(tl.float32)
        here = tl.max(x, 0)
        likeliest = tl.where(here > top, start + tl.argmax(x, 0), likeliest)
        top = tl.maximum(top, here)

    mass = tl.full((), 0.0, tl.float32)  # at the temperature asked for
    plain_mass = tl.full((), 0.0, tl.float32)  # at 1
    for start in range(0, vocab, block):
        entry = start + of_block
        x = tl.load(numbers + entry, entry < vocab, float("-inf")).to(tl.float32)
        mass += tl.sum(tl.exp((x - top) * coldness), 0)
        plain_mass += tl.sum(tl.exp(x - top), 0)

    accepted = tl.full((), 0, tl.int32)
    chosen = likeliest
    number = tl.full((), 0, tl.int32)
    while (accepted == 0) & (number < tries):
        wanted = tl.load(uniforms + row * tries + number) * mass

        # the first entry at which the running sum is above what is wanted
        drawn = tl.full((), 0, tl.int32) + vocab
        sum_before = tl.full((), 0.0, tl.float32)
        start = tl.full((), 0, tl.int32)
        while (start < vocab) & (drawn == vocab):
            entry = start + of_block
            x = tl.load(numbers + entry, entry < vocab, float("-inf")).to(tl.float32)
            part = tl.exp((x - top) * coldness)
            running = sum_before + tl.cumsum(part, 0)
            is_above = (running > wanted) & (entry < vocab)
            drawn = tl.min(tl.where(is_above, entry, vocab), 0)
            sum_before += tl.sum(part, 0)
            start += block
        drawn = tl.minimum(drawn, vocab - 1)  # rounding may leave the whole sum below

        own = tl.load(numbers + drawn).to(tl.float32)
        likelier = tl.full((), 0.0, tl.float32)
        for first in range(0, vocab, block):
            entry = first + of_block
            x = tl.load(numbers + entry, entry < vocab, float("-inf")).to(tl.float32)
            part = tl.exp((x - top) * coldness)
            likelier += tl.sum(tl.where(x > own, part, 0.0), 0)
        # rounding may lead to an entry of no mass at all
        has_mass = tl.exp((own - top) * coldness) > 0
        accepted = ((likelier < top_p * mass) & has_mass).to(tl.int32)
        chosen = tl.where(accepted == 1, drawn, likeliest)
        number += 1

    picked = tl.load(numbers + chosen).to(tl.float32)
    tl.store(token + row, chosen.to(tl.int64))
    tl.store(logprob + row, picked - top - tl.log(plain_mass))


@triton.jit
def _softmax_gradient(  # type: ignore[no-untyped-def]
    logits,
    targets,
    cross_entropy,
    square,
    scale,
    z_loss,
    vocab,
    block: tl.constexpr,
):
    """One row: program (row)."""
    row = tl.program_id(0).to(tl.int64)
    numbers = logits + row * vocab
    target = tl.load(targets + row)
    of_target = tl.load(numbers + target).to(tl.float32)  # before it is overwritten
    of_block = tl.arange(0, block)

    top = tl.full((), float("-inf"), tl.float32)
    mass = tl.full((), 0.0, tl.float32)
    for start in range(0, vocab, block):
        entry = start + of_block
        x = tl.load(numbers + entry, entry < vocab, float("-inf")).to(tl.float32)
        new_top = tl.maximum(top, tl.max(x, 0))
        mass = mass * tl.exp(top - new_top) + tl.sum(tl.exp(x - new_top), 0)
        top = new_top
    lse = top + tl.log(mass)
    tl.store(cross_entropy + row, lse - of_target)
    tl.store(square + row, lse * lse)

    # d cross-entropy = softmax - one-hot; d lse^2 = 2 lse softmax
    weight = scale * (1 + 2 * z_loss * lse)
    for start in range(0, vocab, block):
        entry = start + of_block
        x = tl.load(numbers + entry, entry < vocab, float("-inf")).to(tl.float32)
        gradient = weight * tl.exp(x - lse)
        gradient -= tl.where(entry == target, scale, 0.0)
        tl.store(numbers + entry, gradient.to(logits.dtype.element_ty), entry < vocab)
