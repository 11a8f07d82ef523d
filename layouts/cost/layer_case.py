"""The facts that the items of a layer on one chip are made from, and short words for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..mesh.axis_collectives import WEIGHT_AXES, Axes, size
from ..models.config import ModelConfig
from ..partitionings.attention_placement import Placement
from ..partitionings.feedforward_layout import FeedForwardLayout
from .layer_items import ACTIVATION_BYTES, Kind, Load, Transfer, transfer


@dataclasses.dataclass(frozen=True)
class LayerCase:
    """The facts that a layer's work on each chip is made from.

    Attributes:
      config: the model.
      layout: the feedforward's, which is also that of attention's projections.
      placement: where attention happens.
      sizes: of the mesh axes x, y and z.
      load: the workload of the step; its past is what this layer's cache stores.
      window: of its attention, in positions; None for all.
    """

    config: ModelConfig
    layout: FeedForwardLayout
    placement: Placement
    sizes: Mapping[str, int]
    load: Load
    window: int | None = None

    def n(self, axes: Iterable[str]) -> int:
        return size(tuple(axes), self.sizes)

    def live(self, axes: Iterable[str]) -> Axes:
        return tuple(axis for axis in axes if self.sizes[axis] > 1)

    def transfer(
        self, name: str, kind: Kind, axes: Iterable[str], elements: float, element_bytes: float
    ) -> Iterator[Transfer]:
        return transfer(name, kind, axes, elements, element_bytes, self.sizes)

    def moved(
        self,
        name: str,
        kind: Kind,
        axes: Iterable[str],
        elements: float,
        element_bytes: int = ACTIVATION_BYTES,
    ) -> Transfer | None:
        """`transfer` of activations; None over one chip."""
        return next(self.transfer(name, kind, axes, elements, element_bytes), None)

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded to int8; a step of int8 matrices."""
        return self.config.int8_activations and self.load.weight_bytes == 1

    @property
    def input_bytes(self) -> int:
        """Bytes of an element of what matrices multiply."""
        return 1 if self.rounds else ACTIVATION_BYTES

    def is_token_sharded(self, name: str) -> bool:
        """Whether what an output matrix multiplies is sharded over x by rows, as attention leaves it."""
        return name == "w_o" and self.placement.token_sharded

    @property
    def gathered_axes(self) -> Axes:
        """The axes that weights are gathered over."""
        alike = self.layout.batch_axes == self.layout.inner_batch_axes
        return self.layout.batch_axes if alike else ()

    @property
    def scatters_x(self) -> bool:
        """Whether sums over E_x are scattered over x; otherwise they are all-reduced."""
        return self.layout.moves_tokens or "x" in self.layout.features(())

    def inputs(self, names: Sequence[str]) -> list[tuple[str, int, Axes]]:
        """Input matrices: name, number of columns, and the axes that shard these."""
        config, where = self.config, self.placement
        attention = {
            "w_q": (config.stored_heads * config.d_head, where.queries.stored),
            "w_kv": (2 * config.stored_kv_heads * config.d_head, where.keys.stored),
        }
        shared = dict.fromkeys(config.shared_input_names, (config.shared_width, WEIGHT_AXES))
        known = attention | shared
        return [(name, *known.get(name, (config.hidden_columns, WEIGHT_AXES))) for name in names]
