"""The einsum of this library that does what a collective and the dot next to it do, as a small program.

The program is compiled for the same mesh under the same options, once blocking and once with the
schedule that "auto" takes, and both are replayed: the difference is the predicted saving. What the
compiler would fuse with the dot in the program that it comes from is not in it.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .chips.chip import Chip
from .choose import choose_schedule
from .cost.choice import Choice
from .local_einsums import all_gather_einsum, einsum_all_reduce, einsum_reduce_scatter
from .ruler.hlo.neighbours import Neighbours

# By HLO's names.
_DTYPES = {
    "bf16": jnp.bfloat16,
    "f16": jnp.float16,
    "f32": jnp.float32,
    "s8": jnp.int8,
    "f8e4m3fn": jnp.float8_e4m3fn,
    "f8e5m2": jnp.float8_e5m2,
}
_LABELS = {"rows": "m", "contracted": "k", "columns": "n"}
_SPEC = "mk,kn->mn"
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "all-gather": all_gather_einsum,
    "reduce-scatter": einsum_reduce_scatter,
    "all-reduce": einsum_all_reduce,
}
_WORDS = {"all-gather": "gather", "reduce-scatter": "scatter"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchingEinsum:
    """A call of this library in place of a collective and a dot.

    Attributes:
      axes: mesh axes of the collective.
      shapes: local shapes of the two operands.
      dtypes: of the operands and of the result.
      collective: "all-gather", "reduce-scatter" or "all-reduce".
      label: what is gathered or scattered; "" for an all-reduce.
      on_chip: whether x is in on-chip memory, where an op before has left it.
      choice: its schedules, ranked by the cost model.
    """

    axes: tuple[str, ...]
    shapes: tuple[tuple[int, int], tuple[int, int]]
    dtypes: tuple[Any, Any, Any]
    collective: str
    label: str
    on_chip: bool
    choice: Choice

    def __str__(self) -> str:
        """The call, with operands x and w."""
        function = _FUNCTIONS[self.collective].__name__
        axis = self.axes[0] if len(self.axes) == 1 else self.axes
        return f'ce.{function}("{_SPEC}", x, w, axis_name={axis!r}{self._asked()})'

    def program(self, mesh: Mesh, schedule: Any) -> jax.stages.Lowered:
        """The einsum alone, on local operands of these shapes, lowered for all devices of a mesh."""
        keywords: dict[str, Any] = {"axis_name": self.axes, "schedule": schedule}
        if self.label:
            keywords[_WORDS[self.collective]] = self.label
        if self.dtypes[2] is not None:
            keywords["preferred_element_type"] = self.dtypes[2]
        function = _FUNCTIONS[self.collective]

        def step(x: jax.Array, w: jax.Array) -> Any:
            if self.on_chip:
                # Where the compiler leaves what an op has just computed.
                x = jax.lax.optimization_barrier(x + jnp.ones((), x.dtype))
            return function(_SPEC, x, w, **keywords)

        mapped = jax.shard_map(step, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
        everywhere = NamedSharding(mesh, P())
        operands = [
            jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)
            for shape, dtype in zip(self.shapes, self.dtypes, strict=False)
        ]
        return jax.jit(mapped).lower(*operands)

    def _asked(self) -> str:
        return f', {_WORDS[self.collective]}="{self.label}"' if self.label else ""


def matching_einsum(near: Neighbours, mesh: Mesh, chip: Chip) -> MatchingEinsum | None:
    """The einsum for a collective next to a dot; None where this library has none.

    There is none if the devices that the collective joins are of no mesh axes, if they do not divide
    what it gathers or scatters, or if the dtypes are not those of an einsum.
    """
    axes = _axes_of(near.groups, mesh)
    dtypes = tuple(_DTYPES.get(name) for name in near.dtypes)
    if axes is None or None in dtypes[:2]:
        return None
    devices = 1
    for axis in axes:
        devices *= mesh.shape[axis]
    sizes = {"m": near.rows, "k": near.contracted, "n": near.columns}
    label = _LABELS.get(near.dimension, "")
    if label and sizes[label] % devices:
        return None
    sharded = near.kind == "all-gather"
    local = {**sizes, label: sizes[label] // devices} if sharded else sizes
    shapes = ((local["m"], local["k"]), (sizes["k"], sizes["n"]))
    word = {_WORDS[near.kind]: label} if label else {}
    try:
        choice = choose_schedule(
            _SPEC,
            *(
                jax.ShapeDtypeStruct(shape, dtype)
                for shape, dtype in zip(shapes, dtypes, strict=False)
            ),
            axis_name=axes,
            axis_size=[mesh.shape[axis] for axis in axes],
            preferred_element_type=dtypes[2],
            chip=chip,
            **word,
        )
    except ValueError:
        return None
    return MatchingEinsum(
        axes=axes,
        shapes=shapes,
        dtypes=(dtypes[0], dtypes[1], dtypes[2]),
        collective=near.kind,
        label=label,
        on_chip=near.on_chip,
        choice=choice,
    )


def _axes_of(groups: tuple[tuple[int, ...], ...], mesh: Mesh) -> tuple[str, ...] | None:
    """The mesh axes along which the devices of each group lie; None if there are none such."""
    wanted = {frozenset(group) for group in groups}
    if not wanted:
        return tuple(name for name in mesh.axis_names if mesh.shape[name] > 1)
    names = [name for name in mesh.axis_names if mesh.shape[name] > 1]
    positions = _positions(mesh)
    for count in range(1, len(names) + 1):
        for axes in itertools.combinations(names, count):
            if {frozenset(group) for group in _groups(positions, mesh, axes)} == wanted:
                return axes
    return None


def _positions(mesh: Mesh) -> list[tuple[int, ...]]:
    """The index on the mesh of every position in its flat order."""
    return list(itertools.product(*(range(size) for size in mesh.devices.shape)))


def _groups(positions: list[tuple[int, ...]], mesh: Mesh, axes: tuple[str, ...]) -> list[list[int]]:
    """The positions that differ along these axes alone."""
    fixed = [i for i, name in enumerate(mesh.axis_names) if name not in axes]
    by_place: dict[tuple[int, ...], list[int]] = {}
    for position, index in enumerate(positions):
        by_place.setdefault(tuple(index[i] for i in fixed), []).append(position)
    return list(by_place.values())
