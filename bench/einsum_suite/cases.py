"""The einsums that are timed: those of PaLM 540B's feedforward, with the shards of one chip.

Shapes, and the ways to lay them out, are from "Efficiently Scaling Transformer Inference" (Pope et
al., arXiv 2211.05102): weight-stationary 2D (section 3.2.2) and weight-gathered (section 3.2.3).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

import collective_einsum as ce
from collective_einsum.cost import GATHERED_CHUNKS
from collective_einsum.ops import Direction
from collective_einsum.ruler.compile import Target

D_MODEL, D_FF = 18432, 73728
# The program scans over the weights of several layers, as a model does, so that no layer's weights are
# in on-chip memory beforehand.
LAYERS = 4
ROWS = (1, 8, 64, 256, 512, 2048, 8192)
GATHERED_ROWS = 2048
WEIGHTS = ("bf16", "int8")
CHUNKS = (1, 2, 4, 8)
# lax's collectives in a plain jit: by the compiler's defaults, by the options of `ce.jit`, and by those
# with collectives on SparseCores, on chips that have these options.
PLAIN, BY_OPTIONS, ON_SPARSE_CORES = "blocking", "blocking by options", "blocking on SparseCores"
# Variants compiled by `jax.jit`, with their schedules; `ce.jit` compiles all others.
IN_JIT = {
    **dict.fromkeys((PLAIN, BY_OPTIONS, ON_SPARSE_CORES), "blocking"),
    "auto in jit": "auto",
    "ours in jit": "ours",
}


Weights = jax.Array | ce.Quantized
Carry = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Form:
    """An einsum with one collective, for any number of rows.

    `gather` and `scatter` are a label and mesh axes, one of them None. `lhs` and `rhs` say which
    axes shard which label of an operand, as it is before the gather; `m` of lhs is never sharded.
    """

    name: str
    spec: str
    lhs: Mapping[str, str]
    rhs: Mapping[str, str]
    gather: tuple[str, str] | None = None
    scatter: tuple[str, str] | None = None

    @property
    def description(self) -> str:
        """The einsum and its collective: function, spec, label and mesh axes."""
        function, collective = "all_gather_einsum", self.gather
        if collective is None:
            function, collective = "einsum_reduce_scatter", self.scatter
        label, axes = collective or ("", "")
        return f'{function}("{self.spec}"), {label} over {axes}'


_WEIGHT_STATIONARY = (
    Form(
        "gather yz, W_in",
        "me,ef->mf",
        {"e": "xyz"},
        {"e": "x", "f": "yz"},
        gather=("e", "yz"),
    ),
    Form(
        "W_in, scatter x",
        "me,ef->mf",
        {"e": "x"},
        {"e": "x", "f": "yz"},
        scatter=("f", "x"),
    ),
    Form(
        "gather x, W_out",
        "mf,fe->me",
        {"f": "yzx"},
        {"f": "yz", "e": "x"},
        gather=("f", "x"),
    ),
    Form(
        "W_out, scatter yz",
        "mf,fe->me",
        {"f": "yz"},
        {"f": "yz", "e": "x"},
        scatter=("e", "yz"),
    ),
)
_WEIGHT_GATHERED = tuple(
    Form(f"weights gathered {axes}", "me,ef->mf", {}, {"f": others + axes}, gather=("f", axes))
    for axes, others in (("x", "yz"), ("xy", "z"), ("xyz", ""))
)
FORMS = {form.name: form for form in (*_WEIGHT_STATIONARY, *_WEIGHT_GATHERED)}


@dataclasses.dataclass(frozen=True)
class Case:
    """One einsum of `FORMS`, with rows on each chip and the dtype of its weights."""

    form: str
    rows: int
    weights: str = "bf16"

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.form

    @property
    def layers(self) -> int:
        """Layers of the timed program, one einsum each."""
        return LAYERS

    @property
    def moves_weights(self) -> bool:
        """Whether weights are gathered, and the activations stay."""
        return "m" not in _moving(FORMS[self.form])

    def variants(self, chip: ce.Chip) -> tuple[str | ce.Schedule, ...]:
        """What is tried on a chip: plain jits, and all schedules; some cannot serve the einsum."""
        # The chunked label is that of the rows of what moves: e for weights [e, f], m for activations.
        label = "e" if self.moves_weights else "m"
        return (
            PLAIN,
            *((BY_OPTIONS,) if chip.compiler_options else ()),
            *((ON_SPARSE_CORES,) if chip.sparse_core_options else ()),
            "auto",
            "auto in jit",
            "unidirectional",
            "bidirectional",
            "latency",
            *(
                ce.Schedule("chunked", chunks=chunks, label=label if chunks > 1 else None)
                for chunks in CHUNKS
            ),
            *self._async(),
        )

    def _async(self) -> Iterator[ce.Schedule]:
        """The async schedules, by number of chunks; for a gather, all that "auto" considers."""
        gather = FORMS[self.form].gather
        yield ce.Schedule("chunked", "async")
        # For weights, the gathers of slices of the shard along f follow one another.
        label = "f" if self.moves_weights else "m"
        for chunks in (*CHUNKS[1:], *(GATHERED_CHUNKS if gather is not None else ())):
            yield ce.Schedule("chunked", "async", chunks=chunks, label=label)

    def lower(self, mesh: Mesh, schedule: str | ce.Schedule) -> jax.stages.Lowered:
        """The program: `LAYERS` times the einsum, each with weights of its own.

        Raises ValueError if the schedule cannot serve the einsum.
        """
        form, jit = FORMS[self.form], jit_of(schedule, mesh)
        schedule = schedule_of(schedule)

        def einsum(x: jax.Array, w: Weights) -> jax.Array:
            if form.gather is not None:
                label, axes = form.gather
                return ce.all_gather_einsum(
                    form.spec,
                    x,
                    w,
                    axis_name=_axes(axes, mesh),
                    gather=label,
                    schedule=schedule,
                )
            label, axes = form.scatter or ("", "")
            return ce.einsum_reduce_scatter(
                form.spec, x, w, axis_name=_axes(axes, mesh), scatter=label, schedule=schedule
            )

        def program(x: jax.Array, weights: Weights) -> jax.Array:
            like = jax.eval_shape(einsum, x, jax.tree.map(lambda w: w[0], weights))

            def layer(carry: Carry, w: Weights) -> tuple[Carry, None]:
                # The barrier ties x to the layer before, so that no layer's result is eliminated.
                x, _ = lax.optimization_barrier(carry)
                return (x, einsum(x, w)), None

            return lax.scan(layer, (x, jnp.zeros(like.shape, like.dtype)), weights)[0][1]

        x, w = self._operands(mesh)
        mapped = jax.shard_map(
            program,
            mesh=mesh,
            in_specs=jax.tree.map(lambda array: array.sharding.spec, (x, w)),
            # Each device keeps its own result: only the work of one device is timed.
            out_specs=P(mesh.axis_names),
            check_vma=False,
        )
        # The compiler chooses the result's layout: a fixed one would cost a copy after the last layer.
        return jit(mapped, out_shardings=Format(Layout.AUTO)).lower(x, w)

    def choice(self, mesh: Mesh, chip: ce.Chip) -> ce.Choice:
        """The cost model's ranking of all schedules, for the shards of one device."""
        form = FORMS[self.form]

        def local(array: jax.ShapeDtypeStruct, lead: int) -> jax.ShapeDtypeStruct:
            shape = array.sharding.shard_shape(array.shape)[lead:]
            return jax.ShapeDtypeStruct(shape, array.dtype)

        x, w = self._operands(mesh)
        label, axes = form.gather or form.scatter or ("", "")
        return ce.choose_schedule(
            form.spec,
            local(x, 0),
            jax.tree.map(lambda array: local(array, 1), w),
            axis_name=_axes(axes, mesh),
            gather=label if form.gather else None,
            scatter=label if form.scatter else None,
            axis_size=mesh.shape,
            chip=chip,
        )

    def _operands(
        self, mesh: Mesh
    ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct | ce.Quantized]:
        """The lhs, and the stacked rhs of all layers."""
        form = FORMS[self.form]
        sizes = {"m": self.rows, "e": D_MODEL, "f": D_FF}
        lhs, rhs = form.spec.partition("->")[0].split(",")
        x = _array([sizes[c] for c in lhs], jnp.bfloat16, _spec(lhs, form.lhs, mesh), mesh)
        spec = _spec(rhs, form.rhs, mesh)
        shape = [LAYERS, *(sizes[c] for c in rhs)]
        if self.weights == "bf16":
            return x, _array(shape, jnp.bfloat16, P(None, *spec), mesh)
        values = _array(shape, jnp.int8, P(None, *spec), mesh)
        scale = _array([LAYERS, 1, shape[2]], jnp.float32, P(None, None, spec[1]), mesh)
        return x, ce.Quantized(values, scale)

    def options(self, variant: str | ce.Schedule, mesh: Mesh) -> Mapping[str, bool | int | str]:
        """The compiler's options: its defaults, or those of `ce.jit`, or of a plain jit with options."""
        with_options = variant not in IN_JIT or variant in (BY_OPTIONS, ON_SPARSE_CORES)
        if not with_options:
            return {}
        return ce.compiler_options(chip_of(mesh), sparse_cores=variant == ON_SPARSE_CORES)


def schedule_of(variant: str | ce.Schedule) -> str | ce.Schedule:
    """The schedule of a variant."""
    return IN_JIT.get(variant, variant) if isinstance(variant, str) else variant


def jit_of(variant: str | ce.Schedule, mesh: Mesh) -> Callable[..., jax.stages.Wrapped]:
    """The function that compiles a variant: `jax.jit` or `ce.jit`."""
    return jax.jit if variant in IN_JIT else functools.partial(ce.jit, chip=chip_of(mesh))


def chip_of(mesh: Mesh) -> ce.Chip:
    """The chip that a mesh is made of."""
    return ce.chip_for(mesh.devices.flat[0].device_kind)


def mesh_of(target: Target) -> Mesh:
    """The mesh of all cases: axes x, y and z, or x and y on a two-dimensional torus; the devices of a
    chip lie along the last one."""
    return target.mesh(target.sides, tuple("xyz"[: len(target.sides)]))


def cases(
    rows: tuple[int, ...] = ROWS, weights: tuple[str, ...] = WEIGHTS, dims: int = 3
) -> Iterator[Case]:
    """All cases, in the order of their tables; weights are gathered at `GATHERED_ROWS` only."""
    for dtype in weights:
        for form in _WEIGHT_STATIONARY:
            yield from (Case(form.name, count, dtype) for count in rows)
        if GATHERED_ROWS in rows:
            for form in _WEIGHT_GATHERED:
                if form.gather is not None and len(form.gather[1]) <= dims:
                    yield Case(form.name, GATHERED_ROWS, dtype)


def parse_schedule(text: str) -> str | ce.Schedule:
    """A schedule's name, or `chunked:CHUNKS[:LABEL[:DIRECTION]]`.

    Raises ValueError if it is neither.
    """
    kind, *rest = text.split(":")
    if kind != "chunked" or not rest:
        return text
    chunks, label, direction, *more = [*rest, "", ""][: max(3, len(rest))]
    fractions = chunks.split("+")
    if not all(fraction.isdecimal() for fraction in fractions) or more:
        raise ValueError(
            f"schedule {text!r} is not chunked:CHUNKS[:LABEL[:DIRECTION]], such as chunked:4:m or, "
            "of which the second is three times as large, chunked:1+3:m:async"
        )
    sizes = tuple(map(int, fractions)) if len(fractions) > 1 else int(chunks)
    # `Schedule` refuses any other direction.
    where = cast(Direction, direction or "latency")
    return ce.Schedule("chunked", where, chunks=sizes, label=label or None)


def _moving(form: Form) -> str:
    """Labels of the operand that is gathered, or of the result that is scattered."""
    lhs, rhs = form.spec.partition("->")[0].split(",")
    if form.gather is None:
        return form.spec.partition("->")[2]
    label, axes = form.gather
    return rhs if set(axes) <= set(form.rhs.get(label, "")) else lhs


def _axes(names: str, mesh: Mesh) -> tuple[str, ...]:
    """The axes of a mesh in `names`; a two-dimensional torus has no z."""
    return tuple(name for name in names if name in mesh.axis_names)


def _spec(labels: str, sharded: Mapping[str, str], mesh: Mesh) -> P:
    return P(*(_axes(sharded.get(label, ""), mesh) or None for label in labels))


def _array(shape: list[int], dtype: DTypeLike, spec: P, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=NamedSharding(mesh, spec))
