"""Rounding a layer's activations to int8, and finding the scales of rows, as items; see
`layers.int8_activations`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .. import tuning
from ..mesh.axis_collectives import WEIGHT_AXES, Axes
from ..partitionings.feedforward_layout import boundary_axes, inner_token_axes, token_axes
from .layer_case import LayerCase
from .layer_items import ACTIVATION_BYTES, Copies, Item

# Bytes of a row's scale: float32.
_SCALE_BYTES = 4


def rounded_in(layer: LayerCase) -> Iterator[Item]:
    """Rounding the activations between layers for input matrices, if the step does."""
    if layer.rounds:
        axes = layer.live(boundary_axes(layer.layout))
        columns = layer.config.d_model // layer.n(axes)
        yield from _rounded(layer, rows_in(layer), columns, axes, layer.layout.summed_axes)


def rounded_out(layer: LayerCase, name: str, columns: int) -> Iterator[Item]:
    """The same of features on their way to an output matrix, of `columns` on all chips."""
    if layer.rounds:
        axes = layer.layout.features(WEIGHT_AXES)
        axes = layer.live(WEIGHT_AXES if layer.is_token_sharded(name) else axes)
        own = columns // layer.n(axes)
        yield from _rounded(layer, rows_out(layer, name), own, axes, WEIGHT_AXES)


def rows_in(layer: LayerCase) -> int:
    """Rows of a chip between layers."""
    return layer.load.tokens // layer.n(token_axes(layer.layout))


def rows_out(layer: LayerCase, name: str) -> int:
    """Rows of a chip before an output matrix and its gather."""
    rows = layer.load.tokens // layer.n(inner_token_axes(layer.layout))
    over_x = layer.is_token_sharded(name) and not layer.layout.moves_tokens
    return rows // layer.n(("x",)) if over_x else rows


def sums_apart(layer: LayerCase, rows: int) -> bool:
    """Whether products of so many rows of a chip are summed after their einsum, since their scales are
    the chip's own; see `axis_collectives.int8_rows`."""
    return layer.rounds and rows <= tuning.OWN_SCALE_ROWS


def _rounded(
    layer: LayerCase, rows: int, columns: int, sharded: Axes, summed: Iterable[str]
) -> Iterator[Item]:
    """Rounding of [rows, columns] on a chip, of rows `sharded` over axes, and an all-reduce of scales
    but over those axes over which products are `summed` apart."""
    yield Copies("int8 rows", tuning.INT8_PASSES * rows * columns * ACTIVATION_BYTES)
    apart = set(summed) if sums_apart(layer, rows) else set()
    axes = [axis for axis in sharded if axis not in apart]
    yield from layer.transfer("scales of rows", "all-reduce", axes, rows, _SCALE_BYTES)
