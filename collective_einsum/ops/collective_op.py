"""Collectives of one array, made of ring steps: what can run beside unrelated computation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from ..autodiff.primitive import Dot, apply, checks_vma
from ..execution.local_ops import psum_scatter
from ..rings import multi_axis as stages
from ..rings import ring_steps as ring
from ..rings.ring_steps import Steps
from ..spec.dtypes import accumulator_dtype
from .schedule import Direction, Schedule


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective over `axes`, of dimension `dim`; hashable.

    An all_to_all splits `dim` and joins along `concat`.
    """

    kind: Literal["all_gather", "reduce_scatter", "all_to_all", "all_reduce"]
    dim: int
    axes: tuple[str, ...]
    schedule: Schedule
    concat: int = 0

    @property
    def summed(self) -> tuple[str, ...]:
        """The axes over which results are equal afterwards."""
        return self.axes if self.kind == "all_reduce" else ()

    def run(self, *operands: Any) -> list[Any]:
        """The result, on local shards."""
        with jax.named_scope(f"{self.kind}[{self.schedule}]"):
            (x,) = operands
            wired = x.astype(self.schedule.wire_dtype or x.dtype)
            whole = self.schedule.kind == "blocking" or (
                self.schedule.direction == "async" and self.kind in ("all_gather", "all_to_all")
            )
            result = self._lax(wired) if whole else ring.finish(self._steps(x, wired))
            return [result.astype(x.dtype)]

    def _lax(self, x: Any) -> Any:
        if self.kind == "all_gather":
            return lax.all_gather(x, self.axes, axis=self.dim, tiled=True)
        if self.kind == "reduce_scatter":
            return psum_scatter(x, self.axes, self.dim)
        if self.kind == "all_to_all":
            return lax.all_to_all(x, self.axes, self.dim, self.concat, tiled=True)
        return lax.psum(x, self.axes)

    def _steps(self, x: Any, wired: Any) -> Steps:
        direction, rolls = self.schedule.direction, self.schedule.rolls
        if self.kind == "all_gather":
            return stages.all_gather(wired, self.axes, self.dim, direction, rolls=rolls)
        if self.kind == "all_to_all":
            return stages.all_to_all(wired, self.axes, self.dim, self.concat)
        sums = {
            "wire": lambda total: total.astype(wired.dtype),
            "accumulator": accumulator_dtype(x.dtype),
            "rolls": rolls,
        }
        if self.kind == "reduce_scatter":
            return stages.reduce_scatter(x, self.axes, self.dim, direction, **sums)
        return all_reduce_steps(x, self.axes, direction, **sums)

    def tangents(self, operands: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        """Linear; see `primitive.Op`."""
        return apply(self, tangents[0])

    def transpose(self, cotangents: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        """The mirrored collective; see `primitive.Op`."""
        if self.kind == "all_reduce":
            return [cotangents[0]] if checks_vma(self.axes) else apply(self, cotangents[0])
        if self.kind == "all_to_all":
            mirrored = dataclasses.replace(self, dim=self.concat, concat=self.dim)
        else:
            other = "reduce_scatter" if self.kind == "all_gather" else "all_gather"
            mirrored = dataclasses.replace(self, kind=other)
        return apply(mirrored, cotangents[0])

    def batched(
        self, dims: Sequence[int | None], operands: Sequence[Any], over: tuple[str, ...]
    ) -> tuple[Collective, list[Any]]:
        """A further dimension, in front; see `primitive.Op`. Those of `over` are not manual."""
        moved = jnp.moveaxis(operands[0], dims[0] or 0, 0)
        return dataclasses.replace(self, dim=self.dim + 1, concat=self.concat + 1), [moved]

    def dots(self, operands: Sequence[Any]) -> list[Dot]:
        """None; see `primitive.Op`."""
        return []


def all_reduce_steps(
    y: Any,
    axes: tuple[str, ...],
    direction: Direction,
    *,
    wire: Callable[[Any], Any],
    accumulator: Any,
    rolls: Callable[[int], bool],
) -> Steps:
    """A reduce-scatter and an all-gather of a dimension that suits, or of the flattened array."""
    if not y.size:
        return y
    shape, n = y.shape, ring.total(axes)
    least = 2 * n if direction == "bidirectional" else n
    fits = [
        d
        for d in reversed(range(y.ndim))
        if shape[d] % n == 0 and shape[d] >= least and _strands(shape, d, axes)
    ]
    dim = fits[0] if fits else 1
    if not fits:
        # A row for each axis, so that strands can be cut.
        y = jnp.pad(y.reshape(-1), (0, -y.size % (len(axes) * least))).reshape(len(axes), -1)
    y = yield from stages.reduce_scatter(
        y, axes, dim, direction, wire=wire, accumulator=accumulator, rolls=rolls
    )
    y = yield from stages.all_gather(wire(y), axes, dim, direction, rolls=rolls)
    return y if fits else y.reshape(-1)[: math.prod(shape)].reshape(shape)


def _strands(shape: tuple[int, ...], dim: int, axes: tuple[str, ...]) -> bool:
    """Whether all axes have something to carry."""
    return len(axes) == 1 or stages.strand_dim(shape, dim, len(axes)) is not None
