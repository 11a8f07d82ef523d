"""What a mesh calls the axes x, y and z of a layout.

Layouts are written in x, y and z. A layer says once, while it is traced, what its mesh calls them
(`naming`), and whatever asks a mesh or moves something translates (`names`).
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from collective_einsum.text import shown

Axes = tuple[str, ...]

AXES: Axes = ("x", "y", "z")
# Feedforward weights are stored E_x F_yz, attention weights E_x H_yz.
WEIGHT_AXES: Axes = ("y", "z")
# Stands for what `MeshAxes.batch` names.
BATCH = "batch"


@dataclasses.dataclass(frozen=True)
class MeshAxes:
    """What a mesh calls the axes x, y and z of a layout, whose names differ otherwise.

    `MeshAxes(x="fsdp", y="tp")` is a layout without z, as if its size were 1.

    Attributes:
      x, y, z: the name of a mesh axis, or of several, major first; None where there is none.
      batch: further axes that shard the batch, outermost, over which weights are whole.
    """

    x: str | Axes | None = None
    y: str | Axes | None = None
    z: str | Axes | None = None
    batch: str | Axes = ()

    def __post_init__(self) -> None:
        fields = [getattr(self, axis) for axis in (*AXES, BATCH)]
        words = all(each is None or isinstance(each, str | tuple | list) for each in fields)
        found = [name for axis in (*AXES, BATCH) for name in self.of(axis)] if words else [None]
        if not all(isinstance(name, str) for name in found) or len(set(found)) < len(found):
            raise ValueError(
                f"{self}: give names of mesh axes, or tuples of names, no name twice, such as "
                'MeshAxes(x="fsdp", y="tp")'
            )

    def of(self, axis: str) -> Axes:
        """The mesh axes of one of the layout's, or of the batch; another name is itself."""
        if axis not in (*AXES, BATCH):
            return (axis,)
        found = getattr(self, axis)
        return () if found is None else (found,) if isinstance(found, str) else tuple(found)

    def spec(self, spec: P) -> P:
        """A partition spec over the layout's axes as one over the mesh's."""
        return P(*(self._entry(entry) for entry in spec))

    def _entry(self, entry: Any) -> Any:
        if entry is None:
            return None
        given = (entry,) if isinstance(entry, str) else entry
        found = tuple(name for axis in given for name in self.of(axis))
        return found[0] if isinstance(entry, str) and len(found) == 1 else found or None


AxesLike = MeshAxes | Mapping[str, Any] | None
_STANDARD = MeshAxes("x", "y", "z")
_IN_SCOPE = contextvars.ContextVar("mesh_axes", default=_STANDARD)


def mesh_axes() -> MeshAxes:
    """Those of the layer that is being traced."""
    return _IN_SCOPE.get()


@contextlib.contextmanager
def naming(axes: AxesLike) -> Iterator[None]:
    """In this context x, y and z stand for what `axes` says; for themselves if it is None.

    Raises:
      ValueError: `axes` names other things.
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


def named(specs: Any) -> Any:
    """Partition specs over the axes of a layout as ones over those of the mesh."""
    return jax.tree.map(mesh_axes().spec, specs, is_leaf=lambda x: isinstance(x, P))


def names(axes: str | Sequence[str]) -> Axes:
    """The mesh axes of some of a layout's, major first."""
    given = (axes,) if isinstance(axes, str) else axes
    return tuple(name for axis in given for name in mesh_axes().of(axis))


def as_mesh(mesh: Any) -> Mesh | AbstractMesh:
    """The mesh.

    Raises:
      ValueError: it is none.
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


def check_devices(mesh: Any, what: str) -> None:
    """Refuses a mesh of sizes alone, without devices.

    Args:
      mesh: any mesh.
      what: is done with the devices, such as "to lower for".

    Raises:
      ValueError: it is an AbstractMesh.
    """
    if isinstance(mesh, AbstractMesh):
        raise ValueError(
            f"mesh={shown(mesh)} has no devices {what}; give a jax.sharding.Mesh, made with "
            'jax.make_mesh((X, Y, Z), ("x", "y", "z")), or, to compile where these devices are not, '
            "of those of a jax.experimental.topologies description"
        )


def check_mesh(mesh: Any) -> dict[str, int]:
    """The sizes of x, y and z. The mesh may have other axes beside them.

    Raises:
      ValueError: it is no mesh, or lacks one that is named.
    """
    there = tuple(as_mesh(mesh).axis_names)
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
    """The sizes of x, y and z of the surrounding shard_map.

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
    """How axes of these names could be said; the last two, since batches come first."""
    named = zip(AXES, there[-2:] or ("fsdp", "tp"), strict=False)
    return f"layouts.MeshAxes({', '.join(f'{axis}={name!r}' for axis, name in named)})"


def axis_size(axis: str) -> int:
    """The number of devices along an axis of a layout."""
    return math.prod(lax.axis_size(name) for name in names(axis))


def axis_index(axes: str | Sequence[str]) -> jax.Array:
    """This device's place along axes of a layout, the first major."""
    return lax.axis_index(names(axes))


def size(axes: Sequence[str], sizes: Mapping[str, int] | None = None) -> int:
    """The number of devices along `axes`."""
    return math.prod(sizes[a] if sizes is not None else axis_size(a) for a in axes)


def live(axes: Sequence[str]) -> Axes:
    """Those of `axes` that have more than one device."""
    return tuple(axis for axis in axes if axis_size(axis) > 1)


def in_order(axes: Sequence[str]) -> Axes:
    """`axes` in the order of the mesh."""
    return tuple(axis for axis in AXES if axis in axes)


def renamed(mesh: Any, axes: AxesLike) -> Any:
    """A mesh whose axes are called x, y and z, of the same devices: for the decoder's functions.

    Arrays on the one are arrays on the other. Axes that `axes` does not name stay beside x, y and z,
    and those of `batch`; along them chips hold copies, and all do the same.

    Args:
      mesh: a Mesh or an AbstractMesh.
      axes: what it calls x, y and z; a `MeshAxes`.

    Raises:
      ValueError: the mesh lacks an axis that is named, or has another x, y or z.
    """
    with naming(axes):
        check_mesh(mesh)
        groups = {axis: names(axis) for axis in AXES}
    taken = {name: axis for axis, group in groups.items() for name in group}
    order: list[Any] = []
    for name in mesh.axis_names:
        order += [] if taken.get(name, name) in order else [taken.get(name, name)]
    if any(name in AXES for name in mesh.axis_names if name not in taken):
        raise ValueError(
            f"{axes}: the mesh has the axes {tuple(mesh.axis_names)}, of which one that is not named is "
            "called as an axis of a layout; name it, or call it something else"
        )
    groups |= {name: (name,) for name in order if name not in groups}
    order += [axis for axis in AXES if axis not in order]
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    plain = AxisType.Explicit if AxisType.Explicit in kinds.values() else AxisType.Auto
    found = [{kinds[name] for name in groups[axis]} or {plain} for axis in order]
    types = tuple(plain if len(each) > 1 else each.pop() for each in found)
    sizes = tuple(math.prod(mesh.shape[name] for name in groups[axis]) for axis in order)
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(sizes, tuple(order), axis_types=types)
    places = [mesh.axis_names.index(name) for axis in order for name in groups[axis]]
    devices = mesh.devices.transpose(places).reshape(sizes)
    return Mesh(devices, tuple(order), axis_types=types)
