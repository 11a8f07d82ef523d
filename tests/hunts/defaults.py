"""What is chosen where nothing is said is never refused: random models, meshes, batches, prompts and
contexts, on any chip, by the default plans and schedules. Of some, the numbers too, against the
reference."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

import layouts
from layouts import AttentionKind, ModelConfig, Rotary, reference
from layouts.models.params import params_shapes

SIDES = (1, 1, 2, 2, 3, 4, 5, 6, 7, 8)
CHIPS = (None, None, "v4", "v5e", "v5p", "v6e", "tpu7x", "h100")
# Of the largest logit, in float32.
TOLERANCE = 1e-4
# Cases of which one is run; of the others, programs are traced only, which is where all is refused.
RUN_ONE_OF = 4


def case(seed: int) -> None:
    """A random model, mesh and workload."""
    rng = np.random.default_rng(seed)
    mesh = draw_mesh(rng)
    config = draw_config(rng, mesh)
    chip = CHIPS[rng.integers(len(CHIPS))]
    batch = int(rng.choice([rng.integers(1, 5), rng.integers(1, 20), rng.integers(1, 70)]))
    length = int(rng.choice([rng.integers(1, 5), rng.integers(1, 40), rng.integers(60, 300)]))
    more = int(rng.choice([1, rng.integers(1, 8), rng.integers(1, 300)]))
    unrolled, int8, int8_cache = (bool(x) for x in rng.random(3) < (0.2, 0.2, 0.2))
    shown = f"{dict(mesh.shape)} {batch=} {length=} {more=} {chip=} {int8=} {int8_cache=} {config}"
    try:
        words: dict[str, Any] = {
            "batch": batch,
            "weights": "int8" if int8 else "bf16",
            "int8_cache": int8_cache,
            "unrolled": unrolled,
            "chip": chip,
        }
        layouts.lower_decode_step(config, mesh, context=length + more, **words)
        layouts.lower_prefill(config, mesh, length=length, **words)
        trace(rng, config, mesh, batch, length, more, chip, unrolled, int8_cache)
    except ValueError as error:
        raise AssertionError(f"refused: {error}\n{shown}") from error
    if rng.integers(RUN_ONE_OF) == 0:
        try:
            run(rng, config, mesh, min(batch, 9), min(length, 12), min(more, 4), chip, unrolled)
        except ValueError as error:
            raise AssertionError(f"refused: {error}\n{shown}") from error


def trace(
    rng: np.random.Generator,
    config: ModelConfig,
    mesh: Any,
    batch: int,
    length: int,
    more: int,
    chip: str | None,
    unrolled: bool,
    int8_cache: bool,
) -> None:
    """The functions that run, on shapes."""
    tokens = rng.integers(0, config.vocab, (batch, length)).astype(np.int32)
    lengths = rng.integers(1, length + 1, batch)
    shapes = params_shapes(config, jnp.float32, unrolled=unrolled)

    def generate(params: Any) -> Any:
        return layouts.generate(
            config,
            mesh,
            params,
            tokens,
            lengths=lengths,
            max_new_tokens=more,
            int8_cache=int8_cache,
            chip=chip,
        )

    jax.eval_shape(generate, shapes)
    chunk = int(rng.integers(1, length + 2))
    jax.eval_shape(
        lambda params: layouts.score(
            *(config, mesh, params, tokens),
            lengths=lengths,
            chunk=max(chunk, length // 3),
            chip=chip,
        ),
        shapes,
    )
    cache = layouts.init_cache(config, mesh, batch, length + more, int8=int8_cache, chip=chip)

    def steps(params: Any, cache: Any) -> Any:
        given: dict[str, Any] = {"chip": chip}
        _, cache = layouts.prefill(config, mesh, params, cache, tokens, lengths=lengths, **given)
        _, cache = layouts.prefill(config, mesh, params, cache, tokens, lengths=lengths, **given)
        return layouts.decode_step(config, mesh, params, cache, tokens[:, 0], **given)

    jax.eval_shape(steps, shapes, cache)


def run(
    rng: np.random.Generator,
    config: ModelConfig,
    mesh: Any,
    batch: int,
    length: int,
    more: int,
    chip: str | None,
    unrolled: bool,
) -> None:
    """The numbers."""
    params = layouts.init(
        config, mesh, jax.random.key(int(rng.integers(99))), jnp.float32, unrolled=unrolled
    )
    plain = jax.device_get(params)
    tokens = rng.integers(0, config.vocab, (batch, length)).astype(np.int32)
    lengths = rng.integers(1, length + 1, batch).astype(np.int32)
    room = length + more
    cache = layouts.init_cache(config, mesh, batch, room, dtype=jnp.float32, chip=chip)
    wanted, state = reference.prefill(
        plain, config, jnp.asarray(tokens), jnp.asarray(lengths), room
    )
    given: dict[str, Any] = {"chip": chip}
    logits, cache = layouts.prefill(config, mesh, params, cache, tokens, lengths=lengths, **given)
    compare(logits, wanted, config)
    wanted, state = reference.decode_step(plain, config, jnp.asarray(tokens[:, 0]), state)
    logits, cache = layouts.decode_step(config, mesh, params, cache, tokens[:, 0], **given)
    compare(logits, wanted, config)
    scores = layouts.score(config, mesh, params, tokens, lengths=lengths, chunk=5, **given)
    wanted = reference.score(plain, config, jnp.asarray(tokens), jnp.asarray(lengths))
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-4)
    drawn, counts = layouts.generate(
        config, mesh, params, tokens, lengths=lengths, max_new_tokens=more, **given
    )
    assert drawn.shape == (batch, more)
    assert np.asarray(drawn).max() < config.vocab
    assert np.asarray(counts).tolist() == [more] * batch


def compare(found: Any, wanted: Any, config: ModelConfig) -> None:
    """Logits of the model's tokens; those that pad it are -inf."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    assert np.isneginf(found[:, config.vocab :]).all()
    found, wanted = found[:, : config.vocab], wanted[:, : config.vocab]
    assert np.abs(found - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def draw_mesh(rng: np.random.Generator) -> Any:
    """Of up to 8 devices."""
    while True:
        shape = tuple(int(n) for n in rng.choice(SIDES, 3))
        if math.prod(shape) <= len(jax.devices()):
            break
    kind = AxisType.Explicit if rng.random() < 0.1 else AxisType.Auto
    devices = jax.devices()[: math.prod(shape)]
    return jax.make_mesh(shape, ("x", "y", "z"), axis_types=(kind,) * 3, devices=devices)


def draw_config(rng: np.random.Generator, mesh: Any) -> ModelConfig:
    """Widths divide over the mesh; heads are padded to, where they do not."""
    chips, yz = mesh.size, mesh.shape["y"] * mesh.shape["z"]
    heads = int(rng.integers(1, 13))
    kv_heads = int(rng.choice([1, heads, rng.choice(divisors(heads))]))
    padded = None
    if heads % yz or rng.random() < 0.2:
        unit = yz if kv_heads == heads else math.lcm(yz, kv_heads)
        padded = unit * -(-heads // unit)
    vocab = int(rng.integers(2, 100))
    serial = bool(rng.random() < 0.6)
    norm = rng.choice(["rmsnorm", "layernorm"]).item()
    gated = bool(rng.random() < 0.5)
    kinds = [
        (),
        (),
        (AttentionKind(window=3),),
        (AttentionKind(window=5), AttentionKind()),
        (AttentionKind(rotary=None), AttentionKind(window=2, rotary=Rotary(base=50.0))),
    ]
    names = ["q", "kv", "o", "in", "out", "unembedding"]
    names += ["gate"] * gated + ["norm"] * (norm == "layernorm")
    return ModelConfig(
        layers=int(rng.integers(1, 4)),
        d_model=chips * int(rng.integers(1, 4)) * 2,
        d_ff=chips * int(rng.integers(1, 6)),
        heads=heads,
        kv_heads=kv_heads,
        d_head=int(rng.choice([2, 4, 6, 16])),
        vocab=vocab,
        block="serial" if serial else "parallel",
        activation=rng.choice(["silu", "gelu_tanh", "relu_squared"]).item(),
        gated=gated,
        norm=norm,
        norm_placement=rng.choice(["before", "after", "both"]).item() if serial else "before",
        query_key_norm=rng.choice([None, None, "rmsnorm", "layernorm"]),
        query_key_norm_span=rng.choice(["head", "heads"]).item(),
        rotary=Rotary(interleaved=bool(rng.random() < 0.5)) if rng.random() < 0.7 else None,
        attention_kinds=kinds[rng.integers(len(kinds))],
        biases=tuple(name for name in names if rng.random() < 0.3),
        tied_embedding=bool(rng.random() < 0.5),
        logit_cap=3.0 if rng.random() < 0.2 else None,
        attention_cap=3.0 if rng.random() < 0.2 else None,
        padded_heads=padded,
        padded_vocab=vocab + int(rng.integers(0, 9)) if rng.random() < 0.3 else None,
        name="drawn",
    )


def divisors(n: int) -> list[int]:
    """Of n."""
    return [d for d in range(1, n + 1) if n % d == 0]
