"""A decoder in plain numpy and float64, one sequence at a time, which shares no code with the library.

Positions lie one after another in lists: nothing is padded, masked, sharded or sliced.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

Array = np.ndarray
_ERF = np.vectorize(math.erf, otypes=[np.float64])


def plain(tree: Any) -> Any:
    """Parameters as nested dicts and lists of float64 arrays; what is quantized is multiplied out."""
    if isinstance(tree, dict):
        return {name: plain(x) for name, x in tree.items()}
    if isinstance(tree, list):
        return [plain(x) for x in tree]
    if hasattr(tree, "scale"):
        return np.asarray(tree.values, np.float64) * np.asarray(tree.scale, np.float64)
    return np.asarray(tree).astype(np.float64)


def layers_of(params: Any) -> list[Any]:
    """The parameters of each layer."""
    blocks = params["blocks"]
    if isinstance(blocks, list):
        return blocks
    count = len(blocks["w_q"])
    return [
        {
            name: {n: each[i] for n, each in x.items()} if isinstance(x, dict) else x[i]
            for name, x in blocks.items()
        }
        for i in range(count)
    ]


@dataclasses.dataclass
class Sequence:
    """The keys and values [positions, K, D] of one sequence in each layer, as a cache holds them.

    Attributes:
      config: the model.
      params: from `plain`.
      int8: keys and values are rounded, once they are in the cache, to 8 bits of each vector's largest
        number.
      keys, values: of each layer, a prefix included.
    """

    config: Any
    params: Any
    int8: bool = False
    keys: list[Array] = dataclasses.field(default_factory=list)
    values: list[Array] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.keys:
            empty = np.zeros((0, self.config.stored_kv_heads, self.config.d_head))
            self.keys = [empty] * self.config.layers
            self.values = [empty] * self.config.layers

    def copy(self) -> Sequence:
        """One that begins with the same."""
        return dataclasses.replace(self, keys=list(self.keys), values=list(self.values))

    def read(self, tokens: Array) -> Array:
        """Reads tokens [n], n at least 1, into the cache: logits [vocab] after the last."""
        config, params = self.config, self.params
        x = params["embedding"][tokens]
        for i, layer in enumerate(layers_of(params)):
            y = self._norm(x, layer["norm"])
            attended = self._attention(y, layer, i)
            if config.block == "parallel":
                x = x + attended + self._feedforward(y, layer)
            else:
                x = x + attended
                x = x + self._feedforward(self._norm(x, layer["norm_ffn"]), layer)
        table = params["embedding" if config.tied_embedding else "unembedding"]
        return table @ self._norm(x[-1], params["final_norm"])

    def _attention(self, y: Array, layer: Any, i: int) -> Array:
        config, n, d = self.config, len(y), self.config.d_head
        start = len(self.keys[i])
        q = _linear(y, layer, "q").reshape(n, config.stored_heads, d)
        kv = _linear(y, layer, "kv").reshape(n, config.stored_kv_heads, 2, d)
        q, new_k = (self._turned(each, start) for each in (q, kv[:, :, 0]))
        keys = np.concatenate([self.keys[i], new_k])
        values = np.concatenate([self.values[i], kv[:, :, 1]])
        group = config.stored_heads // config.stored_kv_heads
        out = np.zeros((n, config.stored_heads, d))
        for t in range(n):
            for h in range(config.stored_heads):
                seen = slice(0, start + t + 1)
                scores = keys[seen, h // group] @ q[t, h] / math.sqrt(d)
                weights = np.exp(scores - scores.max())
                out[t, h] = weights @ values[seen, h // group] / weights.sum()
        self.keys[i] = np.concatenate([self.keys[i], self._stored(new_k)])
        self.values[i] = np.concatenate([self.values[i], self._stored(kv[:, :, 1])])
        return _linear(out.reshape(n, -1), layer, "o")

    def _stored(self, x: Array) -> Array:
        if not self.int8:
            return x
        scale = np.abs(x).max(axis=-1, keepdims=True) / 127
        return np.round(x / np.where(scale == 0, 1, scale)) * scale

    def _turned(self, x: Array, start: int) -> Array:
        """Rotary embedding of x [n, heads, D] at positions from `start` on."""
        rotary, d = self.config.rotary, self.config.d_head
        if rotary is None:
            return x
        dims = round(rotary.fraction * d)
        out = x.copy()
        for pair in range(dims // 2):
            a, b = (2 * pair, 2 * pair + 1) if rotary.interleaved else (pair, pair + dims // 2)
            angle = (start + np.arange(len(x)))[:, None] / rotary.base ** (2 * pair / dims)
            out[..., a] = x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)
            out[..., b] = x[..., b] * np.cos(angle) + x[..., a] * np.sin(angle)
        return out

    def _feedforward(self, y: Array, layer: Any) -> Array:
        hidden = _linear(y, layer, "in")
        if self.config.gated:
            hidden = hidden * self._activated(_linear(y, layer, "gate"))
        else:
            hidden = self._activated(hidden)
        return _linear(hidden, layer, "out")

    def _activated(self, x: Array) -> Array:
        kind = self.config.activation
        if kind == "silu":
            return x / (1 + np.exp(-x))
        if kind == "relu":
            return np.maximum(x, 0)
        if kind == "gelu":
            return x * (1 + _ERF(x / math.sqrt(2))) / 2
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    def _norm(self, x: Array, weights: Any) -> Array:
        if self.config.norm == "layernorm":
            x = x - x.mean(axis=-1, keepdims=True)
        mean_square = (x * x).mean(axis=-1, keepdims=True)
        x = x / np.sqrt(mean_square + self.config.norm_epsilon) * weights["scale"]
        return x + weights.get("bias", 0.0)


def _linear(x: Array, layer: Any, name: str) -> Array:
    return x @ layer[f"w_{name}"] + layer.get(f"b_{name}", 0.0)
