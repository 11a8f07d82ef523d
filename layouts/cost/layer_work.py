"""The einsums, collectives and attention of one layer on one chip, from sizes alone.

They are those that `layers.block`, `partitionings` and `layers.attention` trace; letters
and partitionings are those of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102), sections
3.2 and 3.3. No array is made and nothing is traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from collective_einsum.chips import Chip

from ..mesh.axis_collectives import AXES, WEIGHT_AXES, Axes
from ..models.config import AttentionKind, ModelConfig
from ..models.named_models import as_config
from ..partitionings.attention_placement import FeatureSharding, place
from ..partitionings.cache_stores import stored_positions
from ..partitionings.partitioning import PlanLike, as_plan
from .experts_cost import grouped
from .layer_case import LayerCase
from .layer_items import (
    ACTIVATION_BYTES,
    Attention,
    Einsum,
    Item,
    Kind,
    Load,
    Transfer,
    gathered_weight,
)
from .rounding_items import rounded_in, rounded_out, rows_in, rows_out, sums_apart
from .router_items import router_items


class Layer(LayerCase):
    """One layer on each chip, whose methods give parts of its work; see `layer_work`."""

    def into(
        self, names: Sequence[str], *, token_sharded: bool = False, shared: bool = False
    ) -> Iterator[Item]:
        """`project_in` of some matrices, or `project_in_token_sharded`."""
        yield from rounded_in(self)
        if self.gathered_axes:
            yield from self.into_gathered(names)
            return
        m, e = self.load.tokens, self.config.d_model // self.sizes["x"]
        if self.placement.keys_before_gather and "w_kv" in names:
            yield from self.keys_before_gather(m // self.n(self.layout.position_axes), e)
            names = [name for name in names if name != "w_kv"]
        matrices = self.inputs(names)
        f = tuple(columns // self.n(stored) for _, columns, stored in matrices)
        apart = tuple(axis for axis in WEIGHT_AXES if axis not in self.layout.repeated_axes)
        gather = self.moved("activations", "all-gather", apart, m * e, self.input_bytes)
        scatters = self.scatters_x or token_sharded
        kind: Kind = "reduce-scatter" if scatters else "all-reduce"
        summed_after = not scatters or sums_apart(self, rows_in(self))
        sums = self.moved("sums over x", kind, ("x",), m * sum(f))
        yield Einsum(
            tuple(names),
            m,
            e,
            f,
            self.load.weight_bytes,
            gather and ("m" if self.layout.moves_tokens else "e", gather),
            False,
            None
            if summed_after
            else sums and ("m" if self.layout.moves_tokens or token_sharded else "f", sums),
            shared,
            input_bytes=self.input_bytes,
        )
        if summed_after:
            for columns in f:
                yield from self.transfer("sums over x", kind, ("x",), m * columns, ACTIVATION_BYTES)

    def keys_before_gather(self, m: int, e: int) -> Iterator[Item]:
        """w_kv times a chip's own rows, before they are gathered: [m, e]."""
        ((_, columns, _),) = self.inputs(["w_kv"])
        yield Einsum(
            ("w_kv",), m, e, (columns,), self.load.weight_bytes, input_bytes=self.input_bytes
        )
        axes = self.layout.inner_position_axes
        yield from self.transfer(
            "sums over x", "reduce-scatter", axes, m * columns, ACTIVATION_BYTES
        )

    def into_gathered(self, names: Sequence[str]) -> Iterator[Item]:
        """`project_in` of `WeightGathered`."""
        axes = self.gathered_axes
        m, e = self.load.tokens // self.n(axes), self.config.d_model
        kept = self.live(axis for axis in AXES if axis not in axes)
        yield from self.transfer("activations", "all-gather", kept, m * e, self.input_bytes)
        for name, columns, stored in self.inputs(names):
            yield from self.weight(name, m, e, columns, stored, "in")

    def weight(
        self, name: str, m: int, e: int, columns: int, stored: Axes, way: Literal["in", "out"]
    ) -> Iterator[Item]:
        """`gathered_weight` of this layout."""
        element_bytes = self.load.weight_bytes
        axes = self.gathered_axes
        return gathered_weight(
            name, m, e, columns, stored, way, axes, self.sizes, element_bytes, self.input_bytes
        )

    def out_of(self, names: Sequence[str]) -> Iterator[Item]:
        """`project_out` of some matrices: all-gathers over x, matmuls, one reduce-scatter or all-reduce
        over y and z."""
        config, axes = self.config, self.gathered_axes
        features = {
            "w_o": config.stored_heads * config.d_head,
            "w_out": config.hidden_columns,
            "w_shared_out": config.shared_width,
        }
        if axes:
            m, e = self.load.tokens // self.n(axes), config.d_model
            for name in names:
                yield from rounded_out(self, name, features[name])
                yield from self.weight(name, m, e, features[name], WEIGHT_AXES, "out")
            kept = self.live(axis for axis in AXES if axis not in axes)
            sums = self.moved("sums", "reduce-scatter", kept, m * e)
            yield from self.alone(sums)
            return
        m, e = self.load.tokens, config.d_model // self.sizes["x"]
        kind: Kind = "all-reduce" if self.layout.repeated_axes else "reduce-scatter"
        sums = self.moved("sums over yz", kind, WEIGHT_AXES, m * e)
        few = any(sums_apart(self, rows_out(self, name)) for name in names)
        alone = len(names) > 1 or bool(self.layout.repeated_axes) or few
        for name in names:
            yield from rounded_out(self, name, features[name])
            f = features[name] // self.n(WEIGHT_AXES)
            rows = self.layout.moves_tokens or self.is_token_sharded(name)
            gather = None
            if rows or self.scatters_x:
                gather = self.moved("features", "all-gather", ("x",), m * f, self.input_bytes)
            yield Einsum(
                (name,),
                m,
                f,
                (e,),
                self.load.weight_bytes,
                gather and ("m" if rows else "e", gather),
                False,
                None if alone else sums and ("m" if self.layout.moves_tokens else "f", sums),
                input_bytes=self.input_bytes,
            )
        if alone:
            yield from self.alone(sums)

    def alone(self, sums: Transfer | None) -> Iterator[Transfer]:
        """`reduce_scatter_alone`."""
        if sums:
            yield dataclasses.replace(sums, of_lanes=not self.layout.moves_tokens)

    def attention(self) -> Iterator[Item]:
        """All-to-alls or all-gathers from projected features to attention's sharding, attention, and
        back."""
        config, where, load = self.config, self.placement, self.load
        heads, kv_heads = config.stored_heads, config.stored_kv_heads
        yield from self.columns("queries", heads * config.d_head, where.queries, back=False)
        keys = 2 * kv_heads * config.d_head
        left = self.n(axis for axes in where.key_token_axes for axis in axes)
        for axes in where.key_token_axes:
            left //= self.n(axes)
            elements = load.tokens / left * keys / self.n(where.keys.sharded)
            yield from self.transfer("rows of keys", "all-gather", axes, elements, ACTIVATION_BYTES)
        yield from self.columns("keys and values", keys, where.keys, back=False)
        yield Attention(
            load.batch / self.n(where.batch_axes),
            load.new // self.n(self.layout.inner_position_axes),
            load.new,
            heads / self.n(where.queries.kept),
            max(1, kv_heads / self.n(where.kv_axes)),
            config.d_head,
            load.past,
            load.cache_bytes,
            self.window,
        )
        yield from self.columns("attended", heads * config.d_head, where.queries, back=True)

    def columns(
        self, name: str, total: int, features: FeatureSharding, *, back: bool
    ) -> Iterator[Transfer]:
        """To attention or back; see `columns.to_attention`."""
        moved = self.placement.moved
        rows = self.load.tokens / self.n(a for a in self.placement.batch_axes if a not in moved)
        columns = total / self.n(a for a in features.sharded if a not in features.gathered)
        if features.gathered and not back:
            yield from self.transfer(
                name, "all-gather", features.gathered, rows * columns, ACTIVATION_BYTES
            )
        exchanged = features.exchanged(moved)
        if exchanged:
            yield from self.transfer(
                name, "all-to-all", exchanged, rows * columns, ACTIVATION_BYTES
            )
        elif back:
            yield from self.transfer(name, "all-gather", moved, rows * columns, ACTIVATION_BYTES)

    def input_einsum(self) -> Einsum:
        """The einsum of the feedforward's input matrices, where weights are stationary."""
        items = self.into(self.config.input_names)
        return next(item for item in items if isinstance(item, Einsum))

    def w_out_einsum(self) -> Einsum:
        """The einsum of w_out in a parallel block, where weights are stationary."""
        items = self.out_of(["w_o", "w_out"])
        return next(i for i in items if isinstance(i, Einsum) and i.names == ("w_out",))


def layer_work(
    config: ModelConfig | str,
    plan: PlanLike,
    sizes: Mapping[str, int],
    load: Load,
    chip: Chip | None = None,
    kind: AttentionKind | None = None,
) -> tuple[Item, ...]:
    """The items of one layer on each chip, in order.

    Args:
      config: the model.
      plan: the layouts, as `layouts.decode_step` takes them.
      sizes: of the mesh axes x, y and z.
      load: the workload of the step.
      chip: for which is decided whether tokens are sorted by expert; None if they are not.
      kind: of the layer's attention; that of the first layer unless given.

    Raises:
      ValueError: heads cannot be sharded over this mesh.
    """
    config, plan = as_config(config), as_plan(plan)
    where = place(config, plan.feedforward, plan.attention, sizes)
    kind = config.kinds[0] if kind is None else kind
    if load.past:
        stored = stored_positions(kind, load.past)
        load = dataclasses.replace(load, past=min(load.past, stored))
    layer = Layer(config, plan.feedforward, where, sizes, load, kind.window)
    heads = ["w_q", "w_kv"]
    ffn = (*config.input_names, *config.shared_input_names)
    router = tuple(router_items(config, plan.feedforward, sizes, load))
    if config.block == "serial":
        return (
            *layer.into(heads, token_sharded=where.token_sharded),
            *layer.attention(),
            *layer.out_of(["w_o"]),
            *router,
            *_feedforward(layer, chip),
        )
    if where.token_sharded:
        first = (*layer.into(heads, token_sharded=True), *layer.into(ffn, shared=True))
    else:
        first = tuple(layer.into([*heads, *ffn]))
    return (*router, *first, *layer.attention(), *layer.out_of(["w_o", *config.output_names]))


def _feedforward(layer: Layer, chip: Chip | None) -> tuple[Item, ...]:
    """The feedforward of a serial block, whose tokens are sorted by expert where `chip` says so."""
    config, layout, sizes, load = layer.config, layer.layout, layer.sizes, layer.load
    shared, work = config.shared_input_names, None
    if chip is not None:
        work = grouped(config, layout, sizes, load.tokens, load.weight_bytes, chip)
    if work is None:
        inputs = (*config.input_names, *shared)
        return (*layer.into(inputs), *layer.out_of(config.output_names))
    if not shared:
        return work.items
    return (*work.items, *layer.into(shared), *layer.out_of(["w_shared_out"]))
