"""Shapes for which XLA:TPU makes an all-reduce of a gather or of a scatter, which moves twice the bytes.

Each rule was seen in compiled programs, where a gather fed a dot or a dot a scatter.
`tests/compiler_habits/test_lowering_rules.py` compiles one that shows it and one beside it that does
not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from ..chips.chip import Chip
from ..chips.tiles import TILE_LANES, TILE_ROWS
from .torus import offloads

# A scatter along the lanes stays one where a row of a block has a multiple of these bytes (H11 in
# docs/compiler.md).
ROW_BYTES = 512
# Fewest devices over three axes whose gather becomes an all-reduce: on v4, 4x4x4 and not 2x4x4.
REDUCED_DEVICES = 64

_VERSIONS = ("libtpu 0.0.42.1", "libtpu 0.0.50.1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """What a device has before a gather, or after a scatter, as a matrix.

    Attributes:
      rows, columns: elements of all dimensions but the last, and of the last.
      itemsize: bytes of an element.
      along: the dimension that is gathered or scattered; "inner" is neither the first nor the last.
      sides: the sides of the slice, longer than one device, that the collective goes over.
    """

    rows: int
    columns: int
    itemsize: int
    along: Literal["rows", "columns", "inner"]
    sides: tuple[int, ...]

    @property
    def tiles(self) -> int:
        """Tiles of `TILE_ROWS` by `TILE_LANES` that the block fills, the last ones in part."""
        return -(-self.rows // TILE_ROWS) * -(-self.columns // TILE_LANES)

    def laid_out(self, chip: Chip) -> Block:
        """As XLA:TPU lays out the result of a dot whose columns are scattered: transposed, if rows fill
        the lanes of their last tile better than columns do; if both fill them as well, where
        `Chip.transposes_scatter` says so. SparseCores scatter rows alone."""
        if self.along != "columns" or not self.rows:
            return self
        columns, rows = _padding(self.columns), _padding(self.rows)
        stays = columns < rows or (columns == rows and not chip.transposes_scatter)
        if stays and not offloads(chip, "reduce_scatter"):
            return self
        return dataclasses.replace(self, rows=self.columns, columns=self.rows, along="rows")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoweringRule:
    """A shape for which the compiler makes something else of one of lax's collectives.

    Attributes:
      name: of the rule.
      collective: what the program asks for.
      when: for which blocks, in words.
      applies: whether it is so for a block, laid out, on a chip.
      becomes: what the compiler makes.
      seen_with: versions of the compiler with which it was seen.
    """

    name: str
    collective: Literal["all_gather", "reduce_scatter"]
    when: str
    applies: Callable[[Chip, Block], bool]
    becomes: Literal["all_reduce"] = "all_reduce"
    seen_with: tuple[str, ...] = _VERSIONS


def scatters_a_plane(chip: Chip, sides: Sequence[int]) -> bool:
    """Whether a reduce-scatter over these sides of a slice goes over both of a torus that has two, each
    longer than two devices: over 2x2 and 2x4 chips of v5e and v6e it stays a reduce-scatter."""
    long = [side for side in sides if side > 1]
    return chip.torus_dims == 2 and len(long) > 1 and min(long) > 2


RULES = (
    LoweringRule(
        name="gather of a part of a row",
        collective="all_gather",
        when="along the columns of a single row, if a shard is no whole number of tiles of lanes",
        applies=lambda _, block: (
            block.along == "columns" and block.rows == 1 and block.columns % TILE_LANES != 0
        ),
    ),
    LoweringRule(
        name="gather over three axes",
        collective="all_gather",
        when=f"over three axes of a torus, of {REDUCED_DEVICES} devices or more",
        applies=lambda _, block: len(block.sides) > 2 and math.prod(block.sides) >= REDUCED_DEVICES,
    ),
    LoweringRule(
        name="scatter of parts of tiles",
        collective="reduce_scatter",
        when="along the rows, if those of a block are no whole number of tiles",
        applies=lambda _, block: block.along == "rows" and block.rows % TILE_ROWS != 0,
    ),
    LoweringRule(
        name="scatter of an odd number of tiles",
        collective="reduce_scatter",
        when="along the rows, if a block is an odd number of tiles, of which no half goes each way",
        applies=lambda _, block: block.along == "rows" and block.tiles % 2 == 1,
    ),
    LoweringRule(
        name="scatter of lanes",
        collective="reduce_scatter",
        when=f"along the columns, if a row of a block is no multiple of {ROW_BYTES} bytes",
        applies=lambda _, block: (
            block.along == "columns" and block.columns * block.itemsize % ROW_BYTES != 0
        ),
    ),
    LoweringRule(
        name="scatter over a plane",
        collective="reduce_scatter",
        when="over both axes of a torus that has two, each of more than two devices",
        applies=lambda chip, block: scatters_a_plane(chip, block.sides),
    ),
    LoweringRule(
        name="scatter over three axes",
        collective="reduce_scatter",
        when="over three axes of a torus, unless SparseCores run it",
        applies=lambda chip, block: len(block.sides) > 2 and not offloads(chip, "reduce_scatter"),
    ),
)


def lowering_rule(
    chip: Chip, collective: Literal["all_gather", "reduce_scatter"], block: Block
) -> LoweringRule | None:
    """The rule that holds for a collective of such blocks on a chip; None if the compiler keeps it.

    A chip without a torus has none.
    """
    if not chip.torus_dims:
        return None
    laid_out = block.laid_out(chip) if collective == "reduce_scatter" else block
    fitting = (
        rule for rule in RULES if rule.collective == collective and rule.applies(chip, laid_out)
    )
    return next(fitting, None)


def _padding(length: int) -> float:
    """Lanes of the tiles that a row of this length takes, for each that it fills."""
    return -(-length // TILE_LANES) * TILE_LANES / max(length, 1)
