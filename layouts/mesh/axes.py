"""The mesh axes that the axes x, y and z of a layout stand for.

Layouts are written in x, y and z. A layer sets the names of its mesh once, while it is traced
(`naming`); every function that asks a mesh for sizes, or calls a collective, translates (`names`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from collective_einsum.text import shown

Axes = tuple[str, ...]
# A pytree of partition specs.
Specs = TypeVar("Specs")

AXES: Axes = ("x", "y", "z")
# Feedforward weights are stored E_x F_yz, attention weights E_x H_yz.
WEIGHT_AXES: Axes = ("y", "z")
# Stands for the mesh axes of `MeshAxes.batch`.
BATCH = "batch"


@dataclasses.dataclass(frozen=True)
class MeshAxes:
    """The mesh axes that the axes x, y and z of a layout stand for.

    `MeshAxes(x="fsdp", y="tp")` is a layout without z, as if its size were 1.

    Attributes:
      x, y, z: the name of a mesh axis, or of several, major first; None for no axis, size 1.
      batch: further mesh axes that shard the batch, outermost; weights are replicated over them.

    Raises:
      ValueError: something else than names is given, or a name twice.
    """

    x: str | Axes | None = None
    y: str | Axes | None = None
    z: str | Axes | None = None
    batch: str | Axes | None = ()

    def __post_init__(self) -> None:
        fields = [getattr(self, axis) for axis in (*AXES, BATCH)]
        words = all(field is None or isinstance(field, str | tuple | list) for field in fields)
        mesh = [name for axis in (*AXES, BATCH) for name in self.of(axis)] if words else [None]
        if not all(isinstance(name, str) for name in mesh) or len(set(mesh)) < len(mesh):
            raise ValueError(
                f"{self}: give names of mesh axes, or tuples of names, no name twice, such as "
                'MeshAxes(x="fsdp", y="tp")'
            )

    def of(self, axis: str) -> Axes:
        """The mesh axes that "x", "y", "z" or "batch" stands for; another name stands for itself."""
        if axis not in (*AXES, BATCH):
            return (axis,)
        field = getattr(self, axis)
        return () if field is None else (field,) if isinstance(field, str) else tuple(field)

    def spec(self, spec: P) -> P:
        """A partition spec over the layout's axes as one over the mesh's."""
        return P(*(self._entry(entry) for entry in spec))

    def _entry(self, entry: str | Axes | None) -> str | Axes | None:
        if entry is None:
            return None
        axes = (entry,) if isinstance(entry, str) else entry
        mesh = tuple(name for axis in axes for name in self.of(axis))
        return mesh[0] if isinstance(entry, str) and len(mesh) == 1 else mesh or None


AxesLike = MeshAxes | Mapping[str, str | Axes | None] | None
MeshLike = Mesh | AbstractMesh
SomeMesh = TypeVar("SomeMesh", Mesh, AbstractMesh)
_STANDARD = MeshAxes("x", "y", "z")
_IN_SCOPE = contextvars.ContextVar("mesh_axes", default=_STANDARD)


def mesh_axes() -> MeshAxes:
    """The `MeshAxes` of the layer that is being traced."""
    return _IN_SCOPE.get()


@contextlib.contextmanager
def naming(axes: AxesLike) -> Iterator[None]:
    """A context in which x, y and z stand for the mesh axes that `axes` names; for themselves if it
    is None.

    Raises:
      ValueError: `axes` is neither a `MeshAxes`, nor a mapping from "x", "y", "z" and "batch", nor None.
    """
    if axes is None:
        axes = _STANDARD
    elif isinstance(axes, Mapping):
        if not set(axes) <= {*AXES, BATCH}:
            raise ValueError(
                f"axes={dict(axes)!r} must say what the mesh calls x, y and z, such as "
                '{"x": "fsdp", "y": "tp"} or layouts.MeshAxes(x="fsdp", y="tp")'
            )
        axes = MeshAxes(**axes)
    elif not isinstance(axes, MeshAxes):
        raise ValueError(
            f'axes={axes!r} must be a layouts.MeshAxes, such as MeshAxes(x="fsdp", y="tp")'
        )
    token = _IN_SCOPE.set(axes)
    try:
        yield
    finally:
        _IN_SCOPE.reset(token)


def named(specs: Specs) -> Specs:
    """A pytree of partition specs over axes of a layout, translated to the axes of the mesh."""
    return jax.tree.map(mesh_axes().spec, specs, is_leaf=lambda x: isinstance(x, P))


def names(axes: str | Sequence[str]) -> Axes:
    """The mesh axes that some axes of a layout stand for, major first."""
    axes = (axes,) if isinstance(axes, str) else axes
    return tuple(name for axis in axes for name in mesh_axes().of(axis))


def as_mesh(mesh: object) -> MeshLike:
    """The mesh as it is given.

    Raises:
      ValueError: `mesh` is neither a Mesh nor an AbstractMesh.
    """
    if isinstance(mesh, Mesh | AbstractMesh):
        return mesh
    shape = "(X, Y, Z)"
    if isinstance(mesh, tuple | list) and all(isinstance(n, int) for n in mesh):
        shape = str((*mesh, 1, 1)[: max(3, len(mesh))])
    raise ValueError(
        f"mesh={shown(mesh)} is no jax.sharding.Mesh; make one with jax.make_mesh({shape}, "
        '("x", "y", "z"))'
    )


def check_devices(mesh: MeshLike, purpose: str) -> None:
    """Refuses a mesh of sizes alone, without devices.

    Args:
      mesh: any mesh.
      purpose: of the devices, such as "to lower for", for the message.

    Raises:
      ValueError: `mesh` is an AbstractMesh.
    """
    if isinstance(mesh, AbstractMesh):
        raise ValueError(
            f"mesh={shown(mesh)} has no devices {purpose}; give a jax.sharding.Mesh, made with "
            'jax.make_mesh((X, Y, Z), ("x", "y", "z")), or, to compile where these devices are not, '
            "of those of a jax.experimental.topologies description"
        )


def check_mesh(mesh: object) -> dict[str, int]:
    """The sizes of x, y and z on a mesh, which may have further axes.

    Raises:
      ValueError: `mesh` is no mesh, or lacks an axis that x, y, z or the batch stands for.
    """
    mesh = as_mesh(mesh)
    there = tuple(mesh.axis_names)
    missing = [name for name in names((*AXES, BATCH)) if name not in there]
    if missing:
        raise ValueError(
            f"layouts need a mesh with the axes {names((*AXES, BATCH))}, got {there}; make one with "
            'jax.make_mesh((X, Y, Z), ("x", "y", "z")), where any of the sizes may be 1, or say what '
            f"this one calls them: layers and specs take axes={_example(there)}, and the decoder's "
            "functions the mesh that layouts.renamed(mesh, axes) makes"
        )
    return {axis: math.prod(mesh.shape[name] for name in names(axis)) for axis in AXES}


def local_sizes() -> dict[str, int]:
    """The sizes of x, y and z in the surrounding shard_map.

    Raises:
      ValueError: an axis is not manual here.
    """
    manual = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    missing = [name for name in names(AXES) if name not in manual]
    if missing:
        raise ValueError(
            f"a layout's layers run inside a shard_map over {names(AXES)}, but {missing[0]!r} is not "
            f"manual here (manual axes: {manual}); call them inside jax.shard_map over a mesh with "
            f"these axes, pass mesh=, or say what they are called: axes={_example(manual)}"
        )
    return {axis: axis_size(axis) for axis in AXES}


def _example(there: Axes) -> str:
    """A `MeshAxes` for the message, of the last two of a mesh's axes: those of the batch come first."""
    named = zip(AXES, there[-2:] or ("fsdp", "tp"), strict=False)
    return f"layouts.MeshAxes({', '.join(f'{axis}={name!r}' for axis, name in named)})"


def axis_size(axis: str) -> int:
    """The number of devices along an axis of a layout."""
    return math.prod(lax.axis_size(name) for name in names(axis))


def axis_index(axes: str | Sequence[str]) -> jax.Array:
    """This device's index along axes of a layout, the first major."""
    return lax.axis_index(names(axes))


def size(axes: Sequence[str], sizes: Mapping[str, int] | None = None) -> int:
    """The number of devices along `axes`: by `sizes`, or by the surrounding shard_map."""
    return math.prod(sizes[a] if sizes is not None else axis_size(a) for a in axes)


def live(axes: Sequence[str]) -> Axes:
    """The axes of `axes` along which the surrounding shard_map has more than one device."""
    return tuple(axis for axis in axes if axis_size(axis) > 1)


def in_order(axes: Sequence[str]) -> Axes:
    """`axes` in the order x, y, z."""
    return tuple(axis for axis in AXES if axis in axes)


def renamed(mesh: SomeMesh, axes: AxesLike) -> SomeMesh:
    """A mesh of the same devices whose axes are called x, y and z, for the decoder's functions.

    Arrays on either mesh are arrays on the other. Axes that `axes` does not name, and those of its
    `batch`, keep their names; the decoder's arrays are replicated over them.

    Args:
      mesh: a Mesh or an AbstractMesh.
      axes: the mesh axes that x, y and z stand for; a `MeshAxes`.

    Raises:
      ValueError: the mesh lacks an axis that `axes` names, or has another axis called x, y or z.
    """
    with naming(axes):
        check_mesh(mesh)
        groups = {axis: names(axis) for axis in AXES}
    taken = {name: axis for axis, group in groups.items() for name in group}
    order: list[str] = []
    for name in mesh.axis_names:
        axis = str(taken.get(name, name))
        order += [] if axis in order else [axis]
    if any(name in AXES for name in mesh.axis_names if name not in taken):
        raise ValueError(
            f"{axes}: the mesh has the axes {tuple(mesh.axis_names)}, of which one that is not named is "
            "called as an axis of a layout; name it, or call it something else"
        )
    groups |= {name: (name,) for name in order if name not in groups}
    order += [axis for axis in AXES if axis not in order]
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    plain = AxisType.Explicit if AxisType.Explicit in kinds.values() else AxisType.Auto
    of_axes = [{kinds[name] for name in groups[axis]} or {plain} for axis in order]
    types = tuple(plain if len(several) > 1 else several.pop() for several in of_axes)
    sizes = tuple(math.prod(mesh.shape[name] for name in groups[axis]) for axis in order)
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(sizes, tuple(order), axis_types=types)
    places = [mesh.axis_names.index(name) for axis in order for name in groups[axis]]
    devices = mesh.devices.transpose(places).reshape(sizes)
    return Mesh(devices, tuple(order), axis_types=types)
