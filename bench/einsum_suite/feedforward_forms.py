"""A feedforward, weight-stationary in two dimensions, written in three ways.

PaLM 540B's shapes, with the two input projections of SwiGLU: gather over yz, multiply twice,
scatter over x, `silu(gate) * up`, gather over x, multiply, scatter over yz (section 3.2.2 of Pope
et al., arXiv 2211.05102).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from bench.einsum_suite.cases import D_FF, D_MODEL, LAYERS, PLAIN, ROWS, chip_of, jit_of
from collective_einsum.chips import traced_chip
from collective_einsum.cost import WORTHWHILE
from layouts.cost import TokenShardedFeedForward, split_seconds
from layouts.layers import split_feedforward

# The sharding constraints on the hidden dimension, one after another. If the first constraint contained
# x, the compiler would gather weights.
HIDDEN = {"xyz": ("yz", "yzx", "yz"), "yz": ("yz",), "free": ()}
# Options of libtpu 0.0.42.1 for looped ("windowed") einsums.
WINDOWED = {
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "0",
    "xla_tpu_enable_windowed_einsum_for_all_gather": "true",
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "true",
    "xla_tpu_skip_checking_windowed_einsum_users": "true",
    "xla_tpu_spmd_bidirectional_windowed_einsum": "true",
}
COMPILER = tuple(
    f"compiler {hidden}{options}"
    for options in ("", " windowed", " asynchronous")
    for hidden in HIDDEN
)

DESCRIPTION = "gather yz, up and gate, scatter x, swiglu, gather x, down, scatter yz"
_IN, _OUT = "me,ef->mf", "mf,fe->me"
# Numbers of rows for which the layers are also unrolled; unrolled layers take long to compile.
UNROLLED_ROWS = (64, 512)
# Forms of the hidden activation other than sharded over x: unsharded after an all-reduce over x, and
# computed in two halves of d_ff.
UNSHARDED, HALVES = "unsharded", "halves"

Layer = Callable[..., jax.Array]
Axes = tuple[str, ...]
Shape = tuple[int, ...]


def blocking(
    c: jax.Array,
    w_up: jax.Array,
    w_gate: jax.Array,
    w_out: jax.Array,
    x: Axes,
    yz: Axes,
) -> jax.Array:
    """The feedforward with lax's own collectives around plain einsums, on local shards.

    Args:
      c: [m, E/xyz]. w_up, w_gate: [E/x, F/yz]. w_out: [F/yz, E/x].
      x, yz: mesh axes.

    Returns:
      [m, E/xyz].
    """
    h = lax.all_gather(c, yz, axis=1, tiled=True)
    up, gate = (
        lax.psum_scatter(_dot(h, w), x, scatter_dimension=1, tiled=True) for w in (w_up, w_gate)
    )
    a = lax.all_gather(jax.nn.silu(gate) * up, x, axis=1, tiled=True)
    return lax.psum_scatter(_dot(a, w_out), yz, scatter_dimension=1, tiled=True)


def ours(
    c: jax.Array,
    w_up: jax.Array,
    w_gate: jax.Array,
    w_out: jax.Array,
    x: Axes,
    yz: Axes,
    rows: bool = False,
) -> jax.Array:
    """The feedforward with collective einsums; arguments and result are as those of `blocking`.

    With `rows`, c and the result are [m/yz, E/x] instead: rows are contiguous, so that no collective
    has to reorder slices. The cost model decides which of four forms the hidden activation has
    between the einsums: sharded over x by tokens or by features, unsharded after an all-reduce over x,
    or computed in two halves of d_ff.
    """
    edge = "m" if rows else "e"
    hidden = _hidden(c, [w_up, w_gate], w_out, x, yz, edge)
    if hidden == HALVES:
        return split_feedforward(c, [w_up, w_gate], w_out, _swiglu, x, yz)
    up, gate = _einsum(_IN, c, [w_up, w_gate], **_before(x, yz, edge, hidden))
    if hidden == UNSHARDED:
        up, gate = lax.psum((up, gate), x)
    return _einsum(_OUT, _swiglu((up, gate)), w_out, **_after(x, yz, edge, hidden))


def _before(x: Axes, yz: Axes, edge: str, hidden: str) -> Mapping[str, Any]:
    """The collectives of the einsum into the hidden activation, as arguments of `choose_schedule`.

    An unsharded hidden activation needs an all-reduce over x after the einsum.
    """
    if hidden == UNSHARDED:
        return {"axis_name": yz, "gather": edge}
    return {
        "gather_axis_name": yz,
        "gather": edge,
        "scatter_axis_name": x,
        "scatter": hidden,
    }


def _after(x: Axes, yz: Axes, edge: str, hidden: str) -> Mapping[str, Any]:
    """The collectives of the einsum out of the hidden activation, as arguments of `choose_schedule`."""
    if hidden == UNSHARDED:
        return {"axis_name": yz, "scatter": edge}
    return {
        "gather_axis_name": x,
        "gather": hidden,
        "scatter_axis_name": yz,
        "scatter": edge,
    }


def _einsum(spec: str, lhs: jax.Array, rhs: jax.Array | list[jax.Array], **collectives: Any) -> Any:
    """The collective einsum with the collectives that are named; returns a list for a list of rhs."""
    if "gather_axis_name" in collectives:
        return ce.all_gather_einsum_reduce_scatter(spec, lhs, rhs, **collectives)
    if "gather" in collectives:
        return ce.all_gather_einsum(spec, lhs, rhs, **collectives)
    return ce.einsum_reduce_scatter(spec, lhs, rhs, **collectives)


def _hidden(
    c: jax.Array, w_in: list[jax.Array], w_out: jax.Array, x: Axes, yz: Axes, edge: str
) -> str:
    """The fastest form of the hidden activation: the label that x shards, "m" or "f", `UNSHARDED` or
    `HALVES`."""
    n = math.prod(lax.axis_size(axis) for axis in x)
    m = c.shape[0] * (math.prod(lax.axis_size(axis) for axis in yz) if edge == "m" else 1)
    sizes = {axis: lax.axis_size(axis) for axis in (*x, *yz)}
    choose = functools.partial(ce.choose_schedule, axis_size=sizes, chip=traced_chip())
    w_up, width = [_shape(w) for w in w_in], w_out.shape[0]
    shapes = {"f": (m, width // n), "m": (m // n, width), UNSHARDED: (m, width)}
    if m % n:
        del shapes["m"]
    seconds = {}
    for hidden, shape in shapes.items():
        between = jax.ShapeDtypeStruct(shape, c.dtype)
        up = choose(_IN, _shape(c), w_up, **_before(x, yz, edge, hidden))
        down = choose(_OUT, between, _shape(w_out), **_after(x, yz, edge, hidden))
        seconds[hidden] = up.rows[0].seconds + down.rows[0].seconds
    gathered = jax.ShapeDtypeStruct((m, w_in[0].shape[0]), c.dtype)
    sums = choose(_IN, gathered, w_up, axis_name=x).rows
    seconds[UNSHARDED] += next(row.exposed for row in sums if row.schedule.kind == "blocking")
    # The form with fewer collectives is preferred, as "blocking" is in `choose_schedule`: small memory
    # passes surround each collective.
    seconds[UNSHARDED] /= 1 + WORTHWHILE
    if edge == "m":
        around, between = (tuple(sizes[axis] for axis in axes) for axes in (x, yz))
        feedforward = TokenShardedFeedForward(
            tokens=m,
            d_model=w_in[0].shape[0],
            d_ff=width,
            inputs=len(w_in),
            x=around,
            yz=between,
            chip=traced_chip(),
        )
        seconds[HALVES] = split_seconds(feedforward) or math.inf
    return min(seconds, key=lambda hidden: seconds[hidden])


def _swiglu(inner: Sequence[jax.Array], lo: int = 0) -> jax.Array:
    """The nonlinearity between the matrices, for any slice of d_ff."""
    del lo
    up, gate = inner
    return jax.nn.silu(gate) * up


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """The feedforward, with rows on every chip and the dtype of its weights, bf16 only.

    Its layers are scanned, or, if `unrolled`, written out, with weights in arrays of their own: the
    compiler then brings weights to on-chip memory ahead of their matmuls.
    """

    rows: int
    weights: str = "bf16"
    unrolled: bool = False

    @property
    def name(self) -> str:
        """Its name in tables."""
        return "feedforward unrolled" if self.unrolled else "feedforward"

    @property
    def layers(self) -> int:
        """Layers of the timed program, one feedforward each."""
        return LAYERS

    @property
    def forms(self) -> tuple[str, ...]:
        """Names of all its forms."""
        return (PLAIN, "ours", *(() if self.unrolled else ("ours in jit", *COMPILER)))

    def variants(self, chip: ce.Chip) -> tuple[str, ...]:
        """What is tried: all its forms, on every chip."""
        del chip
        return self.forms

    def lower(self, mesh: Mesh, variant: str | ce.Schedule) -> jax.stages.Lowered:
        """The program: `LAYERS` layers.

        Raises ValueError if there is no such variant.
        """
        if not isinstance(variant, str) or variant not in self.forms:
            raise ValueError(f"there is no {self.name} {variant!r}; choose one of {self.forms}")
        x = ("x",)
        yz = tuple(name for name in mesh.axis_names if name != "x")
        activations, w_in, w_out = P(None, (*x, *yz)), P(None, x, yz), P(None, yz, x)
        n = math.prod(mesh.shape[axis] for axis in yz)
        rows = variant.startswith("ours") and self.rows % n == 0
        if rows:
            activations = P(yz, x)
        if variant in COMPILER:
            layer = _left_to_compiler(mesh, HIDDEN[variant.split()[1]], activations)
        else:
            own = functools.partial(ours, rows=rows)
            written: Layer = blocking if variant == PLAIN else own

            def layer(c: jax.Array, *w: jax.Array) -> jax.Array:
                return written(c, *w, x=x, yz=yz)

        def stack(c: jax.Array, weights: Sequence[Any]) -> jax.Array:
            if self.unrolled:
                return functools.reduce(lambda c, w: layer(c, *w), weights, c)
            return lax.scan(lambda c, w: (layer(c, *w), None), c, weights)[0]

        matrices = ((D_MODEL, D_FF), (D_MODEL, D_FF), (D_FF, D_MODEL))
        if self.unrolled:
            of_weights = (tuple(P(*spec[1:]) for spec in (w_in, w_in, w_out)),) * LAYERS
            shapes: tuple[Shape, ...] | tuple[tuple[Shape, ...], ...] = (matrices,) * LAYERS
        else:
            of_weights = (w_in, w_in, w_out)
            shapes = tuple((LAYERS, *matrix) for matrix in matrices)
        specs = (activations, of_weights)
        function = stack
        if variant not in COMPILER:
            function = jax.shard_map(
                stack, mesh=mesh, in_specs=specs, out_specs=activations, check_vma=False
            )

        def argument(spec: P, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

        arguments = jax.tree.map(
            argument, specs, ((self.rows, D_MODEL), shapes), is_leaf=lambda x: isinstance(x, P)
        )
        jit = jax.jit if variant in COMPILER else jit_of(variant, mesh)
        return jit(function, out_shardings=NamedSharding(mesh, activations)).lower(*arguments)

    def options(self, variant: str | ce.Schedule, mesh: Mesh) -> Mapping[str, bool | int | str]:
        """The compiler's options: its defaults, with einsums looped, or those of `ce.jit`."""
        words = str(variant).split()
        if words[-1] == "windowed":
            return WINDOWED
        if words[-1] == "asynchronous" or words == ["ours"]:
            return ce.compiler_options(chip_of(mesh))
        return {}


def feedforwards(rows: tuple[int, ...] = ROWS, unrolled: bool = False) -> tuple[FeedForward, ...]:
    """One for each number of rows, or, unrolled, for each of those that are among `UNROLLED_ROWS`."""
    counts = [count for count in rows if not unrolled or count in UNROLLED_ROWS]
    return tuple(FeedForward(count, unrolled=unrolled) for count in counts)


def _left_to_compiler(mesh: Mesh, hidden: tuple[str, ...], activations: P) -> Layer:
    """A layer of plain einsums on global arrays, with shardings for the hidden dimension."""

    def sharded(value: jax.Array, axes: str) -> jax.Array:
        spec = P(None, tuple(name for name in axes if name in mesh.axis_names))
        return lax.with_sharding_constraint(value, NamedSharding(mesh, spec))

    def layer(c: jax.Array, w_up: jax.Array, w_gate: jax.Array, w_out: jax.Array) -> jax.Array:
        h = sharded(c, "x") if hidden else c
        up, gate = (_dot(h, w) for w in (w_up, w_gate))
        for axes in hidden[:2]:
            up, gate = sharded(up, axes), sharded(gate, axes)
        a = jax.nn.silu(gate) * up
        for axes in hidden[2:]:
            a = sharded(a, axes)
        return lax.with_sharding_constraint(_dot(a, w_out), NamedSharding(mesh, activations))

    return layer


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum("mk,kn->mn", x, w, preferred_element_type=jnp.float32).astype(x.dtype)
