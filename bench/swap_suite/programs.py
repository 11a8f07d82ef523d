"""Layers of transformers as users write them: on global arrays under jit, or by hand in shard_map.

Each takes its einsums as functions: those of jnp and lax, or this library's. All else is the same.
Attention stands for a kernel: it is elementwise, so that what differs is not lost beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

LAYERS = 8
BF16 = jnp.bfloat16
_EPSILON = 1e-6
Weights = dict[str, Any]


class Einsums(Protocol):
    """What a program is written with: einsums next to collectives."""

    def inwards(self, text: str, x: Any, weights: Sequence[Any], out: P) -> list[Any]:
        """x times each of the weights, with the model dimension of x gathered."""
        ...

    def outwards(self, text: str, x: Any, w: Any, out: P) -> Any:
        """x times w, with the model dimension of the result scattered."""
        ...


class PlainGlobal:
    """jnp's einsums of global arrays, whose collectives the compiler makes."""

    def inwards(self, text: str, x: Any, weights: Sequence[Any], out: P) -> list[Any]:
        return [jnp.einsum(text, x, w, out_sharding=out) for w in weights]

    def outwards(self, text: str, x: Any, w: Any, out: P) -> Any:
        return jnp.einsum(text, x, w, out_sharding=out)


class OursGlobal:
    """`ce.einsum`, once for all weights that share x."""

    def inwards(self, text: str, x: Any, weights: Sequence[Any], out: P) -> list[Any]:
        return ce.einsum(text, x, list(weights), out_sharding=out)

    def outwards(self, text: str, x: Any, w: Any, out: P) -> Any:
        return ce.einsum(text, x, w, out_sharding=out)


class PlainLocal:
    """lax's collectives over `t`, within shard_map."""

    def inwards(self, text: str, x: Any, weights: Sequence[Any], out: P) -> list[Any]:
        gathered = lax.all_gather(x, "t", axis=x.ndim - 1, tiled=True)
        return [jnp.einsum(text, gathered, w) for w in weights]

    def outwards(self, text: str, x: Any, w: Any, out: P) -> Any:
        y = jnp.einsum(text, x, w)
        return lax.psum_scatter(y, "t", scatter_dimension=y.ndim - 1, tiled=True)


class OursLocal:
    """The functions for shard_map, over `t`."""

    def inwards(self, text: str, x: Any, weights: Sequence[Any], out: P) -> list[Any]:
        model = text.partition(",")[0][-1]
        return ce.all_gather_einsum(text, x, list(weights), axis_name="t", gather=model)

    def outwards(self, text: str, x: Any, w: Any, out: P) -> Any:
        return ce.einsum_reduce_scatter(text, x, w, axis_name="t", scatter=text[-1])


EINSUMS: dict[tuple[str, bool], Einsums] = {
    ("global", False): PlainGlobal(),
    ("global", True): OursGlobal(),
    ("local", False): PlainLocal(),
    ("local", True): OursLocal(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Layers of a transformer on a mesh of the axes `d` (data) and `t` (tensor).

    Attributes:
      name: in the table.
      target: the slice.
      kind: "global" for arrays under jit on Explicit axes, "local" for a shard_map by hand.
      d, t: sizes of the axes.
      model, heads, kv_heads, head_size, hidden: sizes of the layers.
      batch, length: sequences, and positions of each.
      fsdp: whether weights are sharded over `d` too, and gathered before they are used.
      gradients: whether it is a training step, whose backward pass computes again all but dots.
    """

    name: str
    target: str
    kind: str
    d: int
    t: int
    model: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int
    batch: int
    length: int
    fsdp: bool
    gradients: bool = False

    @property
    def axes(self) -> dict[str, int]:
        """The axes of the mesh, with their sizes."""
        return {"d": self.d, "t": self.t}

    @property
    def axis_types(self) -> tuple[AxisType, ...]:
        """Those of the mesh's axes."""
        return (AxisType.Explicit if self.kind == "global" else AxisType.Auto,) * 2

    @property
    def weights(self) -> dict[str, tuple[tuple[int, ...], P]]:
        """Shape and sharding of each matrix of a layer."""
        d, heads = "d" if self.fsdp else None, (self.heads, self.head_size)
        shared = (self.kv_heads, self.head_size)
        return {
            "q": ((self.model, *heads), P(d, "t", None)),
            "k": ((self.model, *shared), P(d, "t", None)),
            "v": ((self.model, *shared), P(d, "t", None)),
            "o": ((*heads, self.model), P("t", None, d)),
            "gate": ((self.model, self.hidden), P(d, "t")),
            "up": ((self.model, self.hidden), P(d, "t")),
            "down": ((self.hidden, self.model), P("t", d)),
        }

    def lower(
        self, mesh: Mesh, *, ours: bool, jit: Callable[..., Any] = jax.jit
    ) -> jax.stages.Lowered:
        """The layers on a mesh, with einsums of jnp or `ours`, under `jit`."""
        tokens = P("d", None, "t")
        stacked = {name: P(None, *spec) for name, (_, spec) in self.weights.items()}
        x = _shaped((self.batch, self.length, self.model), mesh, tokens)
        weights = {
            name: _shaped((LAYERS, *shape), mesh, stacked[name])
            for name, (shape, _) in self.weights.items()
        }
        einsums = EINSUMS[self.kind, ours]

        def layers(x: Any, weights: Weights) -> Any:
            body = self._layer(einsums)
            if self.gradients:
                saved = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
                body = jax.checkpoint(body, policy=saved)
            return lax.scan(lambda x, w: (body(x, w), None), x, weights)[0]

        def loss(x: Any, weights: Weights) -> Any:
            total = jnp.sum(layers(x, weights).astype(jnp.float32))
            return lax.psum(total, ("d", "t")) if self.kind == "local" else total

        step = jax.grad(loss, argnums=(0, 1)) if self.gradients else layers
        if self.kind == "local":
            specs = (tokens, stacked)
            out = specs if self.gradients else tokens
            step = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=out)
            return jit(step).lower(x, weights)
        with jax.set_mesh(mesh):
            return jit(step).lower(x, weights)

    def _layer(self, einsums: Einsums) -> Callable[[Any, Weights], Any]:
        tokens, hidden, heads = P("d", None, "t"), P("d", None, "t"), P("d", None, "t", None)

        def layer(x: Any, w: Weights) -> Any:
            if self.kind == "local" and self.fsdp:
                w = {name: self._gathered(name, own) for name, own in w.items()}
            qkv = [w[name] for name in "qkv"]
            q, k, v = einsums.inwards("bld,dhk->blhk", self._norm(x), qkv, heads)
            x = x + einsums.outwards("blhk,hkd->bld", _attention(q, k, v), w["o"], tokens)
            gate_up = [w["gate"], w["up"]]
            gate, up = einsums.inwards("bld,df->blf", self._norm(x), gate_up, hidden)
            return x + einsums.outwards("blf,fd->bld", jax.nn.silu(gate) * up, w["down"], tokens)

        return layer

    def _gathered(self, name: str, own: Any) -> Any:
        dim = list(self.weights[name][1]).index("d")
        return lax.all_gather(own, "d", axis=dim, tiled=True)

    def _norm(self, x: Any) -> Any:
        wide = x.astype(jnp.float32)
        total = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
        if self.kind == "local":
            total = lax.psum(total, "t")
        return (wide * lax.rsqrt(total / self.model + _EPSILON)).astype(x.dtype)


def _attention(q: Any, k: Any, v: Any) -> Any:
    """Elementwise, for each group of query heads with its keys and values."""
    grouped = q.reshape(*k.shape[:3], -1, q.shape[-1])
    return (grouped * k[..., None, :] + v[..., None, :]).reshape(q.shape)


def _shaped(shape: tuple[int, ...], mesh: Mesh, spec: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, BF16, sharding=NamedSharding(mesh, spec))


_LLAMA_70B: Mapping[str, Any] = {
    "model": 8192,
    "heads": 64,
    "kv_heads": 8,
    "head_size": 128,
    "hidden": 28672,
}
_LLAMA_8B: Mapping[str, Any] = {**_LLAMA_70B, "model": 4096, "heads": 32, "hidden": 14336}
_GEMMA_7B: Mapping[str, Any] = {
    "model": 3072,
    "heads": 16,
    "kv_heads": 16,
    "head_size": 256,
    "hidden": 24576,
}
SLICES = ("v4:4x4x4", "v5p:4x4x4", "v5e:4x4", "v6e:4x4")


def programs() -> list[Program]:
    """All programs of the table: those of 64 chips on 16 x 4, those of 16 chips on 4 x 4."""
    found = []
    for target in SLICES:
        large = target.endswith("4x4x4")
        d = 16 if large else 4
        where: Mapping[str, Any] = {"target": target, "d": d, "t": 4}
        prompts: Mapping[str, Any] = {"batch": 2 * d, "length": 2048}
        tokens: Mapping[str, Any] = {"batch": 64 * d, "length": 1}
        found += [
            Program(
                name="prefill, Llama 70B, jit",
                kind="global",
                **where,
                **_LLAMA_70B,
                **prompts,
                fsdp=True,
            ),
            Program(
                name="decode, Llama 70B, jit",
                kind="global",
                **where,
                **_LLAMA_70B,
                **tokens,
                fsdp=False,
            ),
            Program(
                name="training, Gemma 7B, jit",
                kind="global",
                **where,
                **_GEMMA_7B,
                **prompts,
                fsdp=True,
                gradients=True,
            ),
            Program(
                name="training, Llama 8B, shard_map",
                kind="local",
                **where,
                **_LLAMA_8B,
                **prompts,
                fsdp=True,
                gradients=True,
            ),
        ]
    return found
