"""Dots of global arrays, whose collectives the compiler makes, and the einsums of this library for them.

Which collectives a dot has is a matter of the shardings of its operands and its result. They are those
that jax's own propagation (Shardy) gives them, which the compiler runs too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend.mlir import ir, passmanager
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ..chips.chip import Chip
from ..dot_general import formula
from ..global_einsum import einsum
from .jaxprs import DOT, Jaxpr, JaxprEqn, every_jaxpr, type_of
from .program import TracedProgram
from .source_text import source_text
from .substitute import Replacement, substituted

Specs = tuple[PartitionSpec, PartitionSpec, PartitionSpec]

_PROPAGATION = "builtin.module(sdy-propagation-pipeline)"
_NAME = "advised_dot_"
_FUNCTION = re.compile(rf"func\.func private @{_NAME}(\d+)\w*\((.*)\) -> \(?(.*?)\)? \{{$", re.M)
_SHARDING = re.compile(
    r"tensor<[^>]*>(?: \{[^\[\]]*sdy\.sharding = #sdy\.sharding<@\w+, \[(.*?)\])?"
)
_DIMENSION = re.compile(r"\{([^{}]*)\}")
_AXIS = re.compile(r'"([^"]*)"')


def global_dots(program: Jaxpr) -> list[JaxprEqn]:
    """The dots of a jaxpr, and of all that it calls, that are of global arrays: in no `shard_map`."""
    jaxprs = every_jaxpr(program, local=False)
    return [eqn for jaxpr in jaxprs for eqn in jaxpr.eqns if eqn.primitive.name == DOT]


def einsums_of(
    program: TracedProgram, dots: Sequence[JaxprEqn], chip: Chip
) -> dict[int, Replacement | str]:
    """The einsum for each of some dots of a program, or why there is none, by the dot's identity."""
    mesh = _mesh(program)
    if mesh is None:
        return {id(dot): "no argument has a sharding over a mesh" for dot in dots}
    known = shardings(program, dots, chip)
    made: dict[int, Replacement | str] = {}
    for dot, specs in zip(dots, known, strict=True):
        if isinstance(specs, str):
            made[id(dot)] = specs
        elif not any(axes for spec in specs for axes in spec):
            made[id(dot)] = "its operands and its result are unsharded"
        else:
            made[id(dot)] = _einsum(dot, specs, mesh)
    return made


def shardings(program: TracedProgram, dots: Sequence[JaxprEqn], chip: Chip) -> list[Specs | str]:
    """The shardings of the operands and the result of dots, or why they cannot be known."""
    tagged = [_tagged(dot, number) for number, dot in enumerate(dots)]
    lowered = program.lowered(substituted(program.jaxpr, tagged, chip))
    module: Any = lowered.compiler_ir("stablehlo")
    if "sdy.mesh" not in str(module):
        return ["the program is not partitioned by Shardy"] * len(dots)
    try:
        with module.context:
            passmanager.PassManager.parse(_PROPAGATION).run(module.operation)
    except (ir.MLIRError, ValueError) as error:
        return [f"Shardy does not propagate its shardings: {error}"] * len(dots)
    known: dict[int, Specs | str] = {}
    for number, operands, result in _FUNCTION.findall(str(module)):
        read = _specs(f"{operands}, {result}")
        before = known.setdefault(int(number), read)
        if before != read:
            known[int(number)] = "it is sharded in several ways, one for each of its calls"
    return [known.get(number, "the compiler does not have it") for number in range(len(dots))]


def _tagged(dot: JaxprEqn, number: int) -> Replacement:
    """The dot as a function of its own, whose name is not lost."""

    def call(*operands: Any) -> list[Any]:
        return [dot.primitive.bind(*operands, **dot.params)]

    call.__name__ = f"{_NAME}{number}"
    return Replacement(
        replaced=(dot,), superseded=(), operands=tuple(dot.invars), call=call, text=""
    )


def _specs(signature: str) -> Specs | str:
    """The specs of two operands and a result, by the text of their types."""
    specs = []
    for dimensions in _SHARDING.findall(signature):
        entries = []
        for dimension in _DIMENSION.findall(dimensions):
            if "(" in dimension:
                return "a dimension is sharded over a fraction of a mesh axis"
            axes = tuple(_AXIS.findall(dimension))
            entries.append(None if not axes else axes[0] if len(axes) == 1 else axes)
        while entries and entries[-1] is None:
            entries.pop()
        specs.append(PartitionSpec(*entries))
    if len(specs) != 3:
        return "its shardings are written in a way that is not known here"
    return specs[0], specs[1], specs[2]


def _mesh(program: TracedProgram) -> Mesh | None:
    """The mesh of the arguments."""
    shardings = (getattr(arg, "sharding", None) for arg in program.args)
    return next(
        (s.mesh for s in shardings if isinstance(s, NamedSharding) and isinstance(s.mesh, Mesh)),
        None,
    )


def _einsum(dot: JaxprEqn, specs: Specs, arguments_mesh: Mesh) -> Replacement:
    lhs, rhs = (type_of(var) for var in dot.invars)
    typed: AbstractMesh = lhs.sharding.mesh
    mesh = arguments_mesh if typed.empty else typed
    spec = formula(dot.params["dimension_numbers"], lhs.shape, rhs.shape)
    dtype, precision = type_of(dot.outvars[0]).dtype, dot.params["precision"]
    explicit = all(kind == AxisType.Explicit for kind in mesh.axis_types)
    named: dict[str, Any] = {"in_specs": specs[:2], "out_sharding": specs[2]}
    if explicit:
        # The types know; propagation leaves out axes of size 1.
        named = {"out_sharding": type_of(dot.outvars[0]).sharding.spec}
    if precision is not None:
        named["precision"] = precision

    def call(x: Any, w: Any) -> list[Any]:
        context: dict[str, Any] = {} if explicit else {"mesh": mesh}
        return [einsum(spec, x, w, preferred_element_type=dtype, **context, **named)]

    call.__name__ = einsum.__name__
    words = [] if explicit else ["mesh=mesh"]
    words += [f"{name}={source_text(value)}" for name, value in named.items()]
    if dtype != np.result_type(lhs.dtype, rhs.dtype):
        words.append(f"preferred_element_type={source_text(dtype)}")
    return Replacement(
        replaced=(dot,),
        superseded=(),
        operands=tuple(dot.invars),
        call=call,
        text=f'ce.einsum("{spec}", x, w, {", ".join(words)})',
    )
