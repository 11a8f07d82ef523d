"""How collectives of one array differentiate and batch: they are linear."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ..execution.run_collective import run_collective
from ..ops.collective_op import Collective
from .primitive import Dot, Rules, apply, checks_vma, register


def _tangents(
    op: Collective, operands: Sequence[jax.Array], tangents: Sequence[jax.Array | None]
) -> list[jax.Array | None]:
    """The collective of the tangent."""
    return [*apply(op, tangents[0])]


def _transpose(
    op: Collective, cotangents: Sequence[jax.Array], operands: Sequence[jax.Array | None]
) -> list[jax.Array | None]:
    """The mirrored collective of the cotangent."""
    if op.kind == "all_reduce":
        return [cotangents[0]] if checks_vma(op.axes) else [*apply(op, cotangents[0])]
    if op.kind == "all_to_all":
        mirrored = dataclasses.replace(op, dim=op.concat, concat=op.dim)
    else:
        other = "reduce_scatter" if op.kind == "all_gather" else "all_gather"
        mirrored = dataclasses.replace(op, kind=other)
    return [*apply(mirrored, cotangents[0])]


def _batched(
    op: Collective,
    dims: Sequence[int | None],
    operands: Sequence[jax.Array],
    over: tuple[str, ...],
) -> tuple[Collective, list[jax.Array]]:
    """The batch becomes the first dimension."""
    moved = jnp.moveaxis(operands[0], dims[0] or 0, 0)
    return dataclasses.replace(op, dim=op.dim + 1, concat=op.concat + 1), [moved]


def _dots(op: Collective, operands: Sequence[jax.Array]) -> list[Dot]:
    return []


register(
    Collective,
    Rules(
        run=run_collective,
        tangents=_tangents,
        transpose=_transpose,
        batched=_batched,
        dots=_dots,
    ),
)
