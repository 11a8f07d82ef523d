"""What a weight-stationary feedforward costs in two parts of its hidden dimension, and whole."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp

import collective_einsum as ce
from collective_einsum.chips import MATRIX_TILE, TILE_ROWS, Chip
from collective_einsum.cost import (
    WORTHWHILE,
    all_gather_seconds,
    all_to_all_seconds,
    matmul_seconds,
)
from collective_einsum.rings import pieces_of

from ..models.config import ModelConfig
from ..tuning import D_FF_FRACTIONS
from . import einsum_cost
from .layer_items import ACTIVATION_BYTES, Einsum, Item


@dataclasses.dataclass(frozen=True)
class Rows:
    """A feedforward of rows that are cut over yz between layers and over x inside of them.

    Attributes:
      rows: of all chips of yz.
      d_model, width: E over x, and F over yz.
      count: of input matrices.
      x, yz: sizes of the mesh axes.
      chip: what it runs on.
    """

    rows: int
    d_model: int
    width: int
    count: int
    x: tuple[int, ...]
    yz: tuple[int, ...]
    chip: Chip


def saving(of: Rows) -> float:
    """Seconds that "auto" saves by two parts; 0 where it makes none, since they are not worth it."""
    parts = in_parts_seconds(of)
    if parts is None:
        return 0.0
    whole = whole_seconds(of)
    return whole - parts if parts * (1 + WORTHWHILE) < whole else 0.0


def layer_saving(
    config: ModelConfig, items: Iterable[Item], sizes: Mapping[str, int], chip: Chip
) -> float:
    """Seconds that a layer saves whose feedforward takes no longer than in two parts, where it may come
    in parts: that of a serial block.

    Without the threshold from which "auto" makes parts, through which more work would take less time.
    """
    if config.block != "serial" or not config.gated:
        return 0.0
    names = (tuple(config.input_names), ("w_out",))
    whole = [item for item in items if isinstance(item, Einsum) and item.names in names]
    into = whole[0]
    if not into.moves_tokens or into.weight_bytes != ACTIVATION_BYTES:
        return 0.0
    if into.gather is None or into.scatter is None:
        return 0.0
    yz, x = (tuple(sizes[a] for a in end[1].axes) for end in (into.gather, into.scatter))
    of = Rows(into.m, into.e, into.f[0], len(into.f), x, yz, chip)
    parts = in_parts_seconds(of)
    if parts is None:
        return 0.0
    charged = sum(sum(einsum_cost.seconds(item, sizes, chip, "auto")) for item in whole)
    return max(0.0, charged - parts)


@functools.lru_cache(maxsize=2**12)
def whole_seconds(of: Rows) -> float:
    """Seconds of two einsums, one after the other, with their collectives."""
    x, yz = (
        {f"{name}{i}": n for i, n in enumerate(sides)}
        for name, sides in (("x", of.x), ("y", of.yz))
    )
    choose = functools.partial(ce.choose_schedule, axis_size=x | yz, chip=of.chip)
    into = choose(
        "me,ef->mf",
        _array(of.rows // math.prod(of.yz), of.d_model),
        [_array(of.d_model, of.width)] * of.count,
        gather="m",
        gather_axis_name=tuple(yz),
        scatter="m",
        scatter_axis_name=tuple(x),
    )
    out = choose(
        "mf,fe->me",
        _array(of.rows // math.prod(of.x), of.width),
        _array(of.width, of.d_model),
        gather="m",
        gather_axis_name=tuple(x),
        scatter="m",
        scatter_axis_name=tuple(yz),
    )
    return into.rows[0].seconds + out.rows[0].seconds


def in_parts_seconds(of: Rows) -> float | None:
    """Seconds of `parts.in_parts`; None where it cannot be, or hides nothing."""
    chips = math.prod(of.x), math.prod(of.yz)
    cut = of.width >= sum(D_FF_FRACTIONS) * MATRIX_TILE and of.d_model >= 2 * MATRIX_TILE
    if 1 in chips or any(of.rows % (TILE_ROWS * n) for n in chips) or not cut:
        return None
    if not {"all_gather", "all_to_all"} <= set(of.chip.asynchronous):
        return None
    parts = [length for _, length in pieces_of(of.width, D_FF_FRACTIONS, MATRIX_TILE)]
    moved = [ACTIVATION_BYTES * of.rows * part for part in parts]
    scatters = [all_to_all_seconds(of.chip, of.x, each) for each in moved]
    gathers = [all_gather_seconds(of.chip, of.x, each) for each in moved]
    dots = [_dot(of, of.d_model, part) for part in parts]
    half, last = _dot(of, parts[0], of.d_model // 2), _dot(of, parts[1], of.d_model, summed=True)
    ends = 2 * all_gather_seconds(of.chip, of.yz, ACTIVATION_BYTES * of.rows * of.d_model)
    # What has been scattered is read where it is added up and goes through the nonlinearity.
    passes = of.count * sum(moved) / of.chip.vector_bandwidth
    others = of.count - 1
    # What stands beside what, in this order, as `in_parts` says it.
    overlap_seconds = (
        *((scatters[0], dots[0]) for _ in range(others)),
        (scatters[0], others * dots[1]),
        (gathers[0] + others * scatters[1], dots[1]),
        (scatters[1], half),
        (gathers[1], half),
    )
    late = sum(max(0.0, collective - matmul) for collective, matmul in overlap_seconds)
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
