"""A whole feedforward, weight-stationary in two dimensions, written in three ways.

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
from bench.einsum_suite.cases import D_FF, D_MODEL, LAYERS, ROWS, chip_of, jit_of
from collective_einsum.chips import traced_chip
from collective_einsum.cost import WORTHWHILE
from layouts.cost import TokenShardedFeedForward, split_seconds
from layouts.layers import split_feedforward

# The shardings that the compiler is given for the hidden dimension, one after the other. To ask for
# x at once makes it gather weights.
HIDDEN = {"xyz": ("yz", "yzx", "yz"), "yz": ("yz",), "free": ()}
# Those that libtpu 0.0.42.1 knows for looped ("windowed") einsums.
WINDOWED = {
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "0",
    "xla_tpu_enable_windowed_einsum_for_all_gather": "true",
    "xla_tpu_enable_windowed_einsum_for_reduce_scatter": "true",
    "xla_tpu_skip_checking_windowed_einsum_users": "true",
    "xla_tpu_spmd_bidirectional_windowed_einsum": "true",
}
COMPILER = tuple(
    f"compiler {hidden}{how}" for how in ("", " windowed", " asynchronous") for hidden in HIDDEN
)

DESCRIPTION = "gather yz, up and gate, scatter x, swiglu, gather x, down, scatter yz"
_IN, _OUT = "me,ef->mf", "mf,fe->me"
# Rows of which the layers are also written out one by one, which compiles for long.
UNROLLED_ROWS = (64, 512)
# What x cuts of the hidden dimension where its sums are all-reduced, and where it comes in two parts.
WHOLE, PARTS = "none", "rows of parts"

Layer = Callable[..., jax.Array]


def blocking(
    c: jax.Array,
    w_up: jax.Array,
    w_gate: jax.Array,
    w_out: jax.Array,
    x: tuple[str, ...],
    yz: tuple[str, ...],
) -> jax.Array:
    """The plain collectives of lax around plain einsums, on local shards.

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
    x: tuple[str, ...],
    yz: tuple[str, ...],
    rows: bool = False,
) -> jax.Array:
    """The same with collective einsums; arguments and result as `blocking`.

    With `rows`, c and the result are [m/yz, E/x] instead: rows are contiguous, so that no collective
    has blocks to move apart. Whether the hidden dimension lies in rows or columns between the
    einsums, or whole after an all-reduce over x, or comes in two parts, is what the cost model says
    of the four.
    """
    edge = "m" if rows else "e"
    operands = c, [w_up, w_gate], w_out
    hidden = _hidden(*operands, x, yz, edge)
    if hidden == PARTS:
        return split_feedforward(c, [w_up, w_gate], w_out, _swiglu, x, yz)
    up, gate = _up(*operands[:2], x, yz, edge, hidden)
    if hidden == WHOLE:
        up, gate = lax.psum((up, gate), x)
    return _down(_swiglu((up, gate)), w_out, x, yz, edge, hidden)


def _up(c: Any, w: list[Any], x: Any, yz: Any, edge: str, hidden: str, of: Any = None) -> Any:
    """The projections into the hidden dimension, or what `of`, such as `choose_schedule`, says.

    What stays whole is still to be summed over x.
    """
    if hidden == WHOLE:
        return (of or ce.all_gather_einsum)(_IN, c, w, axis_name=yz, gather=edge)
    ends = {"gather_axis_name": yz, "gather": edge, "scatter_axis_name": x, "scatter": hidden}
    return (of or ce.all_gather_einsum_reduce_scatter)(_IN, c, w, **ends)


def _down(h: Any, w: Any, x: Any, yz: Any, edge: str, hidden: str, of: Any = None) -> Any:
    """The projection out of the hidden dimension, likewise."""
    if hidden == WHOLE:
        return (of or ce.einsum_reduce_scatter)(_OUT, h, w, axis_name=yz, scatter=edge)
    ends = {"gather_axis_name": x, "gather": hidden, "scatter_axis_name": yz, "scatter": edge}
    return (of or ce.all_gather_einsum_reduce_scatter)(_OUT, h, w, **ends)


def _hidden(c: Any, w_in: list[Any], w_out: Any, x: Any, yz: Any, edge: str) -> str:
    """What x cuts of the hidden dimension, its label "m" or "f", `WHOLE` or `PARTS`: the fastest."""
    n = math.prod(lax.axis_size(axis) for axis in x)
    m = c.shape[0] * (math.prod(lax.axis_size(axis) for axis in yz) if edge == "m" else 1)
    sizes = {axis: lax.axis_size(axis) for axis in (*x, *yz)}
    of = functools.partial(ce.choose_schedule, axis_size=sizes, chip=traced_chip())
    w_up, width = [_shape(w) for w in w_in], w_out.shape[0]
    shapes = {"f": (m, width // n), "m": (m // n, width), WHOLE: (m, width)}
    if m % n:
        del shapes["m"]
    seconds = {}
    for hidden, shape in shapes.items():
        between = jax.ShapeDtypeStruct(shape, c.dtype)
        up = _up(_shape(c), w_up, x, yz, edge, hidden, of)
        down = _down(between, _shape(w_out), x, yz, edge, hidden, of)
        seconds[hidden] = up.rows[0].seconds + down.rows[0].seconds
    gathered = jax.ShapeDtypeStruct((m, w_in[0].shape[0]), c.dtype)
    sums = of(_IN, gathered, w_up, axis_name=x).rows
    seconds[WHOLE] += next(row.exposed for row in sums if row.schedule.kind == "blocking")
    # As with "blocking": fewer collectives unless more pay, for each has small passes around it.
    seconds[WHOLE] /= 1 + WORTHWHILE
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
        seconds[PARTS] = split_seconds(feedforward) or math.inf
    return min(seconds, key=lambda hidden: seconds[hidden])


def _swiglu(inner: Sequence[jax.Array], lo: int = 0) -> jax.Array:
    """What stands between the matrices, of any columns of them."""
    del lo
    up, gate = inner
    return jax.nn.silu(gate) * up


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """The feedforward, with rows on each chip and the dtype of its weights, all bf16 here.

    Its layers are scanned, or, if `unrolled`, written out, each with arrays of its own: the compiler
    then brings weights to on-chip memory ahead of their matmuls.
    """

    rows: int
    weights: str = "bf16"
    unrolled: bool = False

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return "feedforward unrolled" if self.unrolled else "feedforward"

    @property
    def layers(self) -> int:
        """How often the timed program does it."""
        return LAYERS

    def variants(self) -> tuple[str, ...]:
        """All ways to write it."""
        return ("blocking", "ours", *(() if self.unrolled else ("ours in jit", *COMPILER)))

    def lower(self, mesh: Mesh, variant: str) -> jax.stages.Lowered:
        """The program: `LAYERS` layers.

        Raises ValueError if there is no such variant.
        """
        if variant not in self.variants():
            raise ValueError(
                f"there is no {self.name} {variant!r}; choose one of {self.variants()}"
            )
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
            written: Layer = blocking if variant == "blocking" else own

            def layer(c: jax.Array, *w: jax.Array) -> jax.Array:
                return written(c, *w, x=x, yz=yz)

        def stack(c: jax.Array, weights: Any) -> jax.Array:
            if self.unrolled:
                return functools.reduce(lambda c, w: layer(c, *w), weights, c)
            return lax.scan(lambda c, w: (layer(c, *w), None), c, weights)[0]

        matrices = ((D_MODEL, D_FF), (D_MODEL, D_FF), (D_FF, D_MODEL))
        if self.unrolled:
            of_weights = (tuple(P(*spec[1:]) for spec in (w_in, w_in, w_out)),) * LAYERS
            shapes: Any = (matrices,) * LAYERS
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

    def options(self, variant: str, mesh: Mesh) -> Mapping[str, Any]:
        """The compiler's options: its defaults, with einsums looped, or those of `ce.jit`."""
        if variant.endswith("windowed"):
            return WINDOWED
        if variant.endswith("asynchronous") or variant == "ours":
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

    def layer(c: Any, w_up: Any, w_gate: Any, w_out: Any) -> jax.Array:
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
