"""What a compiled step depends on beside its arrays' shapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.schedule import as_schedule

from .axes import ScheduleLike
from .cache import Cache
from .config import ModelConfig
from .defaults import chip_of
from .doors import on_mesh
from .embedding import vocab_axes
from .partitioning import cache_specs, placement
from .placement import Placement


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled step depends on beside its arrays' shapes; hashable."""

    config: ModelConfig
    mesh: Any
    plan: Any
    schedule: ScheduleLike = "auto"

    @property
    def placement(self) -> Placement:
        """Where attention happens."""
        return placement(self.config, self.mesh, self.plan)

    @property
    def logit_spec(self) -> P:
        """Of logits [batch, vocab]."""
        return P(None, vocab_axes(self.config, dict(self.mesh.shape)) or None)

    def cache_specs(self, cache: Cache) -> Cache:
        """Of a cache."""
        return cache_specs(self.config, self.mesh, self.plan, cache)

    @property
    def compiler_options(self) -> dict[str, bool | int | str]:
        """That it is compiled under: none where all collectives are to block."""
        blocking = as_schedule(self.schedule) == as_schedule("blocking")
        return {} if blocking else ce.compiler_options(chip_of(self.mesh))

    def jit(self, function: Any, **options: Any) -> Any:
        """`function` compiled for the mesh, under `compiler_options`."""
        if not self.compiler_options:
            return jax.jit(function, **options)
        return ce.jit(function, chip=chip_of(self.mesh), **options)

    def shard_map(self, function: Any, in_specs: Any, out_specs: Any) -> Any:
        """`function` of local shards as one of global arrays."""
        return on_mesh(self.mesh, function, in_specs, out_specs)
