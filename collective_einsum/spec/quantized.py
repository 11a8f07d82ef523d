"""Integer weights with a scale per channel: what is stored, and what moves on the wire, is int8."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike, DTypeLike

from ..text.showing import brief
from .sizes import axis_names, axis_size
from .spec import Spec


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["dtype"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
    """An array stored as `values * scale`, which an einsum takes as the array it stands for.

    `scale` has the rank of `values`, with size 1 along the dimensions that share one scale, so that
    both shard, scan and vmap alike. An einsum multiplies by it after its dot, which needs one scale
    along every label that is summed over. In a shard_map the scale must therefore be the same on
    all devices along an axis that shards a summed label; `partition_specs` keeps it so. Integers
    have no tangent: differentiate the other operand.

    Attributes:
      values: signed integers of 8 bits or fewer, any shape.
      scale: float32, the shape of `values` with some dimensions of size 1.
      dtype: the floating dtype of the array stood for; static. bfloat16, the usual one of weights,
        unless given.
    """

    values: Any
    scale: Any
    dtype: DTypeLike = jnp.bfloat16

    def __post_init__(self) -> None:
        # One spelling of a dtype, since jit compares the static part of a pytree by hash.
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

    def __repr__(self) -> str:
        return brief(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array stood for."""
        return tuple(self.values.shape)

    @property
    def ndim(self) -> int:
        """The rank of the array stood for."""
        return len(self.shape)

    def dequantize(self) -> jax.Array:
        """The array stood for, in `dtype`; the product is taken in float32."""
        return (self.values.astype(jnp.float32) * self.scale).astype(self.dtype)

    def partition_specs(self, spec: PartitionSpec) -> Quantized:
        """The in_specs of values and scale when the array is sharded by `spec`.

        Dimensions along which the scale is shared stay unsharded in it.

        Raises:
          ValueError: `spec` has more entries than the array has dimensions.
        """
        if len(spec) > self.ndim:
            raise ValueError(
                f"{spec} has {len(spec)} entries for a Quantized of shape {self.shape}"
            )
        shared = [v != 1 and s == 1 for v, s in zip(self.shape, self.scale.shape, strict=True)]
        scale_spec = PartitionSpec(
            *(None if one else axes for axes, one in zip(spec, shared, strict=False))
        )
        return Quantized(spec, scale_spec, self.dtype)


# The operands that einsums take: one, and a sequence of those that share the other one.
OperandLike = ArrayLike | Quantized
OperandsLike = OperandLike | Sequence[OperandLike]


def quantize(
    x: ArrayLike,
    axis: int | Sequence[int],
    *,
    dtype: DTypeLike = jnp.int8,
    stands_for: DTypeLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> Quantized:
    """Rounds `x` to integers with one scale for all elements along `axis`.

    Symmetric: the largest magnitude along `axis` becomes the largest integer (127 for int8), -128 is
    not used, and zero stays zero. Ties round to even. Each element is off by at most half
    its scale, before `stands_for` rounds.

    Args:
      x: finite floating array of any shape.
      axis: the dimension, or dimensions, that einsums will sum over.
      dtype: a signed integer dtype of at most 8 bits.
      stands_for: the `Quantized.dtype`; that of `x` unless given.
      axis_name: inside a `shard_map`, the mesh axis or axes over which dimensions of `axis` are sharded.
        The scale is then that of the whole array, the same on all of their devices, as an einsum that
        sums over these needs it; an all-reduce of the largest magnitudes finds it.

    Raises:
      ValueError: `x` is not floating, `dtype` is not such an integer, `axis` is empty, repeated or out
        of range, or no surrounding `shard_map` has such an axis.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"quantize needs a floating array, got {x.dtype} of shape {x.shape}")
    if not jnp.issubdtype(dtype, jnp.signedinteger) or jnp.iinfo(dtype).bits > 8:
        raise ValueError(
            f"quantize makes signed integers of at most 8 bits, not {jnp.dtype(dtype)}"
        )
    standing = jnp.dtype(x.dtype if stands_for is None else stands_for)
    if not jnp.issubdtype(standing, jnp.floating):
        raise ValueError(f"stands_for={standing} is not a floating dtype")
    axes = _axes(axis, x.shape)
    largest = int(jnp.iinfo(dtype).max)
    # The largest of 16 bits is exact. With that of float32, compilers keep a copy of `x` in float32 for
    # the division below.
    exact = x if x.dtype.itemsize > 1 else x.astype(jnp.float32)
    top = jnp.max(jnp.abs(exact), axis=axes, keepdims=True).astype(jnp.float32)
    if axis_name is not None:
        axes_over = axis_names(axis_name)
        axis_size(axes_over)
        # An all-reduce of the largest may lose a NaN.
        top = lax.pmax(jnp.where(jnp.isnan(top), jnp.inf, top), axes_over)
    scale = top / largest
    # The scale itself decides, not the maximum: a subnormal maximum has scale 0 as well. One that is
    # infinite or NaN stays so, and shows in products.
    scale = jnp.where(scale == 0, 1, scale)
    values = jnp.clip(jnp.round(x.astype(jnp.float32) / scale), -largest, largest).astype(dtype)
    return Quantized(values, scale, standing)


def _axes(axis: int | Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    given: tuple[Any, ...] = (axis,)
    if isinstance(axis, Sequence) and not isinstance(axis, str):
        given = tuple(axis)
    if any(isinstance(a, bool) or not hasattr(a, "__index__") for a in given):
        raise ValueError(
            f"axis={axis!r} must be a dimension of an array of shape {shape}, or several: those that "
            "the einsum sums over, as integers"
        )
    indices = tuple(operator.index(a) for a in given)
    axes = tuple(a + len(shape) if a < 0 else a for a in indices)
    if not axes or len(set(axes)) != len(axes) or not all(0 <= a < len(shape) for a in axes):
        raise ValueError(
            f"axis={axis!r} must name one or more different dimensions of an array of shape "
            f"{shape}: those that the einsum sums over"
        )
    return axes


def split_scale(
    spec: Spec, operand_labels: str, q: Quantized, out_labels: str
) -> tuple[jax.Array, jax.Array]:
    """The values to multiply, and the scale shaped to multiply an output labelled `out_labels`
    afterwards.

    Args:
      spec: the einsum, for messages.
      operand_labels: the labels of `q`'s dimensions, `spec.lhs` or `spec.rhs`.
      q: the operand.
      out_labels: the labels of the result to be scaled, usually `spec.out`.

    Returns:
      `q.values`, and a float32 array of rank `len(out_labels)` that broadcasts against the result.

    Raises:
      ValueError: the scale does not fit the values, or it varies along a label that is summed over
        or repeated.
    """
    scale = q.scale
    fits = len(scale.shape) == q.ndim and all(
        s in (1, v) for s, v in zip(scale.shape, q.shape, strict=False)
    )
    if not fits or len(operand_labels) != q.ndim:
        raise ValueError(
            f"einsum {spec}: a Quantized with values of shape {q.shape} and scale of shape "
            f"{tuple(scale.shape)} does not fit {operand_labels!r}; the scale needs the rank of "
            "the values, and size 1 or theirs in each dimension"
        )
    for dim, label in enumerate(operand_labels):
        if scale.shape[dim] != 1 and (label not in out_labels or operand_labels.count(label) > 1):
            fate = "summed over" if label not in out_labels else "repeated"
            shared = tuple(
                i
                for i, c in enumerate(operand_labels)
                if c not in out_labels or operand_labels.count(c) > 1
            )
            raise ValueError(
                f"einsum {spec}: the scale of {operand_labels!r} has size {scale.shape[dim]} along "
                f"{label!r}, which is {fate}, so it cannot be applied after the dot; make it with "
                f"quantize(x, axis={shared})"
            )
    kept = [dim for dim, label in enumerate(operand_labels) if scale.shape[dim] != 1]
    compact = lax.squeeze(scale, [dim for dim in range(q.ndim) if dim not in kept])
    order = sorted(range(len(kept)), key=lambda i: out_labels.index(operand_labels[kept[i]]))
    present = {operand_labels[dim] for dim in kept}
    missing = [dim for dim, label in enumerate(out_labels) if label not in present]
    return q.values, lax.expand_dims(lax.transpose(compact, order), missing)
