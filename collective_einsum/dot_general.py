"""`lax.dot_general` of global arrays, as layers of neural network libraries take it."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from opt_einsum import parser as oe_parser

from .chips.chip import Chip
from .global_arrays.array_layouts import AnyMesh
from .global_einsum import einsum
from .ops.schedule import Schedule
from .spec.quantized import OperandLike, Quantized

DimensionNumbers = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]


def dot_general(
    lhs: OperandLike,
    rhs: OperandLike,
    dimension_numbers: DimensionNumbers,
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    *,
    out_sharding: PartitionSpec | NamedSharding | None = None,
    mesh: AnyMesh | None = None,
    in_specs: Sequence[PartitionSpec] | None = None,
    schedule: str | Schedule = "auto",
    accumulator_dtype: DTypeLike | None = None,
    wire_dtype: DTypeLike | None = None,
    chip: Chip | str | None = None,
) -> jax.Array:
    """`lax.dot_general` with its collectives hidden: an `einsum` whose labels are dimension numbers.

    Has the signature that flax's layers ask of their `dot_general=`, which gives the einsum of
    sharded activations and weights to every dense layer of a model. On Auto axes such a layer says
    nothing of shardings, and the einsum is then the compiler's, as `einsum` has it; give them with
    `functools.partial(ce.dot_general, in_specs=..., out_sharding=...)`, or use Explicit axes.

    Args:
      lhs: a global array, or a `Quantized`.
      rhs: likewise.
      dimension_numbers: `((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch))`, dimensions
        of equal sizes, in pairs.
      precision, preferred_element_type, out_sharding: as in `lax.dot_general`.
      mesh, in_specs, schedule, accumulator_dtype, wire_dtype, chip: as `einsum`.

    Returns:
      The batch dimensions, then what is left of lhs, then of rhs.

    Raises:
      ValueError: while tracing, as `einsum`, and for dimension numbers that do not fit.
    """
    arrays = [x if isinstance(x, Quantized) else jnp.asarray(x) for x in (lhs, rhs)]
    text = formula(dimension_numbers, *(tuple(x.shape) for x in arrays))
    return einsum(
        text,
        *arrays,
        mesh=mesh,
        in_specs=in_specs,
        out_sharding=out_sharding,
        schedule=schedule,
        precision=precision,
        preferred_element_type=preferred_element_type,
        accumulator_dtype=accumulator_dtype,
        wire_dtype=wire_dtype,
        chip=chip,
    )


def formula(numbers: DimensionNumbers, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> str:
    """The einsum of dimension numbers, for operands of these shapes.

    Raises:
      ValueError: they do not fit the shapes.
    """
    where = f"dot_general of shapes {lhs} and {rhs} with dimension_numbers={numbers!r}"
    try:
        (summed, batch) = ([tuple(map(operator.index, side)) for side in both] for both in numbers)
        (left_summed, right_summed), (left_batch, right_batch) = summed, batch
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: give ((lhs_contracting, rhs_contracting), (lhs_batch, rhs_batch)), each a "
            "sequence of dimensions"
        ) from error
    for side, dims, shape in (
        ("lhs", left_summed + left_batch, lhs),
        ("rhs", right_summed + right_batch, rhs),
    ):
        if len(set(dims)) != len(dims) or not all(0 <= d < len(shape) for d in dims):
            raise ValueError(
                f"{where}: {dims} are to be different dimensions of {side}, of 0 to {len(shape) - 1}"
            )
    if len(left_summed) != len(right_summed) or len(left_batch) != len(right_batch):
        raise ValueError(f"{where}: lhs and rhs must name as many dimensions, pair by pair")
    left = [oe_parser.get_symbol(i) for i in range(len(lhs))]
    right = [oe_parser.get_symbol(len(lhs) + i) for i in range(len(rhs))]
    for i, j in zip(left_summed + left_batch, right_summed + right_batch, strict=True):
        if lhs[i] != rhs[j]:
            raise ValueError(
                f"{where}: dimension {i} of lhs is {lhs[i]} and dimension {j} of rhs is {rhs[j]}; "
                "both must be equal"
            )
        right[j] = left[i]
    out = [left[i] for i in left_batch]
    out += [c for i, c in enumerate(left) if i not in left_summed + left_batch]
    out += [c for j, c in enumerate(right) if j not in right_summed + right_batch]
    return f"{''.join(left)},{''.join(right)}->{''.join(out)}"
