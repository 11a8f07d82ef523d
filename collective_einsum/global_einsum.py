"""An einsum of global arrays: the collectives are inferred from the shardings."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from . import plain_einsum as plain
from . import sharded_pairs as pairs
from .autodiff.primitive import named
from .chips.chip import Chip
from .global_arrays import array_layouts as sharding
from .global_arrays import contraction_order as contraction
from .global_arrays import several_rhs
from .global_arrays.array_layouts import AnyMesh
from .global_arrays.infer_collectives import Layout
from .ops.request import Options
from .ops.schedule import Schedule
from .spec import dtypes
from .spec import sizes as checks
from .spec import spec as specs
from .spec.quantized import Quantized
from .spec.spec import Spec


def einsum(
    subscripts: Any,
    /,
    *operands: Any,
    mesh: AnyMesh | None = None,
    in_specs: Sequence[PartitionSpec | Sequence[PartitionSpec]] | None = None,
    out_sharding: PartitionSpec
    | NamedSharding
    | Sequence[PartitionSpec | NamedSharding]
    | None = None,
    optimize: object = "auto",
    schedule: str | Schedule = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    accumulator_dtype: DTypeLike | None = None,
    wire_dtype: DTypeLike | None = None,
    chip: Chip | str | None = None,
    _dot_general: Callable[..., jax.Array] | None = None,
) -> Any:
    """`jnp.einsum(subscripts, *operands, out_sharding=out_sharding)` with overlapped collectives.

    Takes global arrays, from jit or not, and also where an outer `shard_map` has made other axes of
    the mesh manual. The collectives are inferred from the shardings, for one
    mesh axis at a time:

    - the same label in both operands: nothing before the einsum; if the label is summed over, a
      reduce-scatter onto the label that the axis shards in the result, or an all-reduce;
    - a label of one operand, which the other operand (if it has the label) and the result do not
      shard: an all-gather of that operand;
    - different labels in the two operands: an all-gather, or an all-to-all, of the operand whose
      label the result does not shard; if it shards neither, whatever moves the fewest bytes;
    - a label of the result and of no operand: a local slice.

    One all-gather, the largest, and one reduce-scatter overlap with the einsum (see
    `all_gather_einsum` and `all_gather_einsum_reduce_scatter`); the others run before and after it
    and are waited for: under "auto" they are lax's, else of ring steps as named. Another order of axes
    is one permutation of shards.
    Sums and tolerances are those of the einsums named.

    Derivatives are einsums by the same rules: under "auto" with schedules of their own, else under the
    schedule named, or "auto" where that cannot serve them; with the operands as their only residuals.
    `vmap` adds a label that is sharded over its `spmd_axis_name`, or as its Explicit type says.
    Checkpoint policies that save dots save the result, and those by name know it as "ce.einsum".

    A list of arrays in place of the second of two operands stands for several einsums with one lhs, and
    gives a list of results: gate and up of a feedforward, or queries, keys and values. They may differ
    in width. Where all need the same all-gather of lhs, it is made once, and so is the reduce-scatter
    of its gradient.

    Three and more operands are multiplied in pairs, in the order of `jnp.einsum`, and intermediate
    results keep the axes of their labels. One operand has no dot to overlap with: it is summed and
    laid out by the compiler's collectives.

    The result is that of plain `jnp.einsum`, with the compiler's collectives, in these cases:

    - the shardings cannot be known, since operands are traced on Auto axes without `in_specs` or there
      is no mesh, and no option is given that `jnp.einsum` does not have;
    - `_dot_general` is given, or a library has replaced `jnp.einsum` or `lax.dot_general`: dots are
      made here when jit lowers, out of its sight. `out_sharding` then lays the result out;
    - on Explicit axes, `out_sharding` is unreduced or operands are `reduced`.

    Args:
      subscripts, operands: as `jnp.einsum`: a string and arrays, or arrays each followed by the list
        of its labels. Any operand may be a `Quantized`, and the second of two a list.
      mesh: where the axes are; by default that of the context (`jax.set_mesh`), of `out_sharding`
        or of the operands' types.
      in_specs: the PartitionSpec of each operand, needed of traced ones if the mesh has Auto axes.
        That of a `Quantized` is the one of the array it stands for, and that of a list one for all, or
        a list.
      out_sharding: of the result. By default every label keeps its axes, if that leaves no doubt. For
        several results one for all, or a list.
      optimize: the order of three and more operands, as in `jnp.einsum`.
      schedule, precision, preferred_element_type, accumulator_dtype, wire_dtype, chip: as
        `all_gather_einsum`.
      _dot_general: as in `jnp.einsum`, for dots of your own.

    Returns:
      The global result, sharded as asked; on a mesh with Explicit axes, its type says so. Zeros
      where a dimension has size 0. A list of results for a list of rhs.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    text, given = contraction.read(subscripts, operands)
    options = Options(
        schedule=schedule,
        precision=precision,
        preferred_element_type=preferred_element_type,
        accumulator_dtype=accumulator_dtype,
        wire_dtype=wire_dtype,
        chip=chip,
    )
    if any(map(several_rhs.is_list, given)):
        each = several_rhs.each(text, given, in_specs, out_sharding)
        lhs = _value(given[0])
        calls = [
            _Call(text, [lhs, _value(rhs)], mesh, specs, out, optimize, options, _dot_general)
            for rhs, specs, out in each
        ]
        return named("ce.einsum", _results(calls))
    values, specs, out = [*map(_value, given)], cast(Any, in_specs), cast(Any, out_sharding)
    call = _Call(text, values, mesh, specs, out, optimize, options, _dot_general)
    return named("ce.einsum", _results([call])[0])


def _value(operand: Any) -> Any:
    """An operand as an array or a `Quantized`."""
    return operand if isinstance(operand, Quantized) else jnp.asarray(operand)


def _results(calls: Sequence[_Call]) -> list[jax.Array]:
    """The results of einsums; those of two operands that differ in their rhs alone share collectives."""
    return pairs.results([call.prepared() for call in calls])


@dataclasses.dataclass(frozen=True)
class _Call:
    """The arguments of an `einsum`."""

    text: str
    operands: list[jax.Array | Quantized]
    mesh: AnyMesh | None
    in_specs: Sequence[PartitionSpec] | None
    out_sharding: PartitionSpec | NamedSharding | None
    optimize: object
    options: Options
    dot_general: Callable[..., jax.Array] | None

    @functools.cached_property
    def parsed(self) -> tuple[list[str], str]:
        """The labels of the operands, and of the result."""
        return specs.parse_terms(self.text, [x.shape for x in self.operands])

    @property
    def name(self) -> Spec | str:
        """The einsum, for messages."""
        terms, out = self.parsed
        return Spec(self.text, terms[0], terms[1], out) if len(terms) == 2 else repr(self.text)

    def prepared(self) -> pairs.Pair | jax.Array:
        """The result, by whichever way suits, or its last einsum of two operands."""
        terms, out = self.parsed
        sizes = checks.sizes_of(self.name, terms, [x.shape for x in self.operands])
        mesh = sharding.find_mesh(self.name, self.mesh, self.operands, self.out_sharding)
        others = not plain.is_own(self.dot_general)
        quantized = any(isinstance(x, Quantized) for x in self.operands)
        if others or (plain.is_replaced() and not quantized):
            return self._by_others(mesh, sizes, "_dot_general" if others else "what replaces it")
        if mesh is not None and self._is_unreduced(mesh):
            return self._by_jnp(out_sharding=self.out_sharding)
        given = mesh and sharding.operand_specs(self.name, self.operands, self.in_specs, mesh)
        if mesh is None or given is None:
            if self._names_anything():
                raise sharding.unseen(self.name, mesh, len(self.operands))
            return self._by_jnp()
        shape = tuple(sizes[label] for label in out)
        layouts = sharding.operand_layouts(self.name, terms, self.operands, given, mesh)
        asked = sharding.result_layout(self.name, out, self.out_sharding, shape, mesh)
        auto = bool(sharding.axes_of_type(mesh, AxisType.Auto))
        # As jnp.einsum, which takes arrays that lie anywhere, if nobody says how.
        return self._in_steps(mesh, layouts, asked, strict=self.in_specs is not None or not auto)

    def _names_anything(self) -> bool:
        """Whether it asks for what only sharded operands can have."""
        named = (self.mesh, self.in_specs, self.out_sharding, self.options.wire_dtype)
        return any(option is not None for option in named) or self.options.schedule != "auto"

    def _is_unreduced(self, mesh: AnyMesh) -> bool:
        """Whether partial sums are asked for, or promised, which is jax's affair."""
        if sharding.axes_of_type(mesh, AxisType.Auto) or self.options.schedule != "auto":
            return False
        spec = self.out_sharding
        spec = spec.spec if isinstance(spec, NamedSharding) else spec
        typed = [jax.typeof(sharding.values_of(x)).sharding.spec for x in self.operands]
        asked = isinstance(spec, PartitionSpec) and (spec.unreduced or spec.reduced)
        promised = any(spec.reduced for spec in typed)
        return bool(asked or promised) and not any(spec.unreduced for spec in typed)

    def _by_jnp(self, out_sharding: PartitionSpec | NamedSharding | None = None) -> jax.Array:
        """`jnp.einsum`, of the same dtypes."""
        options = self.options
        arrays = [x.dequantize() if isinstance(x, Quantized) else x for x in self.operands]
        checked = self._dtypes(arrays)
        # The caller's promotion mode was obeyed just now, and sums of products need another.
        with jax.numpy_dtype_promotion("standard"):
            y = plain.einsum(
                self.text,
                arrays,
                optimize=self.optimize,
                precision=options.precision,
                preferred_element_type=checked.accumulator
                if options.accumulator_dtype is not None
                else options.preferred_element_type,
                out_sharding=out_sharding,
            )
        return y.astype(checked.result)

    def _dtypes(self, operands: Sequence[jax.Array | Quantized]) -> dtypes.Dtypes:
        terms, out = self.parsed
        sizes = checks.sizes_of(self.name, terms, [x.shape for x in operands])
        return dtypes.check_dtypes(
            self.name,
            *operands,
            terms=math.prod(n for label, n in sizes.items() if label not in out),
            preferred_element_type=self.options.preferred_element_type,
            accumulator=self.options.accumulator_dtype,
        )

    def _by_others(self, mesh: AnyMesh | None, sizes: dict[str, int], whose: str) -> jax.Array:
        """`jnp.einsum` with somebody else's dots, laid out as asked."""
        options = self.options
        named = {
            "schedule": None if options.schedule == "auto" else options.schedule,
            "wire_dtype": options.wire_dtype,
            "accumulator_dtype": options.accumulator_dtype,
        }
        for keyword, value in named.items():
            if value is not None:
                raise ValueError(
                    f"einsum {self.name}: jnp.einsum with {whose} computes it, which takes no "
                    f"{keyword}={value!r}; leave {keyword} out"
                )
        if any(isinstance(x, Quantized) for x in self.operands):
            raise ValueError(
                f"einsum {self.name}: a Quantized is multiplied here, and not by {whose}; pass its "
                "dequantize()"
            )
        y = plain.einsum(
            self.text,
            self.operands,
            dot_general=self.dot_general,
            optimize=self.optimize,
            precision=options.precision,
            preferred_element_type=options.preferred_element_type,
            out_sharding=self._typed_out(mesh),
        )
        if mesh is None or self.out_sharding is None:
            return y
        shape = tuple(sizes[label] for label in self.parsed[1])
        asked = sharding.result_layout(self.name, self.parsed[1], self.out_sharding, shape, mesh)
        return pairs.put(y, asked or (), mesh)

    def _typed_out(self, mesh: AnyMesh | None) -> Any:
        """`out_sharding`, if all of it is a matter of types."""
        if mesh is None or sharding.axes_of_type(mesh, AxisType.Auto):
            return None
        return self.out_sharding

    def _in_steps(
        self, mesh: AnyMesh, layouts: list[Layout], asked: Layout | None, *, strict: bool
    ) -> pairs.Pair | jax.Array:
        """The last einsum, of one operand or two, after those before it; `strict` refuses a doubt about
        the result."""
        terms, out = self.parsed
        shapes = [x.shape for x in self.operands]
        *before, last = contraction.steps(str(self.name), terms, out, shapes, self.optimize)
        left = list(zip(self.operands, layouts, strict=True))
        for step in before:
            made, layout = self._step(step, left, mesh, None, last=False, strict=False)
            left.append((pairs.results([made])[0], layout))
        return self._step(last, left, mesh, asked, last=True, strict=strict)[0]

    def _step(
        self,
        step: contraction.Step,
        left: list[pairs.Laid],
        mesh: AnyMesh,
        asked: Layout | None,
        *,
        last: bool,
        strict: bool,
    ) -> tuple[pairs.Pair | jax.Array, Layout]:
        """One einsum of operands of `left`, which it takes out, and its layout."""
        contracted = [left[i] for i in step.places]
        left[:] = [operand for i, operand in enumerate(left) if i not in step.places]
        options, text = self.options, self.text
        if len(self.operands) > 2:
            text = step.formula
            wanted = self._dtypes(self.operands).result
            if not last:
                wanted = dtypes.between(wanted, [x for x, _ in contracted])
            options = dataclasses.replace(options, preferred_element_type=wanted)
        arguments = (text, step.terms, step.out, contracted, mesh, options, asked)
        if len(contracted) == 1:
            return pairs.single(*arguments, strict=strict)
        return pairs.prepared(*arguments, strict=strict)
