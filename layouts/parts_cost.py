"""What a weight-stationary feedforward costs in two parts of its hidden dimension, and whole."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

import collective_einsum as ce
from collective_einsum import blocks
from collective_einsum.chip import Chip
from collective_einsum.cost_dots import TILE, matmul_seconds
from collective_einsum.cost_lax import TILE_ROWS, exchange_seconds, torus_seconds

from .axes import Axes, size
from .items import ACTIVATION_BYTES


@dataclasses.dataclass(frozen=True)
class Rows:
    """A feedforward of rows that are cut over yz between layers and over x inside of them.

    Attributes:
      rows: of all chips of yz.
      d_model, width: E over x, and F over yz.
      count: of input matrices.
      x, yz: mesh axes.
      sizes: of the mesh axes.
      chip: what it runs on.
    """

    rows: int
    d_model: int
    width: int
    count: int
    x: Axes
    yz: Axes
    sizes: Mapping[str, int]
    chip: Chip

    def sides(self, axes: Axes) -> list[int]:
        """The sizes of some axes."""
        return [self.sizes[axis] for axis in axes]


def whole_seconds(of: Rows) -> float:
    """Seconds of two einsums, one after the other, with their collectives."""
    choose = functools.partial(ce.choose_schedule, axis_size=of.sizes, chip=of.chip)
    into = choose(
        "me,ef->mf",
        _array(of.rows // size(of.yz, of.sizes), of.d_model),
        [_array(of.d_model, of.width)] * of.count,
        gather="m",
        gather_axis_name=of.yz,
        scatter="m",
        scatter_axis_name=of.x,
    )
    out = choose(
        "mf,fe->me",
        _array(of.rows // size(of.x, of.sizes), of.width),
        _array(of.width, of.d_model),
        gather="m",
        gather_axis_name=of.x,
        scatter="m",
        scatter_axis_name=of.yz,
    )
    return into.rows[0].seconds + out.rows[0].seconds


def in_parts_seconds(of: Rows, shares: Sequence[int]) -> float | None:
    """Seconds of `parts.in_parts`, of these proportions; None where it cannot be, or hides nothing."""
    tiles = [TILE_ROWS * size(axes, of.sizes) for axes in (of.x, of.yz)]
    cut = of.width >= sum(shares) * TILE and of.d_model >= 2 * TILE
    alone = 1 in (size(of.x, of.sizes), size(of.yz, of.sizes))
    if alone or any(of.rows % tile for tile in tiles) or not cut:
        return None
    if not {"all_gather", "all_to_all"} <= set(of.chip.asynchronous):
        return None
    parts = [length for _, length in blocks.pieces_of(of.width, shares, TILE)]
    moved = [ACTIVATION_BYTES * of.rows * part for part in parts]
    around = of.sides(of.x)
    scatters = [exchange_seconds(of.chip, around, each) for each in moved]
    gathers = [torus_seconds(of.chip, around, each) for each in moved]
    dots = [_dot(of, of.d_model, part) for part in parts]
    half, last = _dot(of, parts[0], of.d_model // 2), _dot(of, parts[1], of.d_model, summed=True)
    ends = 2 * torus_seconds(of.chip, of.sides(of.yz), ACTIVATION_BYTES * of.rows * of.d_model)
    # What has been scattered is read where it is added up and goes through the nonlinearity.
    passes = of.count * sum(moved) / of.chip.vector_bandwidth
    others = of.count - 1
    # What stands beside what, in this order, as `in_parts` says it.
    beside = (
        *((scatters[0], dots[0]) for _ in range(others)),
        (scatters[0], others * dots[1]),
        (gathers[0] + others * scatters[1], dots[1]),
        (scatters[1], half),
        (gathers[1], half),
    )
    late = sum(max(0.0, collective - matmul) for collective, matmul in beside)
    return ends + of.count * sum(dots) + passes + 2 * half + last + late


def _dot(of: Rows, into: int, out: int, summed: bool = False) -> float:
    operands = sorted((ACTIVATION_BYTES * of.rows * into, ACTIVATION_BYTES * into * out))
    return matmul_seconds(
        of.chip,
        2.0 * of.rows * into * out,
        operands,
        ACTIVATION_BYTES * of.rows * out,
        summed_bytes=4.0 * of.rows * out if summed else 0,
    )


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)
