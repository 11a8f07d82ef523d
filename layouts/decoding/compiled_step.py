"""What a compiled step depends on beside its arrays' shapes."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.chips import Chip, for_chip, options_on
from collective_einsum.ops import as_schedule

from ..layers.kv_cache import with_stored_batch
from ..mesh.axis_collectives import ScheduleLike, check_mesh, size, values
from ..mesh.shard_map_entry import on_mesh
from ..models.cache import Cache
from ..models.config import ModelConfig
from ..models.params import Params
from ..models.stacked_params import is_unrolled
from ..partitionings.attention_placement import Placement, place
from ..partitionings.cache_specs import placed_specs
from ..partitionings.mesh_fit import round_up
from ..partitionings.padded_sizes import batch_multiple, padded_length, tiled_batch_multiple
from ..partitionings.param_specs import vocab_axes
from ..partitionings.partitioning import as_plan, check_model
from ..planning.defaults import chip_of, kind_of


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled step depends on beside its arrays' shapes; hashable."""

    config: ModelConfig
    mesh: Any
    plan: Any
    schedule: ScheduleLike = "auto"
    table_bytes: int = 0
    chip: Chip | None = None

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        mesh: Any,
        plan: Any,
        schedule: ScheduleLike,
        params: Params,
        chip: Chip | str | None = None,
    ) -> Program:
        """The program for parameters, of which only kinds and shapes matter.

        `table_bytes` are those of a chip's part of the embedding table, where each layer's weights
        are arrays of their own, and come into on-chip memory ahead; else 0.
        """
        found = 0
        if is_unrolled(params) and "embedding" in params:
            table, sizes = values(params["embedding"]), check_mesh(mesh)
            found = math.prod(table.shape) * table.dtype.itemsize
            found //= size(vocab_axes(config, sizes), sizes)
        chosen = None if chip is None else ce.as_chip(chip)
        return cls(config, mesh, as_plan(plan), schedule, found, chosen)

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """The sizes of the mesh axes x, y and z."""
        return check_mesh(self.mesh)

    @functools.cached_property
    def placement(self) -> Placement:
        """Where attention happens.

        Raises:
          ValueError: the layouts cannot shard the model over the mesh.
        """
        check_model(self.config, self.sizes)
        return place(self.config, self.plan.feedforward, self.plan.attention, self.sizes)

    @property
    def batch_multiple(self) -> int:
        """What the sequences of a step and of its cache are a multiple of."""
        return batch_multiple(self.config, self.plan, self.sizes)

    def padded_batch(self, batch: int, *others: Program) -> int:
        """The sequences of a step of `batch`, which these other programs can take too."""
        own = tiled_batch_multiple(batch, self.config, self.plan, self.sizes)
        return round_up(batch, math.lcm(own, *(each.batch_multiple for each in others)))

    def padded_length(self, new: int) -> int:
        """The positions of a step that reads `new` of each sequence."""
        return padded_length(new, self.config, self.plan, self.sizes)

    def padded_cache(self, cache: Cache) -> Cache:
        """A cache of any plan, with a batch that this one can shard."""
        if cache.stored_batch % self.batch_multiple == 0:
            return cache
        return with_stored_batch(cache, self.padded_batch(cache.batch))

    @property
    def logit_spec(self) -> P:
        """Of logits [batch, vocab]."""
        return P(None, vocab_axes(self.config, self.sizes) or None)

    def cache_specs(self, cache: Cache) -> Cache:
        """The partition spec of every array of a cache, as a cache."""
        return placed_specs(cache, self.placement)

    @property
    def compiler_options(self) -> dict[str, bool | int | str]:
        """That it is compiled under: none where all collectives are to block."""
        if as_schedule(self.schedule) == as_schedule("blocking"):
            return {}
        chip = self.chip or chip_of(self.mesh)
        found = chip.compiler_options
        if 0 < self.table_bytes <= chip.cmem_bytes:
            # The compiler would bring the table, which the next step reads first, into on-chip memory
            # at the end of this one, and has no room left for weights.
            found += chip.no_prefetch_options
        return options_on(kind_of(self.mesh), found)

    def jit(self, function: Any, **options: Any) -> Any:
        """`function` compiled for the mesh, under `compiler_options`."""
        found = self.compiler_options
        if not found and self.chip is None:
            return jax.jit(function, **options)
        return ce.jit(
            function, chip=self.chip or chip_of(self.mesh), compiler_options=found, **options
        )

    def shard_map(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """`function` of local shards as one of global arrays, traced for the chip."""

        def told(*values: Any) -> Any:
            with for_chip(self.chip):
                return function(*values)

        return on_mesh(self.mesh, told, in_specs, out_specs)
