"""The partitioning that a decoder's functions take where none is given: the planner's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from collective_einsum.chips import Chip, as_chip, chip_for

from ..arguments import as_flag, as_size
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import AXES, check_mesh
from ..models.config import ModelConfig
from ..models.named_models import as_config
from ..partitionings.attention_placement import Placement, place
from ..partitionings.padded_sizes import tiled_length
from ..partitionings.partitioning import Partitioning
from .plan import Option, Plan
from .search import plan

Shape = tuple[int, ...]
Serves = Callable[[Placement, Placement], bool]


def default_decode(
    config: ModelConfig | str,
    mesh: MeshLike,
    batch: int,
    context: int,
    *,
    chip: Chip | str | None = None,
) -> Partitioning:
    """The choice of `plan` for decoding with bf16 weights and a cache of `context` positions.

    The same for other weights, so that one cache serves them all, but for int8 ones whose activations
    the config rounds to int8. On `chip`, itself or its name; by
    default that of the mesh.

    Raises:
      ValueError: the mesh has other axes, or no layout divides the model and the batch.
    """
    config, batch, context = as_config(config), *_sizes(batch=batch, context=context)
    return _decode(config, _shape(mesh), chip_of(mesh, chip), batch, context)


def default_prefill(
    config: ModelConfig | str,
    mesh: MeshLike,
    batch: int,
    length: int,
    context: int,
    *,
    chip: Chip | str | None = None,
) -> Partitioning:
    """The choice of `plan` for prompts of `length` tokens, rounded up to full tiles of rows, of the
    layouts that shard a cache of `context` positions as `default_decode` does.

    Raises:
      ValueError: as `default_decode`.
    """
    return _reader(config, mesh, batch, length, context, chip, _alike)


def default_reader(
    config: ModelConfig | str,
    mesh: MeshLike,
    batch: int,
    length: int,
    context: int,
    *,
    chip: Chip | str | None = None,
) -> Partitioning:
    """The same for an empty cache, which each chip can slice from what it has read. The cache of one
    sequence may be sharded over padding, but prompts are read four times faster if they are not
    padded likewise.
    """
    return _reader(config, mesh, batch, length, context, chip, Placement.covers)


def default_scorer(
    config: ModelConfig | str,
    mesh: MeshLike,
    batch: int,
    length: int,
    *,
    chip: Chip | str | None = None,
) -> Partitioning:
    """The choice of `plan` for prompts of `length` tokens, rounded up as for `default_prefill`, after
    which nothing is decoded: whatever shards their cache.

    Raises:
      ValueError: as `default_decode`.
    """
    config, batch, length = as_config(config), *_sizes(batch=batch, length=length)
    shape, length = _shape(mesh), tiled_length(length, batch)
    return _prefill(config, shape, chip_of(mesh, chip), batch, length, length, _any)


def _any(one: Placement, other: Placement) -> bool:
    del one, other
    return True


def _alike(one: Placement, other: Placement) -> bool:
    return (one.batch_axes, one.kv_axes) == (other.batch_axes, other.kv_axes)


def _reader(
    config: ModelConfig | str,
    mesh: MeshLike,
    batch: int,
    length: int,
    context: int,
    chip: Chip | str | None,
    serves: Serves,
) -> Partitioning:
    config = as_config(config)
    batch, length, context = _sizes(batch=batch, length=length, context=context)
    length = tiled_length(length, batch)
    return _prefill(config, _shape(mesh), chip_of(mesh, chip), batch, length, context, serves)


def _sizes(**given: int) -> tuple[int, ...]:
    return tuple(as_size(name, value, "a default plan") for name, value in given.items())


@functools.lru_cache(maxsize=1024)
def _decode(
    config: ModelConfig, shape: Shape, chip: Chip, batch: int, context: int
) -> Partitioning:
    ranked = _plan(config, shape, chip, phase="decode", batch=batch, context=context)
    return _first(ranked.options).partitioning


@functools.lru_cache(maxsize=1024)
def _prefill(
    config: ModelConfig,
    shape: Shape,
    chip: Chip,
    batch: int,
    length: int,
    context: int,
    serves: Serves,
) -> Partitioning:
    decoder = _placement(config, shape, _decode(config, shape, chip, batch, context))
    ranked = _plan(config, shape, chip, phase="prefill", batch=batch, length=length)
    served = [
        option
        for option in ranked.options
        if option.cost is not None
        and serves(_placement(config, shape, option.partitioning), decoder)
    ]
    return _first(served).partitioning


def _plan(config: ModelConfig, shape: Shape, chip: Chip, **asked: Any) -> Plan:
    weights = "int8" if config.int8_activations else "bf16"
    return plan(config, chip=chip, mesh_shape=shape, weights=weights, **asked)


def _first(options: Sequence[Option]) -> Option:
    """The best, whether or not the model believes that it fits: the compiler knows."""
    option = options[0]
    if option.cost is None:
        raise ValueError(option.excluded)
    return option


def _placement(config: ModelConfig, shape: Shape, chosen: Partitioning) -> Placement:
    sizes = dict(zip(AXES, shape, strict=True))
    return place(config, chosen.feedforward, chosen.attention, sizes)


def _shape(mesh: MeshLike) -> Shape:
    sizes = check_mesh(mesh)
    return tuple(sizes[axis] for axis in AXES)


def chip_of(mesh: MeshLike, chip: Chip | str | None = None) -> Chip:
    """The chip that is named, or that of a mesh's devices; of an abstract mesh, the one it was made
    for.

    Raises:
      ValueError: no chip has that name.
    """
    return chip_for(kind_of(mesh)) if chip is None else as_chip(chip)


def as_unrolled(unrolled: object, mesh: MeshLike, chip: Chip | str | None = None) -> bool:
    """Whether each layer's parameters are arrays of their own: as a caller says, or, of None, on TPUs,
    whose compiler copies such arrays into on-chip memory ahead of their matmuls.

    Raises:
      ValueError: `unrolled` is something else, or no chip has that name.
    """
    if unrolled is not None:
        return as_flag("unrolled", unrolled)
    if chip is not None:
        return bool(as_chip(chip).weights_ahead_options)
    return kind_of(mesh).startswith("TPU")


def kind_of(mesh: MeshLike) -> str:
    """That of a mesh's devices; of an abstract mesh, of those that it was made for."""
    if isinstance(mesh, Mesh):
        return mesh.devices.flat[0].device_kind
    device = getattr(mesh, "abstract_device", None)
    return "cpu" if device is None else device.device_kind
