"""A Llama or Qwen3 model as two functions over its weights and a cache: prefill and step.

On a CPU the step's attention (norms, rotation, cache write, softmax) is one compiled loop where that was built; products are
torch's. bfloat16 weights halve what is read and, on some CPUs, more than halve the time of a product.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from jaxtyping import Float, Int64

from synthboot import kernels

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
Cache = list[tuple[torch.Tensor, torch.Tensor]]


class Decoder:
    """A Llama or Qwen3 model as two pure functions over its weights and a cache: prefill and step."""

    def __init__(self, model: Any, dtype: str = "auto") -> None:
        cfg, inner = model.config, model.model
        self.device = next(model.parameters()).device
        self.matrices = DTYPES[dtype] or (
            torch.bfloat16 if self.device.type == "cuda" else torch.float32
        )
        self.dtype = torch.float32 if self.device.type == "cpu" else self.matrices
        self.vocab_size, self.eps = cfg.vocab_size, cfg.rms_norm_eps
        self.heads, self.kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
        self.head_dim = getattr(cfg, "head_dim", None) or cfg.hidden_size // cfg.num_attention_heads
        self.compiled = kernels.available(self.device.type) and self.head_dim in kernels.HEADS

        def cast(weight: Any) -> torch.Tensor:
            return (
                torch.as_tensor(weight.detach())
                .to(self.matrices if weight.dim() > 1 else self.dtype)
                .contiguous()
            )

        self.embedding, self.head = cast(inner.embed_tokens.weight), cast(model.lm_head.weight)
        self.norm = cast(inner.norm.weight)
        theta = cfg.rope_parameters["rope_theta"]
        frequency = 1.0 / theta ** (
            torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        )
        self.frequency = torch.cat((frequency, frequency)).to(self.device)
        self.layers = [_Layer(layer, cast) for layer in inner.layers]

    def cache(self, rows: int, window: int) -> Cache:
        """An empty cache: keys and values of every layer, (row, head, position, dim); for the compiled loops keys are
        (row, head, block, dim, 16), sixteen positions side by side."""
        window = -(-window // 16) * 16
        shape = (rows, self.kv_heads, window, self.head_dim)
        blocks = (rows, self.kv_heads, window // 16, self.head_dim, 16) if self.compiled else shape
        options: Any = {
            "dtype": self.matrices if self.compiled else self.dtype,
            "device": self.device,
        }
        return [
            (torch.zeros(blocks, **options), torch.zeros(shape, **options)) for _ in self.layers
        ]

    def cache_bytes(self, rows: int, window: int) -> int:
        """What `cache` takes."""
        kind = self.matrices if self.compiled else self.dtype
        return (
            2
            * len(self.layers)
            * rows
            * self.kv_heads
            * (-(-window // 16) * 16)
            * self.head_dim
            * kind.itemsize
        )

    def free_memory(self) -> int:
        """Bytes that this process may count on: of the GPU what is free, of a machine what is free for one core."""
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[0])
        return (
            os.sysconf("SC_AVPHYS_PAGES")
            * os.sysconf("SC_PAGE_SIZE")
            // max(1, os.cpu_count() or 1)
        )

    def prefill(
        self,
        tokens: Int64[torch.Tensor, "row token"],
        rows: Int64[torch.Tensor, " row"],
        cache: Cache,
    ) -> None:
        """Fill cache rows `rows` with right-padded prompts."""
        width = tokens.shape[1]
        cos, sin = self._rope(torch.arange(width, device=self.device))
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
            hidden = self._rest(layer, hidden, attended.transpose(1, 2).flatten(2))

    def step(
        self,
        tokens: Int64[torch.Tensor, " row"],
        position: Int64[torch.Tensor, " row"],
        cache: Cache,
        span: int,
    ) -> Float[torch.Tensor, "row vocab"]:
        """Append one token per row at its position, which is below `span`; returns the logits of the next. A query's heads
        that share keys are taken as queries of one head."""
        if self.compiled:
            return self._compiled_step(tokens, position, cache)
        cos, sin = self._rope(position[:, None])
        cos, sin = cos[:, None], sin[:, None]
        mask = (torch.arange(span, device=self.device) <= position[:, None])[:, None, None, :]
        rows = torch.arange(len(tokens), device=self.device)
        hidden = self.embedding[tokens].to(self.dtype)[:, None]
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            q, k, v = self._qkv(layer, hidden, cos, sin)
            keys[rows, :, position], values[rows, :, position] = k[:, :, 0], v[:, :, 0]
            attended = torch.nn.functional.scaled_dot_product_attention(
                q[:, :, 0].unflatten(1, (self.kv_heads, -1)),
                keys[:, :, :span],
                values[:, :, :span],
                attn_mask=mask,
            )
            hidden = self._rest(layer, hidden, attended.flatten(1)[:, None])
        return self._logits(hidden[:, 0])

    def _compiled_step(
        self, tokens: torch.Tensor, position: torch.Tensor, cache: Cache
    ) -> torch.Tensor:
        cos, sin = self._rope(position)
        hidden = self.embedding[tokens].to(self.dtype)
        for layer, (keys, values) in zip(self.layers, cache, strict=True):
            joined = _linear(_rms(hidden, layer.input_norm, self.eps), layer.qkv)
            joined = joined.view(len(tokens), self.heads + 2 * self.kv_heads, self.head_dim)
            norms = (
                None
                if layer.q_norm is None or layer.k_norm is None
                else (layer.q_norm, layer.k_norm)
            )
            attended = kernels.attend(joined, norms, self.eps, cos, sin, position, keys, values)
            hidden = self._rest(layer, hidden, attended)
        return self._logits(hidden)

    def _store(self, keys: torch.Tensor, rows: torch.Tensor, k: torch.Tensor) -> None:
        """Put the keys (row, head, token, dim) of prompts into cache rows."""
        width = k.shape[2]
        if not self.compiled:
            keys[rows, :, :width] = k
            return
        blocks = (
            torch.nn.functional.pad(k, (0, 0, 0, -width % 16))
            .unflatten(2, (-1, 16))
            .transpose(3, 4)
        )
        keys[rows, :, : blocks.shape[2]] = blocks.to(keys.dtype)

    def _rope(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angle = position[..., None].float() * self.frequency
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)

    def _qkv(
        self, layer: _Layer, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, width, _ = hidden.shape
        joined = _linear(_rms(hidden, layer.input_norm, self.eps), layer.qkv)
        heads = joined.view(rows, width, self.heads + 2 * self.kv_heads, self.head_dim)
        q, k, v = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=2)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = _rms(q, layer.q_norm, self.eps), _rms(k, layer.k_norm, self.eps)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v.transpose(1, 2)

    def _rest(self, layer: _Layer, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        hidden = hidden + _linear(attended, layer.output)
        joined = _linear(_rms(hidden, layer.post_norm, self.eps), layer.gate_up)
        gate, up = joined.chunk(2, dim=-1)
        return hidden + _linear(torch.nn.functional.silu(gate) * up, layer.down)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return _linear(_rms(hidden, self.norm, self.eps), self.head).float()


class _Layer:
    """One block's weights, the products that share an input joined into one."""

    def __init__(self, layer: Any, cast: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = torch.cat(
            [cast(p.weight) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        )
        self.q_norm = cast(attention.q_norm.weight) if hasattr(attention, "q_norm") else None
        self.k_norm = cast(attention.k_norm.weight) if hasattr(attention, "k_norm") else None
        self.output = cast(attention.o_proj.weight)
        self.gate_up = torch.cat([cast(mlp.gate_proj.weight), cast(mlp.up_proj.weight)])
        self.down = cast(mlp.down_proj.weight)
        self.input_norm, self.post_norm = (
            cast(layer.input_layernorm.weight),
            cast(layer.post_attention_layernorm.weight),
        )


def _linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product in the weight's precision, the result in that of `x`."""
    return torch.nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)


def _rms(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, eps)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin
