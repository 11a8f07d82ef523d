"""The dots of a calibration: their programs, and what the compiler made of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

import collective_einsum as ce
from bench.calibration.programs import DEVICES, LAYERS, lower_einsums, on_every_device, scaled
from collective_einsum.chips import Chip, DotObservation, Scattered
from collective_einsum.ruler.compile import Target
from collective_einsum.ruler.replay import dot_cycles

# Rows, contracted and columns, whose products are observed: of dots of 16 bits, and of narrower ones,
# which compile more slowly where bundles are dumped and counted.
_CONTRACTED, _COLUMNS = (256, 1152, 4608, 18432), (1152, 4608, 18432)
SIZES = ((8, 64, 256, 512, 2048), _CONTRACTED, _COLUMNS)
# Those of dots beside one of lax's collectives.
BESIDE_SIZES = ((64, 512, 2048), _CONTRACTED, _COLUMNS)
NARROW_SIZES = ((64, 256, 512, 1024), (1152, 4608), _COLUMNS)
NARROW_BESIDE_SIZES = ((64, 256, 512, 1024), (1152, 4608, 18432), (1152, 4608))
BF16 = ("bfloat16", "bfloat16")
NARROW = (("bfloat16", "int8"), ("int8", "int8"))
FP8 = ("float8_e4m3fn", "float8_e4m3fn")

# What scatters the result of a dot.
_SCHEDULES = {"whole": "blocking", "ring": "unidirectional"}

_Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
_Carry = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dot:
    """A dot of [rows, contracted] and [contracted, columns], and the dtypes of its operands; one that
    `adds` has a sum of 32 bits added, which is its result, as chunks of a contraction do; the result of
    one that is `scattered` is, whole or in a ring, of whose chunks it is one; the left operand of one
    that is `gathered` is what lax's all-gather left."""

    rows: int
    contracted: int
    columns: int
    lhs: str
    rhs: str
    adds: bool = False
    scattered: Scattered = ""
    gathered: bool = False

    @property
    def on_one_device(self) -> bool:
        """Whether it needs no collective, so that it can be timed on one device."""
        return not (self.scattered or self.gathered)

    @property
    def is_narrow(self) -> bool:
        """Whether an operand has less than 16 bits, so that its bundles are counted."""
        return any(jnp.dtype(dtype).itemsize < 2 for dtype in (self.lhs, self.rhs))

    @property
    def operands(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """The left operand and the stack of right ones."""
        return (
            jax.ShapeDtypeStruct((self.rows, self.contracted), jnp.dtype(self.lhs)),
            jax.ShapeDtypeStruct((LAYERS, self.contracted, self.columns), jnp.dtype(self.rhs)),
        )

    def lower(self, slice_: Target) -> jax.stages.Lowered:
        """The program, on every device of a slice: `loop`; for a dot that adds to a sum, all-gathers
        along rings, whose middle dot it is; for one that is scattered, reduce-scatters; for one that is
        gathered, lax's all-gathers.
        """
        x, stack = self.operands
        if self.gathered:
            shard = jax.ShapeDtypeStruct((self.rows, self.contracted // DEVICES), x.dtype)
            gathered = functools.partial(_gathered, "blocking")
            return lower_einsums(gathered, slice_, shard, stack)
        if self.adds:
            shape = (LAYERS, DEVICES * self.contracted, self.columns)
            ring = functools.partial(_gathered, "unidirectional")
            return lower_einsums(ring, slice_, x, jax.ShapeDtypeStruct(shape, stack.dtype))
        if self.scattered:
            times = DEVICES if self.scattered == "ring" else 1
            shape = (LAYERS, self.contracted, times * self.columns)
            scattered = functools.partial(_scattered, _SCHEDULES[self.scattered])
            return lower_einsums(scattered, slice_, x, jax.ShapeDtypeStruct(shape, stack.dtype))

        def program(x: jax.Array, stack: jax.Array) -> jax.Array:
            return self.loop((x, self.first), stack)[1]

        jit = ce.jit(program, chip=slice_.chip)
        return jit.lower(on_every_device(slice_, x), on_every_device(slice_, stack))

    @property
    def first(self) -> jax.Array:
        """The result before the first dot."""
        return jnp.zeros((self.rows, self.columns), self._result)

    def loop(self, carry: _Carry, stack: jax.Array) -> _Carry:
        """A loop over a stack of weights, of the left operand and the last result. The left operand,
        and a sum, are computed before each dot, so that they are in on-chip memory, as a gathered
        operand is."""

        def layer(carry: _Carry, w: jax.Array) -> tuple[_Carry, None]:
            x, y = lax.optimization_barrier(carry)
            if not self.adds:
                return (x, self._product(lax.optimization_barrier(x + x), w)), None
            x2, y2 = lax.optimization_barrier((x + x, y + y))
            y = lax.optimization_barrier(y2 + self._product(x2, w))
            return (x, y + y), None

        return lax.scan(layer, carry, stack)[0]

    def loop_without(self, carry: _Carry) -> _Carry:
        """What `loop` does beside its dots. Where the dot adds to no sum, the second array of `carry`
        has the shape of the left operand."""

        def layer(carry: _Carry, _: None) -> tuple[_Carry, None]:
            x, y = lax.optimization_barrier(carry)
            if not self.adds:
                return (x, lax.optimization_barrier(x + x)), None
            x, y = lax.optimization_barrier((x + x, y + y))
            return (x, y + y), None

        return lax.scan(layer, carry, None, length=LAYERS)[0]

    def _product(self, x: jax.Array, w: jax.Array) -> jax.Array:
        wide = w.astype(x.dtype) if self.lhs != self.rhs else w
        sums = self._sums
        return jnp.einsum("me,ef->mf", x, wide, preferred_element_type=sums).astype(self._result)

    @property
    def _sums(self) -> jnp.dtype:
        return jnp.dtype(jnp.int32 if self.lhs == self.rhs == "int8" else jnp.float32)

    @property
    def _result(self) -> jnp.dtype:
        keeps = self.adds or self._sums == jnp.int32
        return self._sums if keeps else jnp.dtype(jnp.bfloat16)

    def observed(self, slice_: Target, text: str) -> DotObservation:
        """The observation of the dot in the text of its compiled program.

        Raises ValueError if it has no dot.
        """
        assert slice_.chip is not None
        # The first dot of a ring adds to nothing, and waits longer for its left operand.
        in_ring = self.adds or self.scattered == "ring"
        cycles, basis = dot_cycles(slice_.chip, text, place=int(in_ring))
        source = "bundles" if basis == "bundles" else "estimate"
        return DotObservation(**vars(self), cycles=cycles, source=source)


def dots(chip: Chip) -> list[Dot]:
    """The dots that are observed on a chip."""
    found = [
        *_grid(SIZES, BF16),
        *_grid(SIZES, BF16, adds=True),
        *_grid(BESIDE_SIZES, BF16, gathered=True),
        *_grid(BESIDE_SIZES, BF16, scattered="whole"),
        *_grid(BESIDE_SIZES, BF16, scattered="ring"),
    ]
    for dtypes in NARROW:
        found.extend(_grid(NARROW_SIZES, dtypes))
    # The chunks of int8 weights that a ring's dots read, copied by a gather's and sliced by a scatter's,
    # are widened in other code.
    found.extend(_grid(NARROW_BESIDE_SIZES, NARROW[0], adds=True))
    found.extend(_grid(NARROW_BESIDE_SIZES, NARROW[0], scattered="whole"))
    found.extend(_grid(NARROW_BESIDE_SIZES, NARROW[0], scattered="ring"))
    if chip.fp8_flops:
        found.extend(_grid(NARROW_SIZES, FP8))
    return found


def _grid(
    sizes: _Sizes,
    dtypes: tuple[str, str],
    *,
    adds: bool = False,
    scattered: Scattered = "",
    gathered: bool = False,
) -> Iterator[Dot]:
    """The dots of one kind, of all products of rows, contracted and columns."""
    all_rows, all_contracted, all_columns = sizes
    for contracted, columns, rows in itertools.product(all_contracted, all_columns, all_rows):
        yield Dot(
            rows=rows,
            contracted=contracted,
            columns=columns,
            lhs=dtypes[0],
            rhs=dtypes[1],
            adds=adds,
            scattered=scattered,
            gathered=gathered,
        )


def _gathered(schedule: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return ce.all_gather_einsum(
        "me,ef->mf", x, scaled(x, w), axis_name="x", gather="e", schedule=schedule
    )


def _scattered(schedule: str, x: jax.Array, w: jax.Array) -> jax.Array:
    return ce.einsum_reduce_scatter(
        "me,ef->mf", x, scaled(x, w), axis_name="x", scatter="f", schedule=schedule
    )
