"""The decoder on one device, in plain jnp: every sharded decoder must equal it.

Letters: B batch, L new positions, S positions in the cache, E d_model, F d_ff, H heads,
K key-value heads, G = H / K, D d_head, V vocab. Parameters are described in params.py. Float64
parameters are computed in float64 throughout. Sizes are not checked.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from collective_einsum import Quantized

from .models.config import ModelConfig, Norm
from .models.experts import Experts
from .models.functions import (
    add_residual,
    as_logits,
    base2_scores,
    causal_mask,
    feedforward_hidden,
    rotary_tables,
    rotate,
    scale_embedding,
    softmax_base2,
    wide,
)
from .models.params import Params, activation_dtype
from .models.stacked_params import layer_of
from .reference_positions import penalties, rotary_for
from .sampling.sampling import Sampling, sample

__all__ = ["decode_step", "empty_cache", "extend", "generate", "prefill", "score"]

Cache = dict[str, jax.Array]

_draw = jax.jit(sample)


def empty_cache(config: ModelConfig, batch: int, max_length: int, dtype: DTypeLike) -> Cache:
    """Keys and values [layers, B, S, K, D] with S = `max_length`, and lengths [B] int32, all 0."""
    shape = (config.layers, batch, max_length, config.stored_kv_heads, config.d_head)
    lengths = jnp.zeros((batch,), jnp.int32)
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype), "lengths": lengths}


@functools.partial(jax.jit, static_argnums=1)
def extend(
    params: Params, config: ModelConfig, tokens: jax.Array, cache: Cache, new: jax.Array
) -> tuple[jax.Array, Cache]:
    """Appends tokens to the sequences in the cache.

    Args:
      params: global arrays.
      config: the model.
      tokens: [B, L] int32.
      cache: of `empty_cache` or of this function, with room for the new tokens.
      new: [B] int32, how many of the L tokens count; the rest is padding at the end.

    Returns:
      logits [B, L, stored V] in float32 or wider, meaningless for padding; and the new cache.
    """
    start = cache["lengths"]
    positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
    # Padding gets a slot outside of the cache, where it is dropped.
    slots = jnp.where(positions < (start + new)[:, None], positions, cache["k"].shape[2])
    places = jnp.arange(cache["k"].shape[2], dtype=jnp.int32)
    dtype = activation_dtype(params)
    embedding = params["embedding"]
    x = scale_embedding(_plain(embedding, wide(dtype))[tokens].astype(dtype), config)
    if "positions" in params:
        x = x + params["positions"][positions]
    if config.embedding_norm:
        x = normalize(x, config.norm, params["embedding_norm"], config)

    keys, values = cache["k"], cache["v"]
    for layer in range(config.layers):
        p = layer_of(params["blocks"], layer)
        kind = config.kinds[layer % len(config.kinds)]
        rotary = config.rotary_of(kind)
        mask = causal_mask(positions, places, start + new, kind.window)
        rotary = rotary and rotary_for(rotary, config.d_head, len(places))
        tables = rotary and rotary_tables(positions, rotary, config.d_head, wide(dtype))
        y = _norm(x, p, "norm", config)
        q, kv = (project_heads(y, p, name, config) for name in ("q", "kv"))
        k, v = kv[:, :, 0::2], kv[:, :, 1::2]
        q, k = _norm_heads(q, p, "norm_q", config), _norm_heads(k, p, "norm_k", config)
        q, k = rotate(q, tables, rotary), rotate(k, tables, rotary)
        rows = jnp.arange(tokens.shape[0])[:, None]
        keys = keys.at[layer, rows, slots].set(k.astype(keys.dtype), mode="drop")
        values = values.at[layer, rows, slots].set(v.astype(values.dtype), mode="drop")
        bias = -penalties(positions, places, config) if config.alibi is not None else None
        o = attend(q, keys[layer], values[layer], mask, config, bias, p.get("sinks"))
        attended = project(o.reshape(*o.shape[:2], -1), p, "o")
        if config.block == "parallel":
            x = add_residual(x, attended, feedforward(y, p, config), config=config)
        else:
            x = add_residual(x, _norm(attended, p, "norm_after", config), config=config)
            fed = feedforward(_norm(x, p, "norm_ffn", config), p, config)
            x = add_residual(x, _norm(fed, p, "norm_after_ffn", config), config=config)

    x = normalize(x, config.norm, params["final_norm"], config)
    table = embedding if config.tied_embedding else params["unembedding"]
    products = _matmul("ble,ve->blv", x, table)
    logits = as_logits(products, config, params.get("b_unembedding"))
    return logits, {"k": keys, "v": values, "lengths": start + new}


def prefill(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    max_length: int,
) -> tuple[jax.Array, Cache]:
    """Reads prompts [B, L] of `lengths` [B] into a new cache of `max_length` positions.

    Returns:
      logits [B, V] after each prompt's last token, and the cache.
    """
    cache = empty_cache(config, tokens.shape[0], max_length, activation_dtype(params))
    logits, cache = extend(params, config, tokens, cache, lengths)
    return logits[jnp.arange(tokens.shape[0]), lengths - 1], cache


def decode_step(
    params: Params, config: ModelConfig, tokens: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Appends one token to each sequence: tokens [B] and a cache to logits [B, V] and a cache."""
    logits, cache = extend(params, config, tokens[:, None], cache, jnp.ones_like(tokens))
    return logits[:, 0], cache


def score(params: Params, config: ModelConfig, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """The log-probability of each of the tokens [B, L] given those before it, [B, L]; 0 for the first of
    each sequence, and after its length [B]."""
    batch, length = tokens.shape
    cache = empty_cache(config, batch, length, activation_dtype(params))
    logits, _ = extend(params, config, tokens, cache, lengths)
    logs = jax.nn.log_softmax(logits[:, :-1, : config.vocab], axis=-1)
    own = jnp.take_along_axis(logs, tokens[:, 1:, None], axis=-1)[..., 0]
    counted = jnp.arange(1, tokens.shape[1]) < lengths[:, None]
    return jnp.pad(jnp.where(counted, own, 0), ((0, 0), (1, 0)))


def generate(
    params: Params,
    config: ModelConfig,
    tokens: jax.Array,
    lengths: jax.Array,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seeds: jax.Array | None = None,
    end_tokens: Sequence[int] = (),
    pad_token: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Continues prompts [B, L] of `lengths` [B] by up to `max_new_tokens` each.

    Args:
      params: global arrays.
      config: the model.
      tokens: [B, L] int32, padded at the end.
      lengths: [B] int32, at least 1.
      max_new_tokens: of each sequence that draws no end token.
      sampling: settings by which tokens are drawn; greedy by default.
      seeds: [B] integers, one per sequence; 0 by default.
      end_tokens: a sequence ends with the first of these that it draws.
      pad_token: stands after the end.

    Returns:
      new tokens [B, max_new_tokens] int32, and how many each sequence drew, its end token included,
      [B] int32.
    """
    batch = tokens.shape[0]
    seeds = jnp.zeros((batch,), jnp.uint32) if seeds is None else seeds
    logits, cache = prefill(params, config, tokens, lengths, tokens.shape[1] + max_new_tokens)
    out = np.full((batch, max_new_tokens), pad_token, np.int32)
    counts = np.zeros((batch,), np.int32)
    running = np.ones((batch,), bool)
    for step in range(max_new_tokens):
        drawn = _draw(logits, sampling or Sampling(), seeds=seeds, positions=cache["lengths"])
        out[running, step] = np.asarray(drawn)[running]
        counts += running
        running = running & ~np.isin(np.asarray(drawn), np.asarray(end_tokens, np.int32))
        if not running.any() or step + 1 == max_new_tokens:
            break
        logits, cache = decode_step(params, config, drawn, cache)
    return out, counts


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    config: ModelConfig,
    bias: jax.Array | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """Attention of q [B, L, H, D] to k, v [B, S, K, D] where mask [B, L, S] is true: [B, L, H, D].

    Query heads h * G to (h + 1) * G - 1 read key-value head h. Wide until the end. `bias` [B, H, L, S]
    is added to the scores, and each head's softmax has one of the `sinks` [H] in its denominator.
    """
    b, length, heads, d = q.shape
    accumulator = wide(q.dtype)
    grouped = q.astype(accumulator).reshape(b, length, k.shape[2], -1, d)
    scores = base2_scores(_matmul("blkgd,bskd->bkgls", grouped, k), config)
    shape, visible = scores.shape, mask[:, None, None]
    if bias is not None:
        scores = scores + bias.reshape(shape).astype(scores.dtype) * math.log2(math.e)
    if sinks is not None:
        column = sinks.astype(scores.dtype).reshape(1, shape[1], shape[2], 1, 1) * math.log2(math.e)
        column = jnp.broadcast_to(column, (*shape[:-1], 1))
        scores = jnp.concatenate([scores, column], axis=-1)
        visible = jnp.pad(visible, [(0, 0)] * 4 + [(0, 1)], constant_values=True)
    weights = softmax_base2(scores, visible)[..., : shape[-1]]
    # A value that no query sees must not be NaN times 0.
    v = jnp.where(mask.any(axis=1)[:, :, None, None], v, jnp.zeros_like(v))
    return _matmul("bkgls,bskd->blkgd", weights, v).reshape(b, length, heads, d).astype(q.dtype)


def _norm(x: jax.Array, block: Params, name: str, config: ModelConfig) -> jax.Array:
    """One of a layer's norms of x [B, L, E]; x where the config has none of this name."""
    if name not in config.norm_names:
        return x
    return normalize(x, config.norm, block[name], config)


def _norm_heads(x: jax.Array, block: Params, name: str, config: ModelConfig) -> jax.Array:
    """The norm of queries or keys x [B, L, heads, D]; x where the config has none."""
    if config.query_key_norm is None:
        return x
    scale, shape = block[name], x.shape
    if config.query_key_norm_span == "head":
        weights = {"scale": scale.reshape(shape[-2:])}
        return normalize(x, config.query_key_norm, weights, config)
    rows = x.reshape(*shape[:2], -1)
    # Padded heads are zeros, do not count, and stay zeros.
    stored = shape[2]
    real = config.real_heads if stored == config.stored_heads else (True,) * stored
    own = np.flatnonzero(np.repeat(real, config.d_head))
    y = normalize(rows[..., own], config.query_key_norm, {"scale": scale[own]}, config)
    return jnp.zeros_like(rows).at[..., own].set(y).reshape(shape)


def normalize(
    x: jax.Array, kind: Norm, weights: Mapping[str, jax.Array], config: ModelConfig
) -> jax.Array:
    """A norm over the last dimension of x, by its deviations."""
    y = x.astype(wide(x.dtype))
    if kind == "layernorm":
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
    y = y / jnp.sqrt(variance + config.norm_epsilon)
    y = y * (weights["scale"].astype(y.dtype) + config.norm_offset)
    return (y + weights["bias"].astype(y.dtype) if "bias" in weights else y).astype(x.dtype)


def feedforward(x: jax.Array, block: Params, config: ModelConfig) -> jax.Array:
    """The feedforward layer of x [B, L, E]: [B, L, E]."""
    if config.experts is not None:
        return _mixture(x, block, config, config.experts)
    inner = project(x, block, "in")
    gate = project(x, block, "gate") if config.gated else None
    clamp = config.gate_clamp
    if clamp is not None and gate is not None:
        g = jnp.where(gate > clamp.limit, clamp.limit, gate).astype(wide(x.dtype))
        u = jnp.maximum(jnp.minimum(inner, clamp.limit), -clamp.limit).astype(wide(x.dtype))
        hidden = (u + clamp.offset) * g * jax.nn.sigmoid(clamp.alpha * g)
        return project(hidden.astype(x.dtype), block, "out")
    return project(feedforward_hidden(inner, gate, config.activation), block, "out")


def _mixture(x: jax.Array, block: Params, config: ModelConfig, experts: Experts) -> jax.Array:
    """The weighted sum of each token's experts of x [B, L, E], every expert for every token."""
    probabilities = jax.nn.softmax(_router_logits(x, block), axis=-1)
    # The place of each expert among those of a token, the most probable first.
    places = jnp.argsort(jnp.argsort(-probabilities, axis=-1), axis=-1)
    kept = jnp.where(places < experts.per_token, probabilities, 0)
    if experts.probabilities == "chosen":
        kept = kept / jnp.sum(kept, axis=-1, keepdims=True)
    result = jnp.zeros(x.shape, kept.dtype)
    for i in range(experts.count):
        own = _expert(block, i, config, result.dtype)
        fed = feedforward(x, own, dataclasses.replace(config, experts=None))
        result += jnp.where(kept[..., i, None] > 0, fed.astype(kept.dtype) * kept[..., i, None], 0)
    if experts.shared_width is not None:
        result += _shared(x, block, config, experts).astype(result.dtype)
    return result.astype(x.dtype)


def _shared(x: jax.Array, block: Params, config: ModelConfig, experts: Experts) -> jax.Array:
    """The feedforward that all tokens of x [B, L, E] have beside their experts: [B, L, E]."""
    mark = "w_shared_"
    own = {"w_" + name.removeprefix(mark): w for name, w in block.items() if name.startswith(mark)}
    fed = feedforward(x, own, dataclasses.replace(config, experts=None))
    if not experts.shared_router:
        return fed
    weight = jax.nn.sigmoid(_matmul("bln,nm->blm", x, own["w_router"]))
    return fed.astype(weight.dtype) * weight


def _router_logits(x: jax.Array, block: Params) -> jax.Array:
    """[B, L, experts] of x [B, L, E], wide."""
    logits = _matmul("bln,nm->blm", x, block["w_router"])
    bias = block.get("b_router")
    return logits if bias is None else logits + bias.astype(logits.dtype)


def _expert(block: Params, i: int, config: ModelConfig, dtype: DTypeLike) -> Params:
    """The feedforward of expert `i`, whose columns stand behind those of the experts before; matrices in
    `dtype`."""
    own = slice(i * config.d_ff, (i + 1) * config.d_ff)
    made = {name: _plain(block[name], dtype)[:, own] for name in config.input_names}
    made["w_out"] = _plain(block["w_out"], dtype)[own]
    made |= {name: block[name][own] for name in ("b_in", "b_gate") if name in block}
    return made | ({"b_out": block["b_out"][i]} if "b_out" in block else {})


def project_heads(x: jax.Array, block: Params, name: str, config: ModelConfig) -> jax.Array:
    """Queries [B, L, H, D] of x [B, L, E]; or alternating keys and values, [B, L, 2 * K, D]."""
    y = project(x, block, name)
    if config.clip_qkv is not None:
        y = jnp.sign(y) * jnp.minimum(jnp.abs(y), jnp.asarray(config.clip_qkv, y.dtype))
    return y.reshape(*y.shape[:2], -1, config.d_head)


def project(x: jax.Array, block: Params, name: str) -> jax.Array:
    """x [B, L, n] times the block's w_`name`, plus b_`name` if the block has it; in the dtype of x."""
    y = _matmul("bln,nm->blm", x, block["w_" + name])
    bias = block.get("b_" + name)
    return (y if bias is None else y + bias.astype(y.dtype)).astype(x.dtype)


def _matmul(spec: str, x: jax.Array, w: jax.Array | Quantized) -> jax.Array:
    accumulator = wide(x.dtype)
    return jnp.einsum(
        spec, x.astype(accumulator), _plain(w, accumulator), precision=lax.Precision.HIGHEST
    )


def _plain(w: jax.Array | Quantized, dtype: DTypeLike) -> jax.Array:
    """The array that `w` stands for, in `dtype`."""
    if isinstance(w, Quantized):
        return w.values.astype(dtype) * w.scale.astype(dtype)
    return w.astype(dtype)
