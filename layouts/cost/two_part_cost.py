"""Seconds of a token-sharded weight-stationary feedforward, with d_ff split in two or not."""

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
    Dot,
    all_gather_seconds,
    all_to_all_seconds,
    matmul_seconds,
)
from collective_einsum.rings import chunk_spans

from ..models.config import ModelConfig
from ..tuning import D_FF_FRACTIONS
from . import einsum_cost
from .layer_items import ACTIVATION_BYTES, Einsum, Item


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenShardedFeedForward:
    """A feedforward whose tokens are sharded over y and z between layers, and over x inside of them.

    Attributes:
      tokens: of all chips of y and z.
      d_model: E of a chip, sharded over x.
      d_ff: F of a chip, sharded over y and z.
      inputs: the number of input matrices.
      x, yz: sizes of the mesh axes.
      chip: the chip, as its compiler serves the program.
    """

    tokens: int
    d_model: int
    d_ff: int
    inputs: int
    x: tuple[int, ...]
    yz: tuple[int, ...]
    chip: Chip


def saving(of: TokenShardedFeedForward) -> float:
    """Seconds that "auto" saves by splitting d_ff; 0 where it does not split it."""
    split = split_seconds(of)
    if split is None:
        return 0.0
    unsplit = unsplit_seconds(of)
    return unsplit - split if split * (1 + WORTHWHILE) < unsplit else 0.0


def layer_saving(
    config: ModelConfig, items: Iterable[Item], sizes: Mapping[str, int], chip: Chip
) -> float:
    """Seconds that a serial block saves where its feedforward takes no longer than with d_ff split.

    Without the threshold above which "auto" splits d_ff, at which more work would take less time.
    """
    if config.block != "serial" or not config.gated:
        return 0.0
    names = (tuple(config.input_names), ("w_out",))
    einsums = [item for item in items if isinstance(item, Einsum) and item.names in names]
    into = einsums[0]
    if not into.moves_tokens or into.weight_bytes != ACTIVATION_BYTES:
        return 0.0
    if into.gather is None or into.scatter is None:
        return 0.0
    yz, x = (tuple(sizes[a] for a in end[1].axes) for end in (into.gather, into.scatter))
    split = split_seconds(
        TokenShardedFeedForward(
            tokens=into.m,
            d_model=into.e,
            d_ff=into.f[0],
            inputs=len(into.f),
            x=x,
            yz=yz,
            chip=chip,
        )
    )
    if split is None:
        return 0.0
    unsplit = sum(sum(einsum_cost.seconds(item, sizes, chip, "auto")) for item in einsums)
    return max(0.0, unsplit - split)


@functools.lru_cache(maxsize=2**12)
def unsplit_seconds(of: TokenShardedFeedForward) -> float:
    """Seconds of two einsums, one after the other, with their collectives."""
    x, yz = (
        {f"{name}{i}": n for i, n in enumerate(sides)}
        for name, sides in (("x", of.x), ("y", of.yz))
    )
    choose = functools.partial(ce.choose_schedule, axis_size=x | yz, chip=of.chip)
    into = choose(
        "me,ef->mf",
        _array(of.tokens // math.prod(of.yz), of.d_model),
        [_array(of.d_model, of.d_ff)] * of.inputs,
        gather="m",
        gather_axis_name=tuple(yz),
        scatter="m",
        scatter_axis_name=tuple(x),
    )
    out = choose(
        "mf,fe->me",
        _array(of.tokens // math.prod(of.x), of.d_ff),
        _array(of.d_ff, of.d_model),
        gather="m",
        gather_axis_name=tuple(x),
        scatter="m",
        scatter_axis_name=tuple(yz),
    )
    return into.rows[0].seconds + out.rows[0].seconds


def split_seconds(of: TokenShardedFeedForward) -> float | None:
    """Seconds of `split_feedforward`; None where tiles do not divide so, or nothing would overlap."""
    chips = math.prod(of.x), math.prod(of.yz)
    divides = of.d_ff >= sum(D_FF_FRACTIONS) * MATRIX_TILE and of.d_model >= 2 * MATRIX_TILE
    if 1 in chips or any(of.tokens % (TILE_ROWS * n) for n in chips) or not divides:
        return None
    if not {"all_gather", "all_to_all"} <= set(of.chip.asynchronous):
        return None
    fractions = [length for _, length in chunk_spans(of.d_ff, D_FF_FRACTIONS, MATRIX_TILE)]
    moved = [ACTIVATION_BYTES * of.tokens * fraction for fraction in fractions]
    scatters = [all_to_all_seconds(of.chip, of.x, size) for size in moved]
    gathers = [all_gather_seconds(of.chip, of.x, size) for size in moved]
    dots = [_dot(of, of.d_model, fraction) for fraction in fractions]
    half = _dot(of, fractions[0], of.d_model // 2)
    last = _dot(of, fractions[1], of.d_model, summed=True)
    ends = 2 * all_gather_seconds(of.chip, of.yz, ACTIVATION_BYTES * of.tokens * of.d_model)
    # Memory passes that read what was scattered, to add it up and to apply the nonlinearity.
    passes = of.inputs * sum(moved) / of.chip.vector_bandwidth
    others = of.inputs - 1
    # Collectives with the matmuls that overlap them, in the order of `split_feedforward`.
    pairs = (
        *((scatters[0], dots[0]) for _ in range(others)),
        (scatters[0], others * dots[1]),
        (gathers[0] + others * scatters[1], dots[1]),
        (scatters[1], half),
        (gathers[1], half),
    )
    late = sum(max(0.0, collective - matmul) for collective, matmul in pairs)
    return ends + of.inputs * sum(dots) + passes + 2 * half + last + late


def _dot(of: TokenShardedFeedForward, into: int, out: int, summed: bool = False) -> float:
    return matmul_seconds(of.chip, Dot(rows=of.tokens, contracted=into, columns=out, adds=summed))


def _array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)
