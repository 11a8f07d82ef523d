"""Operations on a cache, one after another, against a decoder in plain numpy: any batch, capacity and
prompt length, on any mesh of up to 8 devices, under any plans."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import layouts
from layouts import ModelConfig, Partitioning
from layouts.models.config import Rotary
from layouts.models.stacked_params import unroll
from layouts.planning.search import ATTENTIONS, FEEDFORWARDS

from ..layouts.numpy_decoder import Sequence, plain

SIDES = (1, 1, 2, 2, 2, 3, 4, 5, 7, 8)
# Of the largest logit, in float32; and with 8 bits, where a rounding may fall the other way.
TOLERANCE, INT8_TOLERANCE = 1e-4, 3e-2
OPERATIONS = 3


@dataclasses.dataclass
class Decoder:
    """A sharded cache, and the sequences that should be in it.

    Attributes:
      params: sharded parameters.
      plan, prefill_plan: None for the default ones.
      cache, sequences: the one, and the others.
    """

    rng: np.random.Generator
    config: ModelConfig
    mesh: Any
    params: Any
    plan: Any
    prefill_plan: Any
    cache: Any
    sequences: list[Sequence]

    def room(self) -> int:
        """Positions that every sequence has left."""
        return self.cache.max_length - int(np.asarray(self.cache.lengths).max())

    def prefill(self) -> None:
        """A chunk of any length that fits, of which each sequence takes some, or nothing."""
        batch = len(self.sequences)
        new = int(self.rng.integers(1, 1 + min(self.cache.max_length, 12)))
        left = self.cache.max_length - np.asarray(self.cache.lengths)
        counts = self.rng.integers(0, 1 + np.minimum(new, left))
        tokens = self.tokens(batch, new)
        logits, self.cache = layouts.prefill(
            self.config,
            self.mesh,
            self.params,
            self.cache,
            tokens,
            lengths=counts,
            plan=self.prefill_plan,
        )
        self.compare(logits, tokens, counts)

    def decode(self) -> None:
        """A token for each sequence."""
        tokens = self.tokens(len(self.sequences), 1)
        logits, self.cache = layouts.decode_step(
            self.config, self.mesh, self.params, self.cache, tokens[:, 0], plan=self.plan
        )
        self.compare(logits, tokens, np.ones(len(self.sequences), int))

    def move(self) -> None:
        """To other plans."""
        self.plan = self.prefill_plan = draw_plan(self.rng, self.config, self.mesh)
        self.cache = layouts.move_cache(self.config, self.mesh, self.cache, self.plan)

    def spoil(self) -> None:
        """What stands behind the lengths counts for nothing, whatever it is."""
        bad = float(self.rng.choice([np.nan, np.inf, -np.inf, 1e30]))
        lengths = np.asarray(self.cache.lengths)
        stored = self.cache.k.values.shape
        have = np.zeros(stored[1], int)
        have[: len(lengths)] = lengths
        behind = jnp.asarray(np.arange(stored[3]) >= have[:, None])[None, :, None, :]

        def spoiled(x: Any) -> Any:
            if x.dtype == jnp.int8:
                return jnp.where(behind[..., None], jnp.int8(127), x)
            mask = behind if x.ndim == 4 else behind[..., None]
            return jnp.where(mask, jnp.asarray(bad, x.dtype), x)

        k, v = jax.tree.map(spoiled, (self.cache.k, self.cache.v))
        placed = jax.tree.map(lambda x: x.sharding, (self.cache.k, self.cache.v))
        k, v = jax.device_put((k, v), placed)
        self.cache = dataclasses.replace(self.cache, k=k, v=v)

    def tokens(self, batch: int, new: int) -> np.ndarray:
        """At random."""
        return self.rng.integers(0, self.config.vocab, (batch, new)).astype(np.int32)

    def compare(self, logits: Any, tokens: np.ndarray, counts: np.ndarray) -> None:
        """Logits of the sequences that read anything, and all lengths."""
        before = np.asarray(self.cache.lengths) - counts
        found = np.asarray(logits)
        assert found.shape == (len(self.sequences), self.config.vocab)
        for i, (sequence, own, count) in enumerate(
            zip(self.sequences, tokens, counts, strict=True)
        ):
            assert before[i] + self.cache.prefix_length == len(sequence.keys[0])
            if count:
                want = sequence.read(own[:count])
                limit = INT8_TOLERANCE if sequence.int8 else TOLERANCE
                # With NaN, too, no comparison holds.
                assert np.abs(found[i] - want).max() <= limit * np.abs(want).max(), f"sequence {i}"


def case(seed: int) -> None:
    """A random model, mesh and cache, and what is done with it."""
    rng = np.random.default_rng(seed)
    decoder = draw(rng)
    decoder.prefill()
    for _ in range(OPERATIONS):
        kinds = [decoder.prefill, decoder.decode, decoder.move, decoder.spoil]
        operation = kinds[rng.choice(4, p=[0.3, 0.4, 0.1, 0.2])]
        if operation == decoder.decode and not decoder.room():
            operation = decoder.prefill
        operation()
    if decoder.room():
        decoder.decode()


def draw(rng: np.random.Generator) -> Decoder:
    """All of it, with an empty cache that may have a prefix."""
    mesh, config = draw_mesh(rng), None
    while config is None:
        config = draw_config(rng, mesh)
    int8, int8_cache, unrolled = rng.random(3) < (0.15, 0.25, 0.2)
    params = layouts.init(
        config,
        mesh,
        jax.random.key(int(rng.integers(1000))),
        jnp.float32,
        weights="int8" if int8 else "plain",
    )
    params = unroll(params) if unrolled else params
    local = plain(jax.device_get(params))
    plan = None if rng.random() < 0.4 else draw_plan(rng, config, mesh)
    prefill_plan = plan
    one = Sequence(config, local, bool(int8_cache))
    prefix = None
    if rng.random() < 0.3:
        beginning = rng.integers(0, config.vocab, int(rng.integers(1, 41))).astype(np.int32)
        one, prefix = draw_prefix(config, mesh, params, plan, one, beginning)
    batch = int(rng.integers(1, 10))
    capacity = int(rng.choice([rng.integers(1, 10), rng.integers(1, 40), rng.integers(60, 70)]))
    cache = layouts.init_cache(
        config,
        mesh,
        batch,
        capacity,
        plan=plan,
        dtype=jnp.float32,
        int8=bool(int8_cache),
        prefix=prefix,
    )
    assert (cache.batch, cache.max_length) == (batch, capacity)
    sequences = [one.copy() for _ in range(batch)]
    return Decoder(rng, config, mesh, params, plan, prefill_plan, cache, sequences)


def draw_prefix(
    config: ModelConfig, mesh: Any, params: Any, plan: Any, one: Sequence, tokens: np.ndarray
) -> tuple[Sequence, Any]:
    """A prefix, read in one go."""
    cache = layouts.init_cache(
        config, mesh, 1, len(tokens), plan=plan, dtype=jnp.float32, int8=one.int8
    )
    _, cache = layouts.prefill(config, mesh, params, cache, tokens[None], plan=plan)
    prefix = layouts.shared_prefix(cache)
    assert prefix.length == len(tokens)
    one.read(tokens)
    return one, prefix


def draw_mesh(rng: np.random.Generator) -> Any:
    """Of up to 8 devices."""
    while True:
        shape = tuple(int(n) for n in rng.choice(SIDES, 3))
        if math.prod(shape) <= len(jax.devices()):
            break
    kind = AxisType.Explicit if rng.random() < 0.1 else AxisType.Auto
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, ("x", "y", "z"), axis_types=(kind,) * 3, devices=devices)


def draw_config(rng: np.random.Generator, mesh: Any) -> ModelConfig | None:
    """Whose sizes divide over the mesh; None if these do not."""
    chips, yz = mesh.size, mesh.shape["y"] * mesh.shape["z"]
    heads = yz * int(rng.integers(1, 4))
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    config = ModelConfig(
        layers=2,
        d_model=chips * int(rng.integers(1, 4)) * 2,
        d_ff=chips * int(rng.integers(1, 5)),
        heads=heads,
        kv_heads=int(rng.choice([1, heads, rng.choice(divisors)])),
        d_head=int(rng.choice([2, 4, 6, 8])),
        vocab=int(rng.integers(2, 40)),
        block=rng.choice(["serial", "parallel"]).item(),
        activation=rng.choice(["silu", "gelu", "gelu_tanh", "relu"]).item(),
        gated=bool(rng.random() < 0.5),
        norm=rng.choice(["rmsnorm", "layernorm"]).item(),
        rotary=Rotary(interleaved=bool(rng.random() < 0.5)) if rng.random() < 0.7 else None,
        biases=bool(rng.random() < 0.4),
        tied_embedding=bool(rng.random() < 0.5),
        name="drawn",
    )
    return config if plans(config, mesh) else None


def draw_plan(rng: np.random.Generator, config: ModelConfig, mesh: Any) -> Partitioning:
    """One that the mesh can hold."""
    found = plans(config, mesh)
    return found[int(rng.integers(len(found)))]


def plans(config: ModelConfig, mesh: Any) -> list[Partitioning]:
    """All that the mesh can hold, of layouts for prefill and decode alike."""
    shape = tuple(mesh.shape.values())
    found = layouts.plan(config, mesh_shape=shape, phase="prefill", batch=840, length=840)
    named = [option for option in found.options if option.cost is not None]
    return [Partitioning(FEEDFORWARDS[o.feedforward], ATTENTIONS[o.attention]) for o in named]
