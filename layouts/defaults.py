"""The partitioning that a decoder's functions take where none is given: the planner's."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from collective_einsum.chip import Chip
from collective_einsum.chip_names import as_chip, chip_for

from .arguments import as_size
from .axes import AXES, Axes, check_mesh
from .config import ModelConfig, as_config
from .mesh_fit import round_up
from .partitioning import Partitioning
from .placement import place
from .planner import Option, plan

Shape = tuple[int, ...]

# How much slower than the fastest a default step may be, where prompts are read so many times faster for
# it. Of PaLM 540B on 64 v4 and a sequence of 2,048, the fastest step is predicted to take 26.5 ms, in
# layouts that store four sequences and read a prompt in 951; a step of 27.7 ms goes with 230.
SLOWEST_STEP = 1.1
READ_FASTER = 1.25
# Positions that layouts are chosen for come in multiples of this, the lanes of a TPU's tile; fewer, in
# powers of two. The model knows full tiles only: PaLM 540B on 64 v4 would read 129 tokens in layouts
# that take 376 us a layer, of which it predicts 323, where those for 256 take 326.
POSITIONS_TILE = 128


def default_decode(
    config: ModelConfig | str,
    mesh: Any,
    batch: int,
    context: int,
    *,
    chip: Chip | str | None = None,
) -> Partitioning:
    """What to decode in, with a cache of `context` positions.

    `plan`'s choice for bf16 weights and full tiles of positions; or, where `default_prefill` would take
    a quarter longer with it than with an option that is at most a tenth slower, the fastest of which
    that does not hold. The same for other weights, so that one cache serves them all. On `chip`, itself
    or its name; by default that of the mesh.

    Raises:
      ValueError: the mesh has other axes, or no layout divides the model and the batch.
    """
    config, batch, context = as_config(config), *_sizes(batch=batch, context=context)
    return _decode(config, _shape(mesh), chip_of(mesh, chip), batch, _tiled(context))


def default_prefill(
    config: ModelConfig | str,
    mesh: Any,
    batch: int,
    length: int,
    context: int,
    *,
    chip: Chip | str | None = None,
) -> Partitioning:
    """What `plan` chooses for full tiles that hold prompts of `length` tokens, of the layouts that shard
    a cache of `context` positions as `default_decode` does.

    Raises:
      ValueError: as `default_decode`.
    """
    config = as_config(config)
    batch, length, context = _sizes(batch=batch, length=length, context=context)
    positions = _tiled(length), _tiled(context)
    return _prefill(config, _shape(mesh), chip_of(mesh, chip), batch, *positions)


def _tiled(positions: int) -> int:
    tile = min(POSITIONS_TILE, 2 ** (positions - 1).bit_length())
    return round_up(positions, tile)


def _sizes(**given: Any) -> tuple[int, ...]:
    return tuple(as_size(name, value, "a default plan") for name, value in given.items())


@functools.lru_cache(maxsize=1024)
def _decode(
    config: ModelConfig, shape: Shape, chip: Chip, batch: int, context: int
) -> Partitioning:
    how: dict[str, Any] = {"chip": chip, "mesh_shape": shape, "batch": batch}
    found = plan(config, phase="decode", context=context, **how).options
    first = _first(found)
    readers: dict[Any, float] = {}
    # The fastest come first.
    for option in plan(config, phase="prefill", length=context, **how).feasible:
        readers.setdefault(_cache_axes(config, shape, option), _seconds(option))

    def read(option: Option) -> float:
        return readers.get(_cache_axes(config, shape, option), math.inf)

    near = [
        option
        for option in found
        if _seconds(option) <= SLOWEST_STEP * _seconds(first)
        and bool(option.excluded) == bool(first.excluded)
    ]
    most = READ_FASTER * min(map(read, near))
    return next(option for option in near if read(option) <= most).partitioning


@functools.lru_cache(maxsize=1024)
def _prefill(
    config: ModelConfig, shape: Shape, chip: Chip, batch: int, length: int, context: int
) -> Partitioning:
    decoder = _decode(config, shape, chip, batch, context)
    axes = _axes(config, shape, decoder)
    found = plan(config, chip=chip, mesh_shape=shape, phase="prefill", batch=batch, length=length)
    alike = [option for option in found.options if _cache_axes(config, shape, option) == axes]
    return _first(alike).partitioning


def _first(options: Sequence[Option]) -> Option:
    """The best, whether or not the model believes that it fits: the compiler knows."""
    option = options[0]
    if option.cost is None:
        raise ValueError(option.excluded)
    return option


def _seconds(option: Option) -> float:
    return math.inf if option.cost is None else option.cost.step_seconds


def _cache_axes(config: ModelConfig, shape: Shape, option: Option) -> tuple[Axes, Axes] | None:
    """Those that shard the cache's batch and its heads; None if they cannot."""
    return None if option.cost is None else _axes(config, shape, option.partitioning)


def _axes(config: ModelConfig, shape: Shape, chosen: Partitioning) -> tuple[Axes, Axes]:
    where = place(config, chosen.feedforward, chosen.attention, dict(zip(AXES, shape, strict=True)))
    return where.batch_axes, where.kv_axes


def _shape(mesh: Any) -> Shape:
    sizes = check_mesh(mesh)
    return tuple(sizes[axis] for axis in AXES)


def chip_of(mesh: Any, chip: Chip | str | None = None) -> Chip:
    """The chip that is named, or that of a mesh's devices; of an abstract mesh, the one it was made
    for.

    Raises:
      ValueError: no chip has that name.
    """
    return chip_for(kind_of(mesh)) if chip is None else as_chip(chip)


def kind_of(mesh: Any) -> str:
    """That of a mesh's devices; of an abstract mesh, of those that it was made for."""
    if isinstance(mesh, Mesh):
        return mesh.devices.flat[0].device_kind
    device = getattr(mesh, "abstract_device", None)
    return "cpu" if device is None else device.device_kind
