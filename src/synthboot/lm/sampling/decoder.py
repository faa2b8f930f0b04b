"""A Llama or Qwen3 model as two functions over its weights and a cache: prefill and step.

On a CPU the step's attention (norms, rotation, cache write, softmax) is one compiled loop where
that was built; matmuls are torch's. bfloat16 weights halve what is read and, on some CPUs, more
than halve the time of a matmul.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from synthboot.kernels import decoding, library
from synthboot.kernels.decoding import BLOCK

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of every layer."""


class Decoder:
    """The weights of a Llama or Qwen3 model, and what the two functions share."""

    def __init__(self, model: Any, dtype: str = "auto") -> None:
        cfg = model.config
        inner = model.model
        self.device = next(model.parameters()).device
        on_gpu = self.device.type == "cuda"
        # activations stay float32 on a CPU: the weights are most of what a step reads
        self.matrices = DTYPES[dtype] or (torch.bfloat16 if on_gpu else torch.float32)
        self.dtype = torch.float32 if self.device.type == "cpu" else self.matrices

        self.vocab_size = cfg.vocab_size
        self.eps = cfg.rms_norm_eps
        self.heads = cfg.num_attention_heads
        self.kv_heads = cfg.num_key_value_heads
        # not every Llama configuration names it
        self.head_dim = getattr(cfg, "head_dim", None) or cfg.hidden_size // cfg.num_attention_heads
        self.compiled = library.available(self.device.type) and self.head_dim in decoding.HEAD_DIMS

        def cast(weight: Any) -> Tensor:
            dtype = self.matrices if weight.dim() > 1 else self.dtype
            return torch.as_tensor(weight.detach()).to(dtype).contiguous()

        self.embedding = cast(inner.embed_tokens.weight)
        self.head = cast(model.lm_head.weight)
        self.norm = cast(inner.norm.weight)
        self.layers = [_Layer(layer, cast) for layer in inner.layers]

        # the two halves of a head turn by the same angles: (head_dim)
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        frequency = 1.0 / cfg.rope_parameters["rope_theta"] ** exponents
        self.frequency = torch.cat((frequency, frequency)).to(self.device)

    def cache(self, rows: int, max_len: int) -> Cache:
        """An empty cache: keys and values of every layer, (row, head, position, dim).

        For the compiled loops keys are (row, head, block, dim, 16), sixteen positions side by side.
        """
        max_len = _whole_blocks(max_len)
        value_shape = (rows, self.kv_heads, max_len, self.head_dim)
        key_shape: tuple[int, ...] = value_shape
        if self.compiled:
            key_shape = (
                rows,
                self.kv_heads,
                max_len // BLOCK,
                self.head_dim,
                BLOCK,
            )

        dtype = self._cache_dtype()
        cache = []
        for _ in self.layers:
            keys = torch.zeros(key_shape, dtype=dtype, device=self.device)
            values = torch.zeros(value_shape, dtype=dtype, device=self.device)
            cache.append((keys, values))
        return cache

    def cache_bytes(self, rows: int, max_len: int) -> int:
        """What `cache` takes."""
        layer = rows * self.kv_heads * _whole_blocks(max_len) * self.head_dim
        keys_and_values = 2 * len(self.layers) * layer
        return keys_and_values * self._cache_dtype().itemsize

    def _cache_dtype(self) -> torch.dtype:
        # torch's own attention wants queries, keys and values of one dtype
        return self.matrices if self.compiled else self.dtype

    def free_memory(self) -> int:
        """Bytes that this process may count on.

        Of a GPU what is free, of a machine what is free for one core.
        """
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # other workers count on theirs
        return free // max(1, os.cpu_count() or 1)

    def prefill(
        self,
        tokens: Int64[Tensor, "row token"],
        rows: Int64[Tensor, " row"],
        cache: Cache,
    ) -> None:
        """Fill cache rows `rows` with right-padded prompts."""
        width = tokens.shape[1]
        cos, sin = self._rope(torch.arange(width, device=self.device))  # (token, head_dim)
        hidden = self.embedding[tokens].to(self.dtype)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            q, k, v = self._qkv(layer, hidden, cos, sin)
            self._store(keys, rows, k)
            values[rows, :, :width] = v.to(values.dtype)
            if layer is self.layers[-1]:
                return  # nothing asks what these tokens predict
            attended = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads
            )
            # (row, head, token, dim) -> (row, token, head x dim)
            hidden = self._rest(
                layer,
                hidden,
                attended.transpose(1, 2).flatten(2),
            )

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
        if self.compiled:
            return self._compiled_step(tokens, position, cache)
        cos, sin = self._rope(position[:, None])
        # (row, head, token, head_dim)
        cos = cos[:, None]
        sin = sin[:, None]
        visible = torch.arange(span, device=self.device) <= position[:, None]
        mask = visible[:, None, None, :]  # (row, kv_head, group, span)
        rows = torch.arange(len(tokens), device=self.device)
        hidden = self.embedding[tokens].to(self.dtype)[:, None]  # (row, 1, width)

        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            q, k, v = self._qkv(layer, hidden, cos, sin)
            # each row at a position of its own: (row, kv_head, head_dim)
            keys[rows, :, position] = k[:, :, 0]
            values[rows, :, position] = v[:, :, 0]
            attended = torch.nn.functional.scaled_dot_product_attention(
                q[:, :, 0].unflatten(1, (self.kv_heads, -1)),  # (row, kv_head, group, head_dim)
                keys[:, :, :span],
                values[:, :, :span],
                attn_mask=mask,
            )
            # (row, kv_head, group, head_dim) -> (row, 1, width)
            hidden = self._rest(layer, hidden, attended.flatten(1)[:, None])
        return self._logits(hidden[:, 0])

    def _compiled_step(self, tokens: Tensor, position: Tensor, cache: Cache) -> Tensor:
        """`step`, with all of a layer's attention but the matmuls in one call."""
        cos, sin = self._rope(position)
        hidden = self.embedding[tokens].to(self.dtype)  # (row, width)
        shape = (len(tokens), self.heads + 2 * self.kv_heads, self.head_dim)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            normed = _rms(hidden, layer.input_norm, self.eps)
            qkv = _linear(normed, layer.qkv).view(shape)  # (row, head + 2 x kv_head, head_dim)
            attended = decoding.attend(
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

    def _store(self, keys: Tensor, rows: Tensor, k: Tensor) -> None:
        """Put the keys (row, head, token, dim) of prompts into cache rows."""
        width = k.shape[2]
        if not self.compiled:
            keys[rows, :, :width] = k
            return
        # (row, head, token, dim) -> (row, head, block, 16, dim) -> (row, head, block, dim, 16)
        padded = torch.nn.functional.pad(k, (0, 0, 0, -width % BLOCK))
        blocks = padded.unflatten(2, (-1, BLOCK)).transpose(3, 4)
        keys[rows, :, : blocks.shape[2]] = blocks.to(keys.dtype)

    def _rope(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the rotary angles, (..., head_dim)."""
        angle = position[..., None].float() * self.frequency
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def _qkv(
        self,
        layer: _Layer,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (row, head, token, head_dim), in their positions."""
        rows, width, _ = hidden.shape
        normed = _rms(hidden, layer.input_norm, self.eps)
        joined = _linear(normed, layer.qkv)
        # (row, token, head + 2 x kv_head, head_dim)
        heads = joined.view(
            rows,
            width,
            self.heads + 2 * self.kv_heads,
            self.head_dim,
        )
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=2)

        if layer.qk_norms is not None:
            q_norm, k_norm = layer.qk_norms
            q = _rms(q, q_norm, self.eps)
            k = _rms(k, k_norm, self.eps)
        # (row, token, head, head_dim) -> (row, head, token, head_dim)
        q = q.transpose(1, 2)
        k = k.transpose(1, 2)
        return (
            _rotate(q, cos, sin),
            _rotate(k, cos, sin),
            v.transpose(1, 2),
        )

    def _rest(self, layer: _Layer, hidden: Tensor, attended: Tensor) -> Tensor:
        """A block's output, from its input and what attention made of it."""
        hidden = hidden + _linear(attended, layer.output)
        normed = _rms(hidden, layer.post_norm, self.eps)
        gate, up = _linear(normed, layer.gate_up).chunk(2, dim=-1)
        return hidden + _linear(torch.nn.functional.silu(gate) * up, layer.down)

    def _logits(self, hidden: Tensor) -> Tensor:
        return _linear(_rms(hidden, self.norm, self.eps), self.head).float()


class _Layer:
    """One block's weights, those that multiply the same input joined into one matrix."""

    def __init__(
        self,
        layer: Any,
        cast: Callable[[Any], Tensor],
    ) -> None:
        attention = layer.self_attn
        mlp = layer.mlp
        q = cast(attention.q_proj.weight)
        k = cast(attention.k_proj.weight)
        v = cast(attention.v_proj.weight)
        self.qkv = torch.cat([q, k, v])
        self.qk_norms: tuple[Tensor, Tensor] | None = None
        if hasattr(attention, "q_norm"):  # Qwen3 has them, Llama has not
            self.qk_norms = (cast(attention.q_norm.weight), cast(attention.k_norm.weight))
        self.output = cast(attention.o_proj.weight)
        self.gate_up = torch.cat([cast(mlp.gate_proj.weight), cast(mlp.up_proj.weight)])
        self.down = cast(mlp.down_proj.weight)
        self.input_norm = cast(layer.input_layernorm.weight)
        self.post_norm = cast(layer.post_attention_layernorm.weight)


def _whole_blocks(max_len: int) -> int:
    return -(-max_len // BLOCK) * BLOCK


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """A matmul in the weight's precision, the result in that of `x`."""
    return torch.nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.rms_norm(
        x,
        (x.shape[-1],),
        weight,
        eps,
    )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, as Llama has them: dimension i turns with dimension i + half."""
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + rotated * sin
