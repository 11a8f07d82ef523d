"""The timeline of any program on a TPU slice: compiled for it where it is not yet, then replayed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from collective_einsum.chips.chip import Chip
from collective_einsum.ruler.bundles import dump
from collective_einsum.ruler.compile.targets import compiled, lowered
from collective_einsum.ruler.compile.targets import target as target_of
from collective_einsum.ruler.replay.simulation import replay
from collective_einsum.ruler.replay.timeline import Timeline

Program = Callable[..., Any] | jax.stages.Lowered | jax.stages.Compiled | str


def mesh(
    target: str,
    axes: Mapping[str, int],
    axis_types: Sequence[AxisType] | None = None,
    *,
    bundles: bool = False,
) -> Mesh:
    """A mesh of a TPU slice that is not there, to shard shapes over and to compile for.

    Call it before anything asks jax for devices: it sets what libtpu needs.

    Args:
      target: the slice, such as "v5e:4x4"; `python -m collective_einsum.ruler targets` lists them.
      axes: the size of each axis, such as {"data": 4, "model": 4}; their product is the slice's number
        of devices.
      axis_types: the type of each axis, as `jax.make_mesh` takes them; all Auto by default.
      bundles: whether `predict` counts the code that the dots and Pallas kernels of programs issue,
        which it compiles for any slice in this process, and uses that where estimates are wrong.

    Raises:
      ValueError: there is no such slice, or the sizes do not fill it, or the types are not one an axis;
        or bundles are asked for after jax has asked for a slice without them.
      ModuleNotFoundError: libtpu is not installed.
    """
    if axis_types is not None and len(axis_types) != len(axes):
        raise ValueError(
            f"axis_types {tuple(axis_types)} and axes {dict(axes)} differ in length; give every axis "
            "one type"
        )
    if bundles:
        dump.start()
    made = target_of(target).mesh(tuple(axes.values()), tuple(axes))
    if axis_types is None:
        return made
    return Mesh(made.devices, made.axis_names, axis_types=tuple(axis_types))


def predict(
    program: Program,
    *args: Any,
    target: str | None = None,
    mesh_axes: Mapping[str, int] | None = None,
    options: Mapping[str, Any] | None = None,
    chip: Chip | None = None,
) -> Timeline:
    """Predicts how long a program takes on a TPU slice, what it waits for, and on which source lines.

    Args:
      program: a function, jitted or not, that is lowered with `args`; or what lowering or compiling it
        gave; or the text of a scheduled HLO module, such as a dump of a run has.
      args: of a function, each an array or a `jax.ShapeDtypeStruct` with a `NamedSharding` over a mesh
        that `mesh` made; none for all else.
      target: the slice, such as "v5e:4x4". Needed for the text of a module; otherwise it is
        inferred from the mesh, and only checked.
      mesh_axes: for the text of a module, the axes of the mesh that it was compiled for, in order. The
        devices are taken to lie as `jax.make_mesh` places them. One axis if it is not given.
      options: the compiler's options, for a function and for what lowering gave, such as
        `collective_einsum.compiler_options(chip)`; None for the compiler's defaults.
      chip: rates and bandwidths of a chip; by default those of the slice's chips.

    Returns:
      The timeline. `print` shows a table; `by_line()` has the seconds of every source line of yours.

    Raises:
      ValueError: the arguments do not say on which slice, or the text is no scheduled HLO module, or
        it does not fit the slice.
      ModuleNotFoundError: a slice is asked for and libtpu is not installed.
    """
    if isinstance(program, str):
        _refuse("the text of a module is compiled already", args=args, options=options)
        return replay(program, _mesh_of_text(target, mesh_axes), chip)
    if mesh_axes is not None:
        raise ValueError(
            f"mesh_axes={dict(mesh_axes)} has no effect here: the mesh is that of the arguments' "
            "shardings; leave it out"
        )
    executable, text = dump.text_of(lambda: _compiled(program, args, options))
    return replay(text, mesh_of_compiled(args, executable, target), chip)


def lower(
    program: Callable[..., Any] | jax.stages.Lowered, args: tuple[Any, ...]
) -> jax.stages.Lowered:
    """A function, jitted or not, lowered with its arguments; what is lowered already stays as it is.

    Raises:
      ValueError: no argument says on which slice, or there are arguments for what is lowered, or the
        program is compiled.
    """
    if isinstance(program, jax.stages.Compiled | str):
        raise ValueError(
            "the program is compiled already, so no other options can be tried; give the function with "
            "its arguments, or what lowering it gave"
        )
    if isinstance(program, jax.stages.Lowered):
        _refuse("the program is lowered already", args=args)
        return program
    # This check precedes lowering: a function without shardings would be compiled for the host.
    _mesh_of(jax.tree.leaves(args))
    return lowered(program, *args)


def mesh_of_compiled(
    args: tuple[Any, ...], executable: jax.stages.Compiled, target: str | None
) -> Mesh:
    """The mesh that a program was compiled for.

    Raises:
      ValueError: neither its arguments nor its shardings name one, or it is not of the target.
    """
    where = _mesh_of(jax.tree.leaves(args) + jax.tree.leaves(executable.input_shardings))
    if target is not None:
        _check_target(where, target)
    return where


def _compiled(
    program: Callable[..., Any] | jax.stages.Lowered | jax.stages.Compiled,
    args: tuple[Any, ...],
    options: Mapping[str, Any] | None,
) -> jax.stages.Compiled:
    if isinstance(program, jax.stages.Compiled):
        _refuse("the program is compiled already", args=args, options=options)
        return program
    return compiled(lower(program, args), compiler_options=options)


def _mesh_of(leaves: list[Any]) -> Mesh:
    """The mesh of the first sharding over one, among arrays, shapes and shardings.

    Raises:
      ValueError: there is none, or it is of CPU devices.
    """
    shardings = (getattr(leaf, "sharding", leaf) for leaf in leaves)
    where = next((s.mesh for s in shardings if isinstance(s, NamedSharding)), None)
    advice = (
        'make a mesh by collective_einsum.ruler.mesh("v5e:4x4", {"data": 4, "model": 4}), and give the '
        "arguments jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))"
    )
    if not isinstance(where, Mesh):
        raise ValueError(f"no argument says on which slice the program runs: {advice}")
    if where.devices.flat[0].platform == "cpu":
        raise ValueError(
            f"the arguments' mesh is of CPU devices, whose speed says nothing: {advice}"
        )
    return where


def _mesh_of_text(target: str | None, axes: Mapping[str, int] | None) -> Mesh:
    if target is None:
        raise ValueError(
            "the text of a module does not say on which slice it runs: give target=, such as "
            'target="v5e:4x4", and mesh_axes= if its mesh has several axes'
        )
    where = target_of(target)
    axes = axes or {"devices": len(where.devices)}
    return where.mesh(tuple(axes.values()), tuple(axes))


def _check_target(where: Mesh, target: str) -> None:
    """Refuses a target that is another slice than the mesh's."""
    devices = target_of(target).devices
    kinds = [device.device_kind for device in (where.devices.flat[0], devices[0])]
    if kinds[0] != kinds[1] or where.devices.size != len(devices):
        raise ValueError(
            f"target={target!r} is {len(devices)} devices of {kinds[1]}, and the program is for a mesh "
            f"of {where.devices.size} of {kinds[0]}; leave target= out, or make the mesh by "
            f"collective_einsum.ruler.mesh({target!r}, ...)"
        )


def _refuse(reason: str, **given: Any) -> None:
    """Refuses arguments that would have no effect."""
    for name, value in given.items():
        if value:
            raise ValueError(f"{name} has no effect here: {reason}; leave it out")
