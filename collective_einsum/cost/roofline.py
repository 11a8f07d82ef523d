"""One dot, and the seconds that it takes by a chip's data sheet."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..chips.chip import Chip
from ..chips.observations import Scattered
from ..chips.peaks import peak_flops
from ..chips.streaming import streaming_seconds

_BF16 = np.dtype(jnp.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dot:
    """A dot of [batch, rows, contracted] and [batch, contracted, columns], operands and result in HBM.

    Sizes are no integers where they are averages over chunks.

    Attributes:
      rows, contracted, columns, batch: its sizes.
      lhs, rhs, result: dtypes; that of the result only counts if the dot adds to no sum.
      adds: whether it adds to a sum of 32 bits, as a chunk of a contraction does.
      sums: sums of this size that are live at the same time, where it adds to one: more than one where
        a ring of two directions, or several right operands, has a sum for each.
      scattered: "whole" where its result is scattered and its left operand was not gathered, "ring"
        where it is one of the chunks of a result that a ring scatters; "" for others.
      gathered: whether lax's all-gather of its columns left the left operand.
      precision: as `jnp.einsum` takes it; it counts for operands of 32 bits alone.
      padding: what the matrix unit multiplies, full tiles, over what there is to multiply.
    """

    rows: float
    contracted: float
    columns: float
    batch: float = 1.0
    lhs: np.dtype[np.generic] = _BF16
    rhs: np.dtype[np.generic] = _BF16
    result: np.dtype[np.generic] = _BF16
    adds: bool = False
    sums: float = 1.0
    scattered: Scattered = ""
    gathered: bool = False
    precision: lax.PrecisionLike = None
    padding: float = 1.0

    @property
    def flops(self) -> float:
        """Twice the multiply-adds of full tiles."""
        return 2 * self.padding * self.batch * self.rows * self.contracted * self.columns

    @property
    def lhs_bytes(self) -> float:
        """Bytes of the left operand."""
        return self.batch * self.rows * self.contracted * self.lhs.itemsize

    @property
    def rhs_bytes(self) -> float:
        """Bytes of the right operand."""
        return self.batch * self.contracted * self.columns * self.rhs.itemsize

    @property
    def result_bytes(self) -> float:
        """Bytes of the result; of the sum, where the dot adds to one."""
        itemsize = 4 if self.adds else self.result.itemsize
        return self.batch * self.rows * self.columns * itemsize


def multiplying_seconds(chip: Chip, dot: Dot) -> float:
    """Seconds of a dot's arithmetic at the peak of its dtypes."""
    return dot.flops / peak_flops(chip, dot.lhs, dot.rhs, dot.precision)


def streamed_bytes(dot: Dot) -> float:
    """Bytes of a dot that go to and from HBM: the larger operand, and a result that is no sum. The
    smaller operand is in on-chip memory, as what a collective or another dot made, and so is a sum."""
    return max(dot.lhs_bytes, dot.rhs_bytes) + (0 if dot.adds else dot.result_bytes)


def roofline_seconds(chip: Chip, dot: Dot) -> float:
    """Seconds of a dot by the data sheet: the longer of arithmetic and of memory, and HBM's fill."""
    streaming = streaming_seconds(chip, streamed_bytes(dot))
    return max(multiplying_seconds(chip, dot) + chip.hbm_fill_seconds, streaming)
