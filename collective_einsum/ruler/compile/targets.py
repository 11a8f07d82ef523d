"""Targets to run on or compile for: emulated CPU devices, attached accelerators, or a TPU slice that
is not attached.

`target("v4:4x4x4")` compiles with the real TPU compiler on any Linux machine; nothing can run on
it.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from jax.experimental import mesh_utils, topologies

from collective_einsum.chips.chip import Chip
from collective_einsum.chips.compiler_habits import CompilerOption
from collective_einsum.chips.known_chips import TPU_7X, TPU_V4, TPU_V5E, TPU_V5P, TPU_V6E
from collective_einsum.chips.names import chip_for
from collective_einsum.chips.slices import slice_sides

# Without a TPU, libtpu would query the cloud's metadata server, and allow one process at a time.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    # libtpu needs some accelerator type that it knows; the topology itself is given by name.
    "TPU_ACCELERATOR_TYPE": "v4-8",
}


@runtime_checkable
class _Lowerable(Protocol):
    """The functions that `jax.jit` and `ce.jit` return."""

    def lower(self, *args: object) -> jax.stages.Lowered: ...


@dataclasses.dataclass(frozen=True)
class _Generation:
    chip: Chip
    dims: int
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


_GENERATIONS = {
    # Without megacore, a v4 chip shows as two devices.
    "v4": _Generation(TPU_V4, 3, {"chip_config_name": "megacore"}),
    "v5p": _Generation(TPU_V5P, 3),
    "v5e": _Generation(TPU_V5E, 2),
    "v6e": _Generation(TPU_V6E, 2),
    # Two devices a chip.
    "tpu7x": _Generation(TPU_7X, 3),
}
TOPOLOGIES = ("v4:4x4x4", "v5p:4x4x4", "v5e:4x4", "v6e:4x4", "tpu7x:2x2x1")
_KNOWN = f"cpu:N (such as cpu:8), attached, or a TPU topology such as {', '.join(TOPOLOGIES)}"


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to run on or to compile for.

    Attributes:
      name: the argument of `target`.
      kind: "emulated", "attached" or "topology"; only the first two can run.
      chip: rates and bandwidths of a device; None for emulated devices.
      devices: all devices of the target.
    """

    name: str
    kind: str
    chip: Chip | None
    # `jax.Device` is a variable to type checkers, not a type.
    devices: tuple[Any, ...] = dataclasses.field(repr=False)

    @property
    def can_run(self) -> bool:
        """Whether programs can run here, or only be compiled."""
        return self.kind != "topology"

    @property
    def sides(self) -> tuple[int, ...]:
        """The sizes of a topology's torus; the devices of a chip lie along the last one."""
        *sizes, last = (int(size) for size in self.name.partition(":")[2].split("x"))
        return (*sizes, last * (self.chip.devices_per_chip if self.chip else 1))

    def mesh(self, axis_sizes: Sequence[int], axis_names: Sequence[str]) -> jax.sharding.Mesh:
        """A mesh (Auto axes) whose axes lie along those of the torus; of a topology, of all devices.

        Raises ValueError if the sizes do not fit the devices.
        """
        wanted, there = math.prod(axis_sizes), len(self.devices)
        if len(axis_sizes) != len(axis_names):
            raise ValueError(
                f"axis_sizes {tuple(axis_sizes)} and axis_names {tuple(axis_names)} differ in "
                "length; give every axis one size and one name."
            )
        if wanted > there or (self.kind == "topology" and wanted != there):
            raise ValueError(
                f"a mesh of sizes {tuple(axis_sizes)} has {wanted} devices but target "
                f"{self.name!r} has {there}; choose axis sizes whose product is {there}."
            )
        devices = mesh_utils.create_device_mesh(
            tuple(axis_sizes),
            self.devices[:wanted],
            allow_split_physical_axes=self.kind == "topology",
        )
        return jax.sharding.Mesh(devices, tuple(axis_names))

    def compile(
        self,
        function: Callable[..., object] | jax.stages.Lowered,
        *args: object,
        compiler_options: Mapping[str, CompilerOption] | None = None,
    ) -> jax.stages.Compiled:
        """Compiles a function, jitted or not, or a lowered one.

        `args` are ShapeDtypeStructs whose shardings name a mesh of this target; none for a
        function that has been lowered.
        """
        return compiled(function, *args, compiler_options=compiler_options)


def compiled(
    function: Callable[..., object] | jax.stages.Lowered,
    *args: object,
    compiler_options: Mapping[str, CompilerOption] | None = None,
) -> jax.stages.Compiled:
    """Compiles a function, jitted or not, or a lowered one, for the devices of its shardings' mesh."""
    made = function if isinstance(function, jax.stages.Lowered) else lowered(function, *args)
    return made.compile(compiler_options=dict(compiler_options or {}) or None)


def lowered(function: Callable[..., object], *args: object) -> jax.stages.Lowered:
    """Lowers a function, jitted or not, for the devices of its arguments' shardings."""
    jitted = function if isinstance(function, _Lowerable) else jax.jit(function)
    return jitted.lower(*args)


def target(name: str) -> Target:
    """The target of a name: `cpu:8`, `attached`, `v4:4x4x4`, `v5p:4x4x4`, `v5e:4x4`, `v6e:4x4`,
    `tpu7x:2x2x1` and the like.

    Sets the environment that the emulated devices or libtpu need, so call it before anything
    initialises jax's backends.

    Raises:
      ValueError: if there is no such target, or the topology cannot be, or the devices are not there.
      ModuleNotFoundError: if a topology is asked for and libtpu is not installed.
    """
    if name == "attached":
        return _attached()
    family, _, size = name.partition(":")
    if family == "cpu" and re.fullmatch(r"[1-9]\d*", size):
        return _emulated(name, int(size))
    if family in _GENERATIONS:
        return _topology(name, _GENERATIONS[family], size)
    raise ValueError(f"there is no target {name!r}; choose {_KNOWN}.")


def slice_name(chip: Chip, devices: int, sides: Sequence[int] | None = None) -> str:
    """The name of a slice, such as "v5e:4x4".

    Args:
      chip: every chip of it.
      devices: how many.
      sides: of the slice, in chips; those of the most compact slice unless given.

    Raises:
      ValueError: the compiler knows no slice of the chip, or none of so many devices, or the sides have
        another number of devices.
    """
    families = [
        name for name, generation in _GENERATIONS.items() if generation.chip.name == chip.name
    ]
    if not families:
        raise ValueError(
            f"there is no TPU compiler for {chip.name}; choose a chip of {', '.join(_GENERATIONS)}"
        )
    chips, left = divmod(devices, chip.devices_per_chip)
    if sides is None and chips and not left:
        compact = slice_sides(chips, _GENERATIONS[families[0]].dims)
        # X and Y are the even ones.
        sides = sorted(compact, key=lambda n: (n % 2, n))
    if not sides or not _fills_hosts(sides):
        raise ValueError(
            f"there is no slice of {devices} devices of {chip.name}, whose hosts have 2x2 chips; choose "
            "another number of chips"
        )
    name = "x".join(map(str, sides))
    if math.prod(sides) * chip.devices_per_chip != devices:
        raise ValueError(f"a slice of {name} chips of {chip.name} has not {devices} devices")
    return f"{families[0]}:{name}"


def _fills_hosts(sides: Sequence[int]) -> bool:
    """Whether X and Y are whole hosts, of 2x2 chips."""
    return min(sides) > 0 and not any(side % 2 for side in sides[:2])


def _emulated(name: str, count: int) -> Target:
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"target {name!r} needs {count} emulated devices but jax has started with "
            f"{len(devices)}; ask for the target first, or set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}."
        )
    return Target(name, "emulated", None, tuple(devices[:count]))


def _attached() -> Target:
    devices = jax.devices()
    if devices[0].platform == "cpu":
        raise ValueError(
            f"target 'attached' needs an accelerator but jax sees only CPUs; choose {_KNOWN}."
        )
    return Target("attached", "attached", chip_for(devices[0].device_kind), tuple(devices))


def _topology(name: str, generation: _Generation, size: str) -> Target:
    sizes = [int(word) for word in size.split("x")] if re.fullmatch(r"\d+(x\d+)*", size) else []
    # libtpu ends the process if it is given a wrong number of dimensions.
    if len(sizes) != generation.dims or not _fills_hosts(sizes):
        shape = "x".join("XYZ"[: generation.dims])
        example = next(known for known in TOPOLOGIES if known.startswith(name.partition(":")[0]))
        raise ValueError(
            f"target {name!r} is no slice of {generation.chip.name}: give its size as {shape} "
            f"with X and Y even, such as {example}."
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ModuleNotFoundError(
            f"target {name!r} needs libtpu, the TPU compiler (no TPU needed): "
            "pip install -e '.[bench]'"
        )
    for key, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    description = topologies.get_topology_desc(name, platform="tpu", **generation.options)
    return Target(name, "topology", generation.chip, tuple(description.devices))
