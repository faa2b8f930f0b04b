"""A Llama or Qwen3 model as two functions over its weights and a cache: prefill and step.

The step's attention (norms, rotation, cache write, softmax) is one call where there is one for the
device: a compiled loop on a CPU, a Triton kernel on a GPU; matmuls are torch's. bfloat16 weights
halve what is read and, on some CPUs, more than halve the time of a matmul.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from synthboot.kernels import decoding, library, training
from synthboot.kernels.decoding import BLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
}

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer."""

_Turn = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary angles."""

_Attention = Callable[..., Tensor]
"""One token of attention for every row, all but the matmuls before and after it."""


class Decoder:
    """The weights of a Llama or Qwen3 model, and what the two functions share."""

    def __init__(self, model: PreTrainedModel, dtype: str = "auto") -> None:
        cfg = model.config
        inner = model.model
        self.device = next(model.parameters()).device
        kind = self.device.type
        usual = torch.bfloat16 if kind == "cuda" else torch.float32
        self.matrices = DTYPES[dtype] or usual
        self.dtype = self.matrices
        if kind == "cpu":
            # activations stay float32: the weights are most of what a step reads
            self.dtype = torch.float32

        self.vocab_size = cfg.vocab_size
        self.eps = cfg.rms_norm_eps
        self.heads = cfg.num_attention_heads
        self.kv_heads = cfg.num_key_value_heads
        self.all_heads = self.heads + 2 * self.kv_heads  # queries, keys and values, joined
        # not every Llama configuration names it
        named = getattr(cfg, "head_dim", None)
        self.head_dim = named or cfg.hidden_size // self.heads
        self.has_loops = library.available(kind)
        self.attend = _attention(kind, self.head_dim)
        # the compiled loop reads the keys of sixteen positions side by side
        self.in_blocks = self.attend is decoding.attend

        def cast(weight: Tensor) -> Tensor:
            is_matrix = weight.dim() > 1
            dtype = self.matrices if is_matrix else self.dtype
            return weight.detach().to(dtype).contiguous()

        self.embedding = cast(inner.embed_tokens.weight)
        self.head = cast(model.lm_head.weight)
        self.norm = cast(inner.norm.weight)
        self.layers = [_Layer(layer, cast) for layer in inner.layers]

        # the two halves of a head turn by the same angles: (head_dim)
        dims = torch.arange(0, self.head_dim, 2, dtype=torch.float32)
        theta = cfg.rope_parameters["rope_theta"]
        frequency = 1.0 / theta ** (dims / self.head_dim)  # (head_dim / 2)
        both_halves = torch.cat((frequency, frequency))
        self.frequency = both_halves.to(self.device)

    def cache(self, rows: int, max_len: int) -> Cache:
        """An empty cache: keys and values of every layer, (row, head, position, dim).

        For the compiled loop keys are (row, head, block, dim, 16), sixteen positions side by side.
        """
        max_len = _whole_blocks(max_len)
        value_shape = (rows, self.kv_heads, max_len, self.head_dim)
        key_shape: tuple[int, ...] = value_shape
        if self.in_blocks:
            key_shape = (
                rows,
                self.kv_heads,
                max_len // BLOCK,
                self.head_dim,
                BLOCK,
            )

        empty = partial(
            torch.zeros,
            dtype=self._cache_dtype(),
            device=self.device,
        )
        return [(empty(key_shape), empty(value_shape)) for _ in self.layers]

    def cache_bytes(self, rows: int, max_len: int) -> int:
        """What `cache` takes."""
        positions = rows * _whole_blocks(max_len)
        keys = positions * self.kv_heads * self.head_dim
        of_layer = 2 * keys  # and as many values
        numbers = len(self.layers) * of_layer
        return numbers * self._cache_dtype().itemsize

    def _cache_dtype(self) -> torch.dtype:
        # torch's own attention wants queries, keys and values of one dtype
        return self.matrices if self.in_blocks else self.dtype

    def free_memory(self) -> int:
        """Bytes that this process may count on.

        Of a GPU what is free, of a machine what is free for one core.
        """
        if self.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self.device)
            return int(free)
        pages = os.sysconf("SC_AVPHYS_PAGES")
        free = pages * os.sysconf("SC_PAGE_SIZE")
        # other workers count on theirs
        cores = os.cpu_count() or 1
        return free // cores

    def prefill(
        self,
        tokens: Int64[Tensor, "row token"],
        rows: Int64[Tensor, " row"],
        cache: Cache,
    ) -> None:
        """Fill cache rows `rows` with right-padded prompts."""
        width = tokens.shape[1]
        turn = self._rope(self._numbers(width))  # (token, head_dim) each
        hidden = self._embed(tokens)  # (row, token, width)
        for layer, (keys, values) in self._with_layers(cache):
            q, k, v = self._qkv(layer, hidden, turn)
            self._store(keys, rows, k)
            values[rows, :, :width] = v.to(values.dtype)
            if layer is self.layers[-1]:
                return  # nothing asks what these tokens predict
            attended = functional.scaled_dot_product_attention(
                q,
                k,
                v,
                is_causal=True,
                enable_gqa=self.heads != self.kv_heads,
            )
            # (row, head, token, dim) -> (row, token, head x dim)
            joined = attended.transpose(1, 2).flatten(2)
            hidden = self._rest(layer, hidden, joined)

    def step(
        self,
        tokens: Int64[Tensor, " row"],
        position: Int64[Tensor, " row"],
        cache: Cache,
        span: int,
    ) -> Float[Tensor, "row vocab"]:
        """The logits of what follows, after one more token per row at its position.

        Positions are below `span`. The heads of a query that share keys are taken as queries of one
        head.
        """
        if self.attend is not None:
            return self._step_at_once(self.attend, tokens, position, cache)
        # one token a row, at a position of its own: (row, head, token, head_dim)
        turn = self._rope(position[:, None, None])
        visible = self._numbers(span) <= position[:, None]
        mask = visible[:, None, None]  # (row, kv_head, group, span)
        rows = self._numbers(len(tokens))
        hidden = self._embed(tokens)[:, None]  # (row, 1, width)

        for layer, (keys, values) in self._with_layers(cache):
            q, k, v = self._qkv(layer, hidden, turn)
            # each row at a position of its own: (row, kv_head, head_dim)
            keys[rows, :, position] = k[:, :, 0]
            values[rows, :, position] = v[:, :, 0]
            # (row, head, 1, head_dim) -> (row, kv_head, group, head_dim)
            grouped = q[:, :, 0].unflatten(1, (self.kv_heads, -1))
            attended = functional.scaled_dot_product_attention(
                grouped,
                keys[:, :, :span],
                values[:, :, :span],
                attn_mask=mask,
            )
            # (row, kv_head, group, head_dim) -> (row, 1, width)
            joined = attended.flatten(1)[:, None]
            hidden = self._rest(layer, hidden, joined)
        return self._logits(hidden[:, 0])

    def _step_at_once(
        self,
        attend: _Attention,
        tokens: Tensor,
        position: Tensor,
        cache: Cache,
    ) -> Tensor:
        """`step`, with all of a layer's attention but the matmuls in one call."""
        cos, sin = self._rope(position)  # (row, head_dim) each
        hidden = self._embed(tokens)  # (row, width)
        shape = (len(tokens), self.all_heads, self.head_dim)
        for layer, (keys, values) in self._with_layers(cache):
            normed = self._rms(hidden, layer.input_norm)
            # (row, (head + 2 x kv_head) x head_dim) -> (row, head + 2 x kv_head, head_dim)
            qkv = _linear(normed, layer.qkv).view(shape)
            attended = attend(
                qkv,
                layer.qk_norms,
                self.eps,
                cos,
                sin,
                position,
                keys,
                values,
            )
            hidden = self._rest(layer, hidden, attended)
        return self._logits(hidden)

    def _store(
        self,
        keys: Tensor,
        rows: Tensor,
        k: Tensor,
    ) -> None:
        """Put the keys (row, head, token, dim) of prompts into cache rows."""
        width = k.shape[2]
        if not self.in_blocks:
            keys[rows, :, :width] = k
            return
        # (row, head, token, dim) -> (row, head, block, 16, dim) -> (row, head, block, dim, 16)
        missing = -width % BLOCK
        padded = functional.pad(k, (0, 0, 0, missing))
        blocks = padded.unflatten(2, (-1, BLOCK))
        turned = blocks.transpose(3, 4)
        count = turned.shape[2]
        keys[rows, :, :count] = turned.to(keys.dtype)

    def _with_layers(self, cache: Cache) -> Iterable[tuple[_Layer, tuple[Tensor, Tensor]]]:
        return zip(self.layers, cache, strict=True)

    def _numbers(self, count: int) -> Tensor:
        return torch.arange(count, device=self.device)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self.embedding[tokens].to(self.dtype)

    def _rope(self, position: Tensor) -> _Turn:
        """Cosine and sine of the rotary angles, (..., head_dim)."""
        angle = position[..., None].float() * self.frequency
        cos = angle.cos().to(self.dtype)
        sin = angle.sin().to(self.dtype)
        return cos, sin

    def _qkv(
        self,
        layer: _Layer,
        hidden: Tensor,
        turn: _Turn,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (row, head, token, head_dim), in their positions."""
        rows, width, _ = hidden.shape
        normed = self._rms(hidden, layer.input_norm)
        joined = _linear(normed, layer.qkv)
        # -> (row, token, head + 2 x kv_head, head_dim)
        heads = joined.view(rows, width, self.all_heads, self.head_dim)
        counts = (self.heads, self.kv_heads, self.kv_heads)
        q, k, v = heads.split(counts, dim=2)

        if layer.qk_norms is not None:
            q_norm, k_norm = layer.qk_norms
            q = self._rms(q, q_norm)
            k = self._rms(k, k_norm)
        # (row, token, head, head_dim) -> (row, head, token, head_dim)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return _rotate(q, turn), _rotate(k, turn), v

    def _rest(
        self,
        layer: _Layer,
        hidden: Tensor,
        attended: Tensor,
    ) -> Tensor:
        """A block's output, from its input and what attention made of it."""
        hidden = hidden + _linear(attended, layer.output)
        normed = self._rms(hidden, layer.post_norm)
        both = _linear(normed, layer.gate_up)
        return hidden + _linear(self._gate(both), layer.down)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        if not self.has_loops:
            return functional.rms_norm(x, x.shape[-1:], weight, self.eps)
        rows = x.reshape(-1, x.shape[-1]).contiguous()  # (..., dim) -> (row, dim)
        normed, _ = training.rms_norm(rows, weight, self.eps)
        return normed.view(x.shape)

    def _gate(self, both: Tensor) -> Tensor:
        """silu(gate) x value, (..., dim), of both side by side, (..., 2 x dim)."""
        if not self.has_loops:
            gate, value = both.chunk(2, dim=-1)
            return functional.silu(gate) * value
        rows = both.flatten(0, -2)  # (..., 2 x dim) -> (row, 2 x dim)
        return decoding.silu_gate(rows).view(*both.shape[:-1], -1)

    def _logits(self, hidden: Tensor) -> Tensor:
        normed = self._rms(hidden, self.norm)
        return _linear(normed, self.head).float()


def _attention(device: str, head_dim: int) -> _Attention | None:
    """The attention of a step as one call, where there is one for such heads on the device."""
    if library.available(device) and head_dim in decoding.HEAD_DIMS:
        return decoding.attend
    if library.has_triton(device):
        from synthboot.kernels import gpu

        if head_dim in gpu.HEAD_DIMS:
            return gpu.attend
    return None


class _Layer:
    """One block's weights, those that multiply the same input joined into one matrix."""

    def __init__(
        self,
        layer: Any,
        cast: Callable[[Tensor], Tensor],
    ) -> None:
        attention = layer.self_attn
        mlp = layer.mlp
        q = cast(attention.q_proj.weight)
        k = cast(attention.k_proj.weight)
        v = cast(attention.v_proj.weight)
        self.qkv = torch.cat([q, k, v])
        self.qk_norms: tuple[Tensor, Tensor] | None = None
        if hasattr(attention, "q_norm"):  # Qwen3 has them, Llama has not
            q_norm = cast(attention.q_norm.weight)
            k_norm = cast(attention.k_norm.weight)
            self.qk_norms = (q_norm, k_norm)
        self.output = cast(attention.o_proj.weight)

        gate = cast(mlp.gate_proj.weight)
        up = cast(mlp.up_proj.weight)
        self.gate_up = torch.cat([gate, up])
        self.down = cast(mlp.down_proj.weight)
        self.input_norm = cast(layer.input_layernorm.weight)
        self.post_norm = cast(layer.post_attention_layernorm.weight)


def _whole_blocks(max_len: int) -> int:
    return -(-max_len // BLOCK) * BLOCK


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """A matmul in the weight's precision, the result in that of `x`."""
    rounded = x.to(weight.dtype)
    return functional.linear(rounded, weight).to(x.dtype)


def _rotate(x: Tensor, turn: _Turn) -> Tensor:
    """Rotary positions, as Llama has them: dimension i turns with dimension i + half."""
    cos, sin = turn
    first, second = x.chunk(2, -1)
    rotated = torch.cat((-second, first), -1)
    return x * cos + rotated * sin
