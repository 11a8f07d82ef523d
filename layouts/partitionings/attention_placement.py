"""Where heads and sequences are during attention, worked out from sizes alone.

After the projections, features (heads times D) are sharded over y and z and, where E was summed over x
and features scattered, over x. Attention wants full heads, and perhaps the batch sharded further:
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

# The axes that shard features, major first: those of the stored weight, then x, over which the sum over
# E_x is scattered.
FEATURE_AXES: Axes = (*WEIGHT_AXES, "x")


@dataclasses.dataclass(frozen=True)
class FeatureSharding:
    """How projected features (heads times D) are sharded on the way to attention. No axis of size 1 is
    in `sharded`, `joined`, `gathered` or `kept`.

    Attributes:
      stored: the axes over which the columns of the weight are stored.
      sharded: the axes that shard features after the projection, major first.
      joined: the axes over which the weight was gathered; their slices lie one after another on each
        chip, major first.
      gathered: the axes of `sharded` over which features are all-gathered.
      kept: the axes that shard heads in attention, major first.
    """

    stored: Axes
    sharded: Axes
    joined: Axes
    gathered: Axes
    kept: Axes

    def exchanged(self, moved: Axes) -> Axes:
        """The axes of `moved` over which an all-to-all exchanges features for batch. Over its other axes
        features are replicated, and each chip takes its own sequences."""
        return tuple(axis for axis in moved if axis in self.sharded)

    def arrived(self, moved: Axes) -> Axes:
        """The axes whose slices lie one after another on each chip in attention, major first."""
        return (*self.exchanged(moved), *self.gathered, *self.joined)


def in_feature_order(axes: Axes) -> Axes:
    """`axes` in the order in which they shard features."""
    return tuple(axis for axis in FEATURE_AXES if axis in axes)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where heads and sequences are in attention, for one model, mesh and pair of layouts; see `place`.

    Attributes:
      batch_axes: the axes that shard the batch in attention, in the order x, y, z.
      token_sharded: whether projections scatter tokens over x, rather than features.
      moved: the axes that shard the batch in attention, but not after the projections.
      queries, keys: the sharding of the features of q, and of those of k and v.
      key_token_axes: groups of axes that shard projected k and v by position, over which they are
        all-gathered one group after another, the minor one first; two groups if k and v are projected
        before the gather. (Over three axes at once, the TPU compiler would make an all-reduce.)
      selection: which of a chip's key-value heads each of its query heads reads: an array
        [*sizes of queries.kept, heads]; None for all of them, in order.
    """

    batch_axes: Axes
    token_sharded: bool
    moved: Axes
    queries: FeatureSharding
    keys: FeatureSharding
    key_token_axes: tuple[Axes, ...]
    selection: np.ndarray | None = dataclasses.field(compare=False)

    @property
    def keys_before_gather(self) -> bool:
        """Whether k and v are projected from the tokens that a chip has between layers, before any
        gather."""
        return len(self.key_token_axes) > 1

    @property
    def kv_axes(self) -> Axes:
        """The axes that shard the key-value heads of the cache."""
        return self.keys.kept

    def covers(self, other: Placement) -> bool:
        """Whether every chip, of a cache sharded as here, has all that it has of one sharded as in
        `other`: the same heads, and all sequences or the same ones."""
        return self.kv_axes == other.kv_axes and self.batch_axes in ((), other.batch_axes)


def stored_kv_axes(config: ModelConfig, sizes: Mapping[str, int]) -> Axes:
    """The axes over which the columns of w_kv are stored: y and z; or y where only that divides the
    key-value heads; or none."""
    for axes in (WEIGHT_AXES, WEIGHT_AXES[:1]):
        divides = config.stored_kv_heads % size(axes, sizes) == 0
        if divides and (axes == WEIGHT_AXES or size(axes, sizes) > 1):
            return axes
    return ()


def place(
    config: ModelConfig,
    feedforward: FeedForwardLayout,
    attention: AttentionLayout,
    sizes: Mapping[str, int],
) -> Placement:
    """The placement of heads and sequences in attention.

    Args:
      config: the model, of which heads count.
      feedforward: the layout whose projections make q, k and v.
      attention: HeadSharded() or BatchSharded(...).
      sizes: of the mesh axes x, y and z.

    Raises:
      ValueError: the layouts do not fit each other, the model or the mesh; with the words of
        `misplaced`.
    """
    return _place(config, feedforward, attention, tuple(sizes[axis] for axis in AXES))


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
            f"{feedforward} shards positions, and {attention} would shard sequences over the same axes; "
            "use HeadSharded(), or WeightStationary2D(by_batch=True)"
        )
    _, token_sharded, _ = _batch(feedforward, attention, sizes)
    keys_stored = stored_kv_axes(config, sizes)
    for kind, heads, width, stored in (
        ("queries", config.stored_heads, config.d_head, WEIGHT_AXES),
        ("keys and values", config.stored_kv_heads, 2 * config.d_head, keys_stored),
    ):
        columns = heads * width // size(stored, sizes)
        if (
            "x" in _sharded(feedforward, stored, token_sharded=token_sharded)
            and columns % sizes["x"]
        ):
            over = " and ".join(f"{axis}={sizes[axis]}" for axis in stored)
            return (
                f"{config.name}: {heads} heads of d_head={config.d_head} have {columns} features of "
                f"{kind}{f' on each chip after {over}' if over else ''}, which do not divide over "
                f"x={sizes['x']}; use "
                'WeightStationary2D(by_batch=True), or BatchSharded(("x", "y", "z"))'
            )
    return ""


def _batch(
    feedforward: FeedForwardLayout, attention: AttentionLayout, sizes: Mapping[str, int]
) -> tuple[Axes, bool, Axes]:
    """`batch_axes`, `token_sharded` and `moved` of a `Placement`."""
    before = _live(feedforward.inner_batch_axes, sizes)
    added = tuple(axis for axis in attention.batch_axes if axis not in before)
    batch = in_order(_live((*before, *added), sizes))
    token_sharded = "x" in batch and "x" not in before
    moved = tuple(
        axis for axis in batch if axis not in before and not (token_sharded and axis == "x")
    )
    return batch, token_sharded, moved


def _sharded(feedforward: FeedForwardLayout, stored: Axes, *, token_sharded: bool) -> Axes:
    """The axes that shard the features of a weight whose columns are stored over `stored`."""
    return stored if token_sharded else feedforward.features(stored)


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
    reason = misplaced(config, feedforward, attention, sizes)
    if reason:
        raise ValueError(reason)
    batch, token_sharded, moved = _batch(feedforward, attention, sizes)

    def features(stored: Axes, kept: Callable[[Axes], Axes]) -> FeatureSharding:
        sharded = _live(_sharded(feedforward, stored, token_sharded=token_sharded), sizes)
        joined = tuple(a for a in _live(stored, sizes) if a in feedforward.inner_batch_axes)
        keeps = kept(tuple(axis for axis in sharded if axis not in moved))
        gathered = tuple(a for a in sharded if a not in moved and a not in keeps)
        return FeatureSharding(stored, sharded, joined, gathered, keeps)

    queries = features(WEIGHT_AXES, lambda left: _query_axes(config, left, sizes))
    stored = stored_kv_axes(config, sizes)
    keys = features(stored, lambda _: _key_axes(config, queries.kept, sizes))
    return Placement(
        batch_axes=batch,
        token_sharded=token_sharded,
        moved=moved,
        queries=queries,
        keys=keys,
        key_token_axes=_key_token_axes(feedforward, stored),
        selection=_selection(config, queries, keys, sizes),
    )


def _query_axes(config: ModelConfig, left: Axes, sizes: Mapping[str, int]) -> Axes:
    """The axes of `left` that shard queries by full heads."""
    heads_divide = config.stored_heads // size(WEIGHT_AXES, sizes) % sizes["x"] == 0
    return left if heads_divide else tuple(axis for axis in left if axis != "x")


def _key_axes(config: ModelConfig, query_axes: Axes, sizes: Mapping[str, int]) -> Axes:
    """The axes that shard key-value heads: as many leading axes of the queries' as divide them, since
    only these leave each chip consecutive heads."""
    kept: Axes = ()
    for axis in _live(FEATURE_AXES, sizes):
        if axis not in query_axes or config.stored_kv_heads % size((*kept, axis), sizes):
            break
        kept = (*kept, axis)
    return kept


def _key_token_axes(feedforward: FeedForwardLayout, stored: Axes) -> tuple[Axes, ...]:
    """See `Placement.key_token_axes`. Where w_kv is replicated over y and z (`stored` is empty), chips
    along them would all multiply the same tokens: each multiplies its own."""
    axes = (feedforward.inner_position_axes, () if stored else feedforward.position_axes)
    return tuple(filter(None, axes))


def _selection(
    config: ModelConfig, queries: FeatureSharding, keys: FeatureSharding, sizes: Mapping[str, int]
) -> np.ndarray | None:
    """See `Placement.selection`."""
    wanted = _one_per_run(_heads_read(config, queries, keys, sizes))
    local_kv = config.stored_kv_heads // size(keys.kept, sizes)
    if wanted.shape[1] == local_kv and (wanted == np.arange(local_kv)).all():
        return None
    return wanted.reshape([*(sizes[a] for a in queries.kept), -1])


def _heads_read(
    config: ModelConfig, queries: FeatureSharding, keys: FeatureSharding, sizes: Mapping[str, int]
) -> np.ndarray:
    """The index of the key-value head, among a chip's own, that each of its query heads reads: [chips
    along queries.kept, query heads of a chip]."""
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
