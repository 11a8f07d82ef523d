"""The jax primitive behind every function here: derivatives, batching and types of an operation.

An einsum with collectives is bilinear, and its derivatives are einsums with collectives again: what
was gathered is reduce-scattered, what was scattered is gathered. As a primitive's, its only residuals
are its operands, the local shards.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.interpreters import ad, batching, mlir, partial_eval
from jax.typing import DTypeLike

Results = TypeVar("Results")
# The types of lhs and rhs, and the dimension numbers of `lax.dot_general`.
Dot = tuple[jax.Array | ShapedArray, jax.Array | ShapedArray, lax.DotDimensionNumbers]


class Op(Protocol):
    """The parameter of the primitive: a hashable description of an operation, with rules registered."""

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes of the collectives."""
        ...

    @property
    def summed(self) -> tuple[str, ...]:
        """The axes over which results are equal on all devices afterwards (an all-reduce)."""
        ...


OpKind = TypeVar("OpKind", bound=Op)
Tangents = Sequence[jax.Array | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules(Generic[OpKind]):
    """The functions of one kind of op; each takes the op first.

    Attributes:
      run: the results on local shards, of (op, operands).
      tangents: the tangents of the results, of (op, operands, tangents); an absent tangent is None.
      transpose: cotangents of those operands that are None, of (op, cotangents, operands).
      batched: the op and its operands with a further dimension, leading in the results, of (op, dims,
        operands, over). `dims` are the dimensions to be mapped, or None; `over` the axes that shard
        the batch by vmap's `spmd_axis_name`.
      dots: the dots of the unsharded einsum, which checkpoint policies are asked about, of (op, types
        of operands).
    """

    run: Callable[[OpKind, Sequence[jax.Array]], list[jax.Array]]
    tangents: Callable[[OpKind, Sequence[jax.Array], Tangents], list[jax.Array | None]]
    transpose: Callable[
        [OpKind, Sequence[jax.Array], Sequence[jax.Array | None]], list[jax.Array | None]
    ]
    batched: Callable[
        [OpKind, Sequence[int | None], Sequence[jax.Array], tuple[str, ...]],
        tuple[OpKind, list[jax.Array]],
    ]
    dots: Callable[[OpKind, Sequence[Any]], list[Dot]]


_RULES: dict[type, Rules[Any]] = {}


def register(kind: type[OpKind], rules: Rules[OpKind]) -> None:
    """Gives the primitive the rules of a kind of op."""
    _RULES[kind] = rules


def apply(op: Op, *operands: jax.Array | None) -> list[jax.Array]:
    """The results of `op`, with their derivatives. All operands come to vary over the same axes."""
    return _primitive().bind(*vary(operands, op.axes), op=op)


def named(name: str, results: Results) -> Results:
    """The results under a name for checkpoint policies, such as `save_only_these_names`."""
    from jax.ad_checkpoint import checkpoint_name

    return checkpoint_name(results, name)


def vary(operands: Sequence[Any], axes: tuple[str, ...]) -> list[jax.Array]:
    """The operands typed as varying over `axes` and over all that any of them varies over."""
    if axes and not checks_vma(axes):
        return list(operands)
    types = [jax.typeof(x).manual_axis_type.varying for x in operands]
    wanted = frozenset(axes).union(*types)
    return [
        lax.pcast(x, tuple(sorted(wanted - have)), to="varying") if wanted - have else x
        for x, have in zip(operands, types, strict=True)
    ]


def checks_vma(axes: tuple[str, ...]) -> bool:
    """Whether the surrounding shard_map tracks which values vary over which axes (check_vma)."""
    return any(jax.typeof(lax.axis_index(axis)).manual_axis_type.varying for axis in axes)


def _shape_of(aval: ShapedArray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        aval.shape,
        aval.dtype,
        sharding=aval.sharding,
        manual_axis_type=aval.manual_axis_type,
    )


def _run(op: Op, *operands: jax.Array) -> list[jax.Array]:
    # Lowering is out of the caller's sight, whose promotion mode was obeyed when `op` was made.
    with jax.numpy_dtype_promotion("standard"):
        return _RULES[type(op)].run(op, operands)


def _abstract(*avals: ShapedArray, op: Op) -> list[Any]:
    results = jax.make_jaxpr(_run, static_argnums=0)(op, *map(_shape_of, avals)).out_avals
    if not op.summed:
        return results
    return [_invariant(aval, op.summed) for aval in results]


def _invariant(aval: Any, axes: tuple[str, ...]) -> ShapedArray:
    """The type without `axes` among those it varies over."""
    kind = aval.manual_axis_type
    left = kind.update(varying=kind.varying - frozenset(axes))
    return aval.update(manual_axis_type=left)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> Any:
    results = _primitive().bind(*primals, op=op)
    known = [None if type(t) is ad.Zero else t for t in tangents]
    of_results = _RULES[type(op)].tangents(op, primals, known)
    return results, [
        ad.Zero(jax.typeof(y).to_tangent_aval()) if t is None else t
        for y, t in zip(results, of_results, strict=True)
    ]


def _transpose(cotangents: Sequence[Any], *operands: Any, op: Op) -> list[Any]:
    linear = [ad.is_undefined_primal(x) for x in operands]
    if all(type(ct) is ad.Zero for ct in cotangents):
        return [
            ad.Zero(x.aval) if undefined else None
            for x, undefined in zip(operands, linear, strict=True)
        ]
    known = [ad.instantiate_zeros(ct) for ct in cotangents]
    fixed = [None if undefined else x for x, undefined in zip(operands, linear, strict=True)]
    of_operands = _RULES[type(op)].transpose(op, vary(known, op.axes), fixed)
    return [
        _cast(ct, x.aval.dtype) if undefined else None
        for ct, x, undefined in zip(of_operands, operands, linear, strict=True)
    ]


def _cast(ct: Any, dtype: DTypeLike) -> jax.Array:
    """A cotangent in its operand's dtype: a real operand has that of its real part."""
    real = not jnp.issubdtype(dtype, jnp.complexfloating)
    return (ct.real if real else ct).astype(dtype)


def _batch(axis: Any, operands: Sequence[Any], dims: Sequence[Any], *, op: Op) -> Any:
    mapped = any(d is not None for d in dims)
    if mapped:
        op, operands = _RULES[type(op)].batched(op, dims, operands, axis.spmd_name or ())
    results = _primitive().bind(*operands, op=op)
    return results, [0 if mapped else None] * len(results)


@functools.partial(jax.jit, static_argnames="op")
def _compiled(*operands: jax.Array, op: Op) -> list[jax.Array]:
    return _run(op, *operands)


def _evaluate(*operands: jax.Array, op: Op) -> list[jax.Array]:
    # As other primitives, which compile where nothing else does (jax_disable_jit).
    with jax.disable_jit(False):
        return _compiled(*operands, op=op)


def _remat(
    policy: Any, unknown: Sequence[bool], instantiated: Sequence[bool], eqn: Any
) -> tuple[Any, Any, list[bool], list[bool], list[Any]]:
    """The rule of jax.checkpoint: policies that save dots save what is made of dots.

    The equation where it is known, the equation where it is computed again, which results are
    unknown and which need no saving, and the operands that do.
    """
    count = len(eqn.outvars)
    operands = [x for x, have in zip(eqn.invars, instantiated, strict=True) if not have]
    if any(unknown):
        return None, eqn, [True] * count, [True] * count, operands
    if _is_saved(policy, eqn):
        return eqn, None, [False] * count, [False] * count, []
    return eqn, eqn, [False] * count, [True] * count, operands


def _is_saved(policy: Any, eqn: Any) -> bool:
    """Whether a checkpoint policy saves the primitive by itself, or the dots of its einsum.

    What it would offload is computed again, unless it goes by name.
    """
    operands = [x.aval for x in eqn.invars]
    asked = [policy(eqn.primitive, *operands, **eqn.params)]
    op = eqn.params["op"]
    dots = [
        policy(
            lax.dot_general_p,
            lhs,
            rhs,
            dimension_numbers=numbers,
            precision=None,
            preferred_element_type=None,
            out_sharding=None,
        )
        for lhs, rhs, numbers in _RULES[type(op)].dots(op, operands)
    ]
    return any(answers and all(map(_saves, answers)) for answers in (asked, dots))


def _saves(answer: object) -> bool:
    from jax.ad_checkpoint import Saveable

    return answer is Saveable or answer is True


@functools.cache
def _primitive() -> Any:
    """The primitive with its rules; made at its first use, since jax.extend is slow to import."""
    from jax.extend.core import Primitive

    made = Primitive("collective_einsum")
    made.multiple_results = True
    made.def_impl(_evaluate)
    made.def_abstract_eval(_abstract)
    ad.primitive_jvps[made] = _jvp
    ad.primitive_transposes[made] = _transpose
    batching.fancy_primitive_batchers[made] = _batch
    partial_eval.partial_eval_jaxpr_custom_rules[made] = _remat
    lowering = mlir.lower_fun(lambda *operands, op: _run(op, *operands), multiple_results=True)
    mlir.register_lowering(made, lowering)
    return made
