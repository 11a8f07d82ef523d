"""The table of gathers and scatters that become all-reduces, asked of the installed compiler."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.cost.lowering_rules import RULES, Block, lowering_rule
from collective_einsum.ruler.compile import target

CHIPS = {
    "v4:2x2x2": ce.TPU_V4,
    "v4:2x4x4": ce.TPU_V4,
    "v4:4x4x4": ce.TPU_V4,
    "v5e:2x4": ce.TPU_V5E,
    "v6e:4x4": ce.TPU_V6E,
    "tpu7x:4x4x4": ce.TPU_7X,
}
CONTRACTED = 128


class Shape(NamedTuple):
    """A collective in bf16 over axes of a slice: a gather before a dot, or a scatter after one."""

    collective: str
    rows: int
    columns: int
    along: str = "columns"
    axes: tuple[str, ...] = ("x",)
    slice_: str = "v4:4x4x4"

    @property
    def sides(self) -> tuple[int, ...]:
        """Those of the slice along the axes."""
        return tuple(target(self.slice_).sides["xyz".index(axis)] for axis in self.axes)

    @property
    def block(self) -> Block:
        assert self.along in ("rows", "columns")
        along = "rows" if self.along == "rows" else "columns"
        return Block(
            rows=self.rows, columns=self.columns, itemsize=2, along=along, sides=self.sides
        )

    def rule(self) -> str:
        """The name of the rule in the table, or ""."""
        gathers = self.collective == "all_gather"
        chip = CHIPS[self.slice_]
        rule = lowering_rule(chip, "all_gather" if gathers else "reduce_scatter", self.block)
        return rule.name if rule else ""

    def compiled(self) -> set[str]:
        """The collectives of the compiled program."""
        slice_ = target(self.slice_)
        mesh = slice_.mesh(slice_.sides, ("x", "y", "z")[: len(slice_.sides)])
        dim, n = int(self.along == "columns"), math.prod(self.sides)

        def gather(x: jax.Array, w: jax.Array) -> jax.Array:
            return lax.all_gather(x, self.axes, axis=dim, tiled=True) @ w

        def scatter(x: jax.Array, w: jax.Array) -> jax.Array:
            return lax.psum_scatter(x @ w, self.axes, scatter_dimension=dim, tiled=True)

        rows, columns = (self.rows * n, self.columns) if not dim else (self.rows, self.columns * n)
        function, shapes = scatter, ((rows, CONTRACTED), (CONTRACTED, columns))
        if self.collective == "all_gather":
            function, shapes = gather, ((self.rows, self.columns), (columns, CONTRACTED))
        arguments = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P()))
            for shape in shapes
        ]
        mapped = jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        text = slice_.compile(mapped, *arguments).as_text() or ""
        return set(re.findall(r" (all-gather|all-reduce|reduce-scatter)(?:-start)?\(", text))


# By the rule's name: a shape that shows it, and one beside it that does not.
SHOWN = {
    "gather of a part of a row": (Shape("all_gather", 1, 288), Shape("all_gather", 2, 288)),
    "gather over three axes": (
        Shape("all_gather", 64, 288, axes=("x", "y", "z")),
        Shape("all_gather", 64, 288, axes=("y", "z")),
    ),
    "scatter of parts of tiles": (
        Shape("reduce_scatter", 12, 4608, "rows"),
        Shape("reduce_scatter", 8, 4608, "rows"),
    ),
    "scatter of an odd number of tiles": (
        Shape("reduce_scatter", 24, 1152, "rows"),
        Shape("reduce_scatter", 16, 1152, "rows"),
    ),
    "scatter of lanes": (
        Shape("reduce_scatter", 512, 1152),
        Shape("reduce_scatter", 512, 1280),
    ),
    "scatter over a plane": (
        Shape("reduce_scatter", 16, 1152, "rows", ("x", "y"), "v6e:4x4"),
        Shape("reduce_scatter", 16, 1152, "rows", ("x",), "v6e:4x4"),
    ),
    "scatter over three axes": (
        Shape("reduce_scatter", 16, 1152, "rows", ("x", "y", "z"), "v4:2x2x2"),
        Shape("reduce_scatter", 16, 1152, "rows", ("x", "y"), "v4:4x4x4"),
    ),
}


def test_every_rule_is_shown() -> None:
    assert list(SHOWN) == [rule.name for rule in RULES]


@pytest.mark.tpu
@pytest.mark.parametrize("name", SHOWN)
def test_the_compiler_follows_the_rule(name: str) -> None:
    shows, beside = SHOWN[name]
    assert (shows.rule(), beside.rule()) == (name, "")
    assert shows.compiled() == {"all-reduce"}
    assert beside.compiled() == {beside.collective.replace("_", "-")}


@pytest.mark.tpu
@pytest.mark.parametrize(
    "shape",
    [
        Shape("all_gather", 64, 288, axes=("x", "y", "z"), slice_="v4:2x2x2"),
        Shape("all_gather", 64, 288, axes=("x", "y", "z"), slice_="v4:2x4x4"),
        Shape("reduce_scatter", 512, 1024, axes=("x", "y"), slice_="v5e:2x4"),
        Shape("reduce_scatter", 16, 1152, "rows", ("x", "y"), "v5e:2x4"),
    ],
)
def test_short_sides_and_few_devices_have_no_rule(shape: Shape) -> None:
    assert shape.rule() == ""
    assert shape.compiled() == {shape.collective.replace("_", "-")}


@pytest.mark.tpu
@pytest.mark.parametrize(("rows", "columns"), [(96, 288), (104, 288), (200, 288), (120, 200)])
def test_columns_that_pad_more_than_rows_are_scattered_as_rows(rows: int, columns: int) -> None:
    """As the rules then say: [288, 104] is an even number of tiles, [200, 120] an odd one."""
    shape = Shape("reduce_scatter", rows, columns)
    kept = (rows, columns) in ((104, 288), (200, 288))
    assert shape.rule() == (
        "" if kept else "scatter of lanes" if rows < 100 else "scatter of an odd number of tiles"
    )
    assert shape.compiled() == ({"reduce-scatter"} if kept else {"all-reduce"})


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("rows", "columns", "kept"),
    [(8, 576, True), (64, 1152, True), (8, 264, False), (64, 264, False), (512, 260, False)],
)
def test_sparse_cores_scatter_rows(rows: int, columns: int, kept: bool) -> None:
    """Whatever pads less: [576, 8] is an even number of tiles, [264, 8] an odd one, [260, 512] none."""
    shape = Shape("reduce_scatter", rows, columns, slice_="tpu7x:4x4x4")
    assert (shape.rule() == "") == kept
    assert shape.compiled() == ({"reduce-scatter"} if kept else {"all-reduce"})


@pytest.mark.tpu
@pytest.mark.parametrize(("rows", "columns"), [(1, 8192), (8, 4608), (128, 1024)])
def test_rows_are_gathered_over_three_axes_as_columns_are(rows: int, columns: int) -> None:
    shape = Shape("all_gather", rows, columns, "rows", ("x", "y", "z"))
    assert shape.rule() == "gather over three axes"
    assert shape.compiled() == {"all-reduce"}


def test_a_switch_has_no_rule() -> None:
    assert lowering_rule(ce.H100, "reduce_scatter", SHOWN["scatter of lanes"][0].block) is None
