"""How much longer than by the data sheet dots take, interpolated in what was observed of a compiler.

Observed seconds are taken over those of arithmetic at the peak or of HBM bytes, the longer of both.
Between the observed sizes the logarithm of this is linear in those of rows, contracted and columns;
beyond them it is that of the nearest size.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from ..chips.chip import Chip
from ..chips.names import as_chip
from ..chips.observations import DotObservation, Scattered
from ..chips.peaks import is_fp8, is_int8
from ..chips.streaming import streaming_seconds, waits_for_hbm
from .roofline import Dot, multiplying_seconds, roofline_seconds, streamed_bytes


class _Kind(NamedTuple):
    """The dtypes of both operands, whether the dot adds to a sum, how its result is scattered, and
    whether its left operand is gathered."""

    lhs: str
    rhs: str
    adds: bool = False
    scattered: Scattered = ""
    gathered: bool = False


_PLAIN = _Kind("bfloat16", "bfloat16")
_BF16 = jnp.dtype(jnp.bfloat16)
# A part of a chunk's result may stay on chip: such a dot is taken to wait for HBM if it waits by so much
# longer.
_SURELY = 1.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Values at all products of some sizes.

    Attributes:
      axes: the logarithms of the sizes of each dimension, rising.
      values: by their places in `axes`.
    """

    axes: tuple[tuple[float, ...], ...]
    values: Mapping[tuple[int, ...], float]

    @classmethod
    def of(cls, values: Mapping[tuple[float, ...], float]) -> Grid:
        """The grid of these values by sizes.

        Raises:
          ValueError: a product of the sizes has no value.
        """
        sizes = [sorted(set(column)) for column in zip(*values, strict=True)]
        places = {
            tuple(axis.index(size) for axis, size in zip(sizes, key, strict=True)): value
            for key, value in values.items()
        }
        if len(places) != math.prod(map(len, sizes)):
            raise ValueError(
                f"observed dots are no grid of sizes {sizes}: {len(places)} of "
                f"{math.prod(map(len, sizes))} are there; run `python -m bench calibrate` again"
            )
        axes = tuple(tuple(math.log(size) for size in axis) for axis in sizes)
        return cls(axes=axes, values=places)

    def at(self, sizes: tuple[float, ...]) -> float:
        """The value at some sizes, each dimension linear in its logarithm."""
        corners = {(): 1.0}
        for axis, size in zip(self.axes, sizes, strict=True):
            weights = _weights(axis, math.log(max(size, 1.0)))
            corners = {
                (*corner, place): weight * share
                for corner, weight in corners.items()
                for place, share in weights
            }
        return sum(weight * self.values[corner] for corner, weight in corners.items())


def dot_factor(chip: Chip, dot: Dot) -> float:
    """Seconds of a dot over `roofline_seconds`; 1.0 for a chip whose compiler was not observed.

    Both are those of the chip that was observed, whatever numbers of its data sheet `chip` has replaced,
    so that a lower rate never takes less time.
    """
    grids = _grids(chip.observed)
    if not grids:
        return 1.0
    kind, turned = _kind(dot)
    observed = as_chip(chip.observed)
    grid = grids.get(kind) or grids.get(_Kind(kind.lhs, kind.rhs)) or grids[_PLAIN]
    known = kind in grids
    sizes = (dot.rows, dot.contracted, dot.columns)
    if dot.adds and known:
        sizes = _with_as_large_a_sum(dot, grid)
    seconds = math.exp(grid.at(sizes[::-1] if turned else sizes)) * _bound_seconds(observed, dot)
    if dot.scattered and not known:
        seconds += _scattered_seconds(observed, dot)
    # Chips read faster than compilers reckon, and int8 weights of a stack as fast, though code that is
    # issued on v4 widens them: Pope et al. measured decode steps of PaLM 540B to gain 71 us a layer from
    # int8 weights, which are 71 MB less a chip. Dots that were timed read as fast as their chip does.
    # Those in a scatter's ring, which slice columns of int8 weights, take what their bundles say.
    moved = streamed_bytes(dot)
    narrow = (kind.lhs, kind.rhs) != (_PLAIN.lhs, _PLAIN.rhs)
    slices = dot.scattered == "ring" and narrow and known
    streams = not slices and not _is_measured(observed)
    whole = dot.gathered and not narrow
    if streams and waits_for_hbm(observed, moved / (1 if whole else _SURELY), dot.flops):
        seconds = min(seconds, streaming_seconds(observed, moved))
    return seconds / roofline_seconds(observed, dot)


def _with_as_large_a_sum(dot: Dot, grid: Grid) -> tuple[float, float, float]:
    """Rows, contracted and columns of the observed dot that stands for one that adds to a sum: of more
    rows than were observed, one with as large a sum, since it counts whether that stays in on-chip
    memory."""
    beyond = max(1.0, dot.rows / math.exp(grid.axes[0][-1]))
    return dot.rows / beyond, dot.contracted, dot.columns * beyond


def _scattered_seconds(observed: Chip, dot: Dot) -> float:
    """Seconds that a dot of narrow operands takes longer where its result is scattered: those by which
    one of bf16 waits longer for its left operand, which was not gathered."""
    grids, sizes = _grids(observed.observed), (dot.rows, dot.contracted, dot.columns)
    kind = _PLAIN._replace(scattered=dot.scattered)
    if kind not in grids:
        return 0.0
    scattered, plain = (math.exp(grids[one].at(sizes)) for one in (kind, _PLAIN))
    wide = dataclasses.replace(dot, lhs=_BF16, rhs=_BF16, result=_BF16)
    return max(0.0, scattered - plain) * _bound_seconds(observed, wide)


def _is_measured(chip: Chip) -> bool:
    return chip.observations is not None and chip.observations.measured


def _kind(dot: Dot) -> tuple[_Kind, bool]:
    """The kind of the observed dots that stand for this one, and whether they are its transpose."""
    if is_fp8(dot.lhs) and is_fp8(dot.rhs):
        lhs = rhs = "float8_e4m3fn"
    else:
        lhs, rhs = ("int8" if is_int8(dtype) else "bfloat16" for dtype in (dot.lhs, dot.rhs))
    turned = (lhs, rhs) == ("int8", "bfloat16")
    operands = (rhs, lhs) if turned else (lhs, rhs)
    return _Kind(*operands, dot.adds, dot.scattered, dot.gathered), turned


def _bound_seconds(chip: Chip, dot: Dot) -> float:
    """Seconds of a dot at the peak, or of its bytes at the bandwidth that is reached."""
    streaming = streamed_bytes(dot) / chip.reached_hbm_bandwidth
    return max(multiplying_seconds(chip, dot), streaming)


@functools.cache
def _grids(name: str) -> Mapping[_Kind, Grid]:
    """The logarithms of observed seconds over `_bound_seconds`, of a chip by its short name, by kind."""
    if not name:
        return {}
    chip = as_chip(name)
    observations = chip.observations
    if observations is None:
        return {}
    by_kind: dict[_Kind, dict[tuple[float, ...], float]] = {}
    for seen in observations.dots:
        bound = _bound_seconds(chip, _dot(seen))
        factor = math.log(seen.cycles / observations.clock_hz / bound)
        sizes = (seen.rows, seen.contracted, seen.columns)
        kind = _Kind(seen.lhs, seen.rhs, seen.adds, seen.scattered, seen.gathered)
        by_kind.setdefault(kind, {})[sizes] = factor
    return {kind: Grid.of(values) for kind, values in by_kind.items()}


def _dot(seen: DotObservation) -> Dot:
    lhs, rhs = jnp.dtype(seen.lhs), jnp.dtype(seen.rhs)
    integers = is_int8(lhs) and is_int8(rhs)
    return Dot(
        rows=seen.rows,
        contracted=seen.contracted,
        columns=seen.columns,
        lhs=lhs,
        rhs=rhs,
        result=jnp.dtype(jnp.int32 if integers else jnp.bfloat16),
        adds=seen.adds,
    )


def _weights(axis: tuple[float, ...], value: float) -> tuple[tuple[int, float], ...]:
    """The places on an axis on both sides of a value, with their weights."""
    above = bisect.bisect_right(axis, value)
    if above == 0:
        return ((0, 1.0),)
    if above == len(axis):
        return ((above - 1, 1.0),)
    share = (value - axis[above - 1]) / (axis[above] - axis[above - 1])
    return ((above - 1, 1 - share), (above, share))
