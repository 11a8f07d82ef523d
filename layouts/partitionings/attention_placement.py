"""Where heads and sequences are during attention, worked out from sizes alone.

After the projections, features (heads times D) are sharded over y and z and, where E was summed over x
and features scattered, over x. Attention wants whole heads, and perhaps the batch sharded further:
queries go there by an all-to-all, which exchanges features for batch over the axes that are sharded by
heads before and by batch in it. On a mesh whose axes are all longer than 1, with heads that divide,
the batch and the heads of the queries are sharded so (B over the axes of `Placement.batch_axes`, H over
those of `Placement.queries.kept`):

  feedforward       | heads     | batch z   | batch yz  | batch xyz
  ------------------|-----------|-----------|-----------|----------
  WS 2D             | B    Hyzx | Bz   Hyx  | Byz  Hx   | Bxyz H
  WS 1D             | B    Hyz  | Bz   Hy   | Byz  H    | Bxyz H
  WS 2D batch       | Bx   Hyz  | Bxz  Hy   | Bxyz H    | Bxyz H
  WS 2D all-reduce  | Bx   Hyz  | Bxz  Hy   | Bxyz H    | Bxyz H
  WG X              | Bx   Hyz  | Bxz  Hy   | Bxyz H    | Bxyz H
  WG XY             | Bxy  Hz   | Bxyz H    | Bxyz H    | Bxyz H
  WG XYZ            | Bxyz H    | Bxyz H    | Bxyz H    | Bxyz H
  WS 2D position    | B    Hyz  | refused   | refused   | refused

Key-value heads are sharded over the leading axes of H that divide them, and replicated over the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from ..mesh.axis_collectives import AXES, WEIGHT_AXES, Axes, in_order, size
from ..models.config import ModelConfig
from .attention_layouts import AttentionLayout
from .feedforward_layout import FeedForwardLayout
from .mesh_fit import heads_misfit

# Columns are sharded by these axes, major first: as weights are stored, then by the sum over E_x.
COLUMN_AXES: Axes = (*WEIGHT_AXES, "x")


@dataclasses.dataclass(frozen=True)
class Columns:
    """How projected columns come to attention; axes of size 1 are in none of these.

    Attributes:
      stored: the axes over which the weight's columns are stored.
      sharded: the axes that shard the columns after the projection, major first.
      joined: the axes whose blocks lie one after another on each chip, major first.
      gathered: of `sharded`, those that neither side keeps.
      kept: the axes that shard heads in attention, major first.
    """

    stored: Axes
    sharded: Axes
    joined: Axes
    gathered: Axes
    kept: Axes

    def exchanged(self, moved: Axes) -> bool:
        """Whether columns and batch change places over `moved`; else all chips along those axes
        have the same columns, and each takes its sequences."""
        return bool(moved) and set(moved) <= set(self.sharded)

    def arrived(self, moved: Axes) -> Axes:
        """The axes whose blocks lie one after another, major first, in attention."""
        return (*(moved if self.exchanged(moved) else ()), *self.gathered, *self.joined)


def in_column_order(axes: Axes) -> Axes:
    """`axes` in the order in which they shard columns."""
    return tuple(axis for axis in COLUMN_AXES if axis in axes)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where attention happens, for one model, mesh and pair of layouts; see `place`.

    Attributes:
      batch_axes: the axes that shard the batch in attention, in the order of the mesh.
      by_rows: whether the projections leave rows cut over x, rather than columns.
      moved: the axes that shard the batch in attention, but not after the projections.
      queries, keys: what happens to the columns of q, and to those of k and v.
      key_row_axes: the axes that cut projected rows of k and v by position, of which attention wants
        all; in two parts, the minor one first, if they are projected from the rows between layers.
        (Of three axes at once, the TPU compiler would make an all-reduce.)
      selection: the key-value heads that each chip's queries read, of those it holds: an array
        [*sizes of queries.kept, heads]; None for all, in order.
    """

    batch_axes: Axes
    by_rows: bool
    moved: Axes
    queries: Columns
    keys: Columns
    key_row_axes: tuple[Axes, ...]
    selection: np.ndarray | None = dataclasses.field(compare=False)

    @property
    def own_keys(self) -> bool:
        """Whether k and v are projected from the rows between layers, without a gather."""
        return len(self.key_row_axes) > 1

    @property
    def kv_axes(self) -> Axes:
        """The axes that shard the key-value heads of the cache."""
        return self.keys.kept

    def covers(self, other: Placement) -> bool:
        """Whether every chip has, of a cache that is sharded as here, what it keeps of one that is
        sharded as in `other`; either all sequences of the other's heads, or the same."""
        return self.kv_axes == other.kv_axes and self.batch_axes in ((), other.batch_axes)


def stored_kv_axes(config: ModelConfig, sizes: Mapping[str, int]) -> Axes:
    """The axes over which w_kv is stored: as queries, or none if that does not divide."""
    divides = config.stored_kv_heads % size(WEIGHT_AXES, sizes) == 0
    return WEIGHT_AXES if divides else ()


def place(
    config: ModelConfig,
    feedforward: FeedForwardLayout,
    attention: AttentionLayout,
    sizes: Mapping[str, int],
) -> Placement:
    """Where attention happens.

    Args:
      config: heads.
      feedforward: whose projections make q, k and v.
      attention: HeadSharded() or BatchSharded(...).
      sizes: of the mesh axes.

    Raises:
      ValueError: it cannot be; says what `misplaced` says.
    """
    shape = tuple(sizes[axis] for axis in AXES)
    why = misplaced(config, feedforward, attention, sizes)
    if why:
        raise ValueError(why)
    return _place(config, feedforward, attention, shape)


def misplaced(
    config: ModelConfig,
    feedforward: FeedForwardLayout,
    attention: AttentionLayout,
    sizes: Mapping[str, int],
) -> str:
    """Why attention cannot be placed so, and what to write instead; "" if it can be.

    Arguments are those of `place`.
    """
    heads = heads_misfit(config, sizes)
    if heads:
        return heads
    if feedforward.position_axes and attention.batch_axes:
        return (
            f"{feedforward} cuts positions, which {attention} would exchange for sequences; use "
            "HeadSharded(), or WeightStationary2D(by_batch=True)"
        )
    _, by_rows, _ = _batch(feedforward, attention, sizes)
    keys_stored = stored_kv_axes(config, sizes)
    for what, heads, width, stored in (
        ("columns", config.stored_heads, config.d_head, WEIGHT_AXES),
        ("keys and values", config.stored_kv_heads, 2 * config.d_head, keys_stored),
    ):
        columns = heads * width // size(stored, sizes)
        if "x" in _sharded(feedforward, stored, by_rows=by_rows) and columns % sizes["x"]:
            over = " and ".join(f"{axis}={sizes[axis]}" for axis in stored)
            return (
                f"{config.name}: the {what} of {heads} heads of d_head={config.d_head}, {columns} "
                f"columns{f' after {over}' if over else ''}, do not divide over x={sizes['x']}; use "
                'WeightStationary2D(by_batch=True), or BatchSharded(("x", "y", "z"))'
            )
    return ""


def _batch(
    feedforward: FeedForwardLayout, attention: AttentionLayout, sizes: Mapping[str, int]
) -> tuple[Axes, bool, Axes]:
    """`batch_axes`, `by_rows` and `moved` of a `Placement`."""
    before = _live(feedforward.inner_batch_axes, sizes)
    added = tuple(axis for axis in attention.batch_axes if axis not in before)
    batch = in_order(_live((*before, *added), sizes))
    by_rows = "x" in batch and "x" not in before
    moved = tuple(axis for axis in batch if axis not in before and not (by_rows and axis == "x"))
    return batch, by_rows, moved


def _sharded(feedforward: FeedForwardLayout, stored: Axes, *, by_rows: bool) -> Axes:
    """The axes that shard projected columns which are stored over `stored`."""
    return stored if by_rows else feedforward.features(stored)


def _live(axes: Axes, sizes: Mapping[str, int]) -> Axes:
    return tuple(axis for axis in axes if sizes[axis] > 1)


@functools.lru_cache(maxsize=256)
def _place(
    config: ModelConfig,
    feedforward: FeedForwardLayout,
    attention: AttentionLayout,
    shape: tuple[int, int, int],
) -> Placement:
    sizes = dict(zip(AXES, shape, strict=True))
    batch, by_rows, moved = _batch(feedforward, attention, sizes)

    def columns(stored: Axes, kept: Callable[[Axes], Axes]) -> Columns:
        sharded = _live(_sharded(feedforward, stored, by_rows=by_rows), sizes)
        joined = tuple(a for a in _live(stored, sizes) if a in feedforward.inner_batch_axes)
        keeps = kept(tuple(axis for axis in sharded if axis not in moved))
        gathered = tuple(a for a in sharded if a not in moved and a not in keeps)
        return Columns(stored, sharded, joined, gathered, keeps)

    queries = columns(WEIGHT_AXES, lambda left: _query_axes(config, left, sizes))
    stored = stored_kv_axes(config, sizes)
    keys = columns(stored, lambda _: _key_axes(config, queries.kept, sizes))
    return Placement(
        batch_axes=batch,
        by_rows=by_rows,
        moved=moved,
        queries=queries,
        keys=keys,
        key_row_axes=_key_row_axes(feedforward, stored),
        selection=_selection(config, queries, keys, sizes),
    )


def _query_axes(config: ModelConfig, left: Axes, sizes: Mapping[str, int]) -> Axes:
    """Of the axes that still shard the features of queries, those that shard whole heads."""
    heads_divide = config.stored_heads // size(WEIGHT_AXES, sizes) % sizes["x"] == 0
    return left if heads_divide else tuple(axis for axis in left if axis != "x")


def _key_axes(config: ModelConfig, query_axes: Axes, sizes: Mapping[str, int]) -> Axes:
    """The axes that shard key-value heads: the longest leading part of those of the queries that
    divides them, as only that leaves each chip heads that follow one another."""
    kept: Axes = ()
    for axis in _live(COLUMN_AXES, sizes):
        if axis not in query_axes or config.stored_kv_heads % size((*kept, axis), sizes):
            break
        kept = (*kept, axis)
    return kept


def _key_row_axes(feedforward: FeedForwardLayout, stored: Axes) -> tuple[Axes, ...]:
    """See `Placement.key_row_axes`. Where w_kv is replicated over y and z (`stored` is empty), chips
    along them would all multiply the same tokens: each multiplies its own."""
    axes = (feedforward.inner_position_axes, () if stored else feedforward.position_axes)
    return tuple(filter(None, axes))


def _selection(
    config: ModelConfig, queries: Columns, keys: Columns, sizes: Mapping[str, int]
) -> np.ndarray | None:
    """See `Placement.selection`."""
    wanted = _one_per_run(_heads_read(config, queries, keys, sizes))
    local_kv = config.stored_kv_heads // size(keys.kept, sizes)
    if wanted.shape[1] == local_kv and (wanted == np.arange(local_kv)).all():
        return None
    return wanted.reshape([*(sizes[a] for a in queries.kept), -1])


def _heads_read(
    config: ModelConfig, queries: Columns, keys: Columns, sizes: Mapping[str, int]
) -> np.ndarray:
    """Which of its key-value heads each query head of a chip reads: [chips along queries.kept, query
    heads of a chip]."""
    axes = [*WEIGHT_AXES, *(["x"] if "x" in queries.kept else [])]
    heads = np.arange(config.stored_heads).reshape([*(sizes[a] for a in axes), -1])
    local_kv = config.stored_kv_heads // size(keys.kept, sizes)
    tables = []
    for place_ in itertools.product(*(range(sizes[a]) for a in queries.kept)):
        at = dict(zip(queries.kept, place_, strict=True))
        own = heads[tuple(at.get(a, slice(None)) for a in axes)].reshape(-1)
        block = 0
        for axis in keys.kept:
            block = block * sizes[axis] + at[axis]
        tables.append(own // config.queries_per_kv - block * local_kv)
    return np.stack(tables)


def _one_per_run(wanted: np.ndarray) -> np.ndarray:
    """One entry for each run of query heads [..., heads] that read the same one; runs are as long as
    they are on every chip."""
    heads = wanted.shape[1]
    run = next(
        r
        for r in range(heads, 0, -1)
        if heads % r == 0 and (wanted[:, ::r].repeat(r, axis=1) == wanted).all()
    )
    return wanted[:, ::run]
