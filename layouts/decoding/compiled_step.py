"""Everything that a compiled step depends on, other than its arrays' shapes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped
from jax.typing import DTypeLike

import collective_einsum as ce
from collective_einsum.chips import Chip, for_chip, options_on
from collective_einsum.ops import as_schedule

from ..cost.layer_items import Load
from ..cost.step_cost import cost
from ..layers.kv_cache import with_stored_batch
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import ScheduleLike, check_mesh, size, values
from ..mesh.shard_map_entry import on_mesh
from ..models.cache import Cache
from ..models.config import ModelConfig
from ..models.param_checks import check_int8_matrices
from ..models.params import Params
from ..models.stacked_params import LayerWeights, Tree, is_unrolled
from ..partitionings.attention_placement import Placement, place
from ..partitionings.cache_specs import placed_specs
from ..partitionings.mesh_fit import round_up
from ..partitionings.padded_sizes import batch_multiple, padded_length, tiled_batch_multiple
from ..partitionings.param_specs import placed_param_specs, vocab_axes
from ..partitionings.partitioning import Partitioning, PlanLike, as_plan, check_model
from ..planning.defaults import chip_of, kind_of
from ..tuning import LONGEST_COPY


def load_of(params: Params, batch: int, new: int, past: int, cache_dtype: DTypeLike) -> Load:
    """The workload of a step that reads `new` positions of each sequence after `past`, with parameters
    of which only the kinds matter."""
    weight_bytes = values(layer_of_kind(params)["w_out"]).dtype.itemsize
    return Load(batch, new, past, weight_bytes, jnp.dtype(cache_dtype).itemsize)


def layer_of_kind(params: Params) -> LayerWeights:
    """Weights of a layer, of which only the kinds matter: of all layers where they are stacked."""
    blocks: Any = params["blocks"]
    return blocks[0] if is_unrolled(params) else blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """Everything that a compiled step depends on, other than its arrays' shapes; hashable.

    Attributes:
      config, mesh, schedule: as `layouts.prefill`.
      plan: the layouts.
      unrolled: whether each layer's weights are arrays of their own, which the compiler brings into
        on-chip memory ahead of their matmuls.
      embedding_bytes: bytes of the global embedding table, where layers are unrolled; else 0.
      chip: the chip that the caller named, or None.
      load: the workload; None for a program that keeps a cache and runs no step.
      sparse_cores: whether it is compiled with all-gathers on SparseCores, as it is where the load is
        given, the schedule "auto", and the step predicted to be faster so.
      weights_ahead: whether it is compiled so that weights come into on-chip memory early, as it is
        where the load is given, layers are unrolled, and weights take longer from HBM than to be
        multiplied.
      copies_layers: whether layers that are unrolled run in a loop into which the weights of each are
        copied, as they do where the load is given, and copying takes a small part of the matmuls' time.
      sizes: of the mesh axes x, y and z.
      placement: where attention happens.

    Raises:
      ValueError: the mesh has other axes, or the layouts cannot shard the model over it.
    """

    config: ModelConfig
    mesh: MeshLike
    plan: Partitioning
    schedule: ScheduleLike = "auto"
    unrolled: bool = False
    embedding_bytes: int = 0
    chip: Chip | None = None
    load: dataclasses.InitVar[Load | None] = None
    sparse_cores: bool = dataclasses.field(init=False)
    weights_ahead: bool = dataclasses.field(init=False)
    copies_layers: bool = dataclasses.field(init=False)
    sizes: Mapping[str, int] = dataclasses.field(init=False, compare=False)
    placement: Placement = dataclasses.field(init=False, compare=False)

    def __post_init__(self, load: Load | None) -> None:
        sizes, plan = check_mesh(self.mesh), self.plan
        check_model(self.config, sizes)
        where = place(self.config, plan.feedforward, plan.attention, sizes)
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "placement", where)
        object.__setattr__(self, "sparse_cores", self._gains_from_sparse_cores(load))
        reading = self._reading_share(load) if self.unrolled and load is not None else None
        ahead = reading is not None and reading > 1
        copies = reading is not None and 2 * reading <= LONGEST_COPY
        object.__setattr__(self, "weights_ahead", ahead)
        object.__setattr__(self, "copies_layers", copies)

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        mesh: MeshLike,
        plan: PlanLike,
        schedule: ScheduleLike,
        params: Params,
        chip: Chip | str | None = None,
        load: Load | None = None,
    ) -> Program:
        """The program for parameters, of which only kinds and shapes matter."""
        check_int8_matrices(config, layer_of_kind(params))
        embedding_bytes = 0
        unrolled = is_unrolled(params)
        if unrolled and "embedding" in params:
            table = values(params["embedding"])
            embedding_bytes = math.prod(table.shape) * table.dtype.itemsize
        return cls(
            config=config,
            mesh=mesh,
            plan=as_plan(plan),
            schedule=schedule,
            unrolled=unrolled,
            embedding_bytes=embedding_bytes,
            chip=None if chip is None else ce.as_chip(chip),
            load=load,
        )

    def _gains_from_sparse_cores(self, load: Load | None) -> bool:
        """See `sparse_cores`."""
        chip = self.chip or chip_of(self.mesh)
        given = as_schedule(self.schedule) is not None
        if load is None or given or not chip.sparse_core_options:
            return False
        sizes = tuple(self.sizes.items())
        return _is_faster_on_sparse_cores(self.config, self.plan, sizes, load, chip)

    def _reading_share(self, load: Load) -> float:
        """The seconds of weights from HBM, divided by those of their matmuls. `weights_ahead` gains
        nothing below 1. PaLM 540B on v4:4x4x4, bf16: 64 sequences take 156 us a layer in place of 179,
        and 512 would take 526, not 518 (libtpu 0.0.50.1)."""
        chip, config = self.chip or chip_of(self.mesh), self.config
        experts = config.experts
        rows = load.tokens * (experts.per_token / experts.count if experts else 1)
        peak = chip.int8_ops if config.int8_activations else chip.bf16_flops
        return load.weight_bytes / chip.reached_hbm_bandwidth / (2 * rows / peak)

    @property
    def batch_multiple(self) -> int:
        """The number that the sequences of a step and of its cache are a multiple of."""
        return batch_multiple(self.config, self.plan, self.sizes)

    def padded_batch(self, batch: int, *others: Program) -> int:
        """The sequences of a step of `batch`, which these other programs can take too."""
        own = tiled_batch_multiple(batch, self.config, self.plan, self.sizes)
        return round_up(batch, math.lcm(own, *(other.batch_multiple for other in others)))

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
        """The partition spec of logits [batch, vocab]."""
        return P(None, vocab_axes(self.config, self.sizes) or None)

    def param_specs(self, params: Params) -> Params:
        """The partition spec of every parameter."""
        return placed_param_specs(self.config, self.sizes, params)

    def cache_specs(self, cache: Cache) -> Cache:
        """The partition spec of every array of a cache, as a cache."""
        return placed_specs(cache, self.placement)

    @property
    def compiler_options(self) -> dict[str, bool | int | str]:
        """The options that it is compiled under: none where all collectives are to block."""
        if as_schedule(self.schedule) == as_schedule("blocking"):
            return {}
        chip = self.chip or chip_of(self.mesh)
        options = (chip.with_sparse_cores() if self.sparse_cores else chip).compiler_options
        if self.weights_ahead:
            options += chip.weights_ahead_options
        shard_bytes = self.embedding_bytes // size(vocab_axes(self.config, self.sizes), self.sizes)
        if 0 < shard_bytes <= chip.cmem_bytes:
            # Without a copy of the table for the next step, which takes the room of weights: H6 in
            # docs/compiler.md.
            options += chip.no_prefetch_options
        return options_on(kind_of(self.mesh), options)

    def jit(self, function: Callable[..., object], **arguments: Any) -> Wrapped:
        """`function` compiled for the mesh, under `compiler_options`; `arguments` are jax.jit's."""
        options = self.compiler_options
        if not options and self.chip is None:
            return jax.jit(function, **arguments)
        chip = self.chip or chip_of(self.mesh)
        return ce.jit(function, chip=chip, compiler_options=options, **arguments)

    def shard_map(
        self, function: Callable[..., Tree], in_specs: object, out_specs: object
    ) -> Callable[..., Tree]:
        """`function` of local shards as one of global arrays, traced for the chip.

        `in_specs` and `out_specs` are pytrees of partition specs.
        """

        def for_its_chip(*arrays: object) -> Tree:
            with for_chip(self.chip):
                return function(*arrays)

        return on_mesh(self.mesh, for_its_chip, in_specs, out_specs)


@functools.lru_cache(maxsize=1024)
def _is_faster_on_sparse_cores(
    config: ModelConfig,
    plan: Partitioning,
    sizes: tuple[tuple[str, int], ...],
    load: Load,
    chip: Chip,
) -> bool:
    """What the cost model says, once for the steps of a decoder."""
    return cost(config, plan, dict(sizes), load, chip).sparse_cores
