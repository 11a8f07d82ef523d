"""Checks every function under every schedule, on emulated devices, against plain einsum."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.ruler.compile import Target
from collective_einsum.ruler.hlo import sent_bytes
from collective_einsum.ruler.replay import table

SCHEDULES = (
    "auto",
    "blocking",
    "unidirectional",
    "bidirectional",
    "latency",
    "chunked",
    "async",
)
# The results are sums of a few hundred products of normal numbers, in float32 on both sides.
TOLERANCE = 1e-5
_ROWS, _IN, _OUT = 16, 64, 128
_XY = ("x", "y")


Operand = jax.Array | ce.Quantized | list[jax.Array]


@dataclasses.dataclass(frozen=True)
class Check:
    """A function under test, with its operands and the result it must give.

    Attributes:
      name: its name in tables.
      function: a function of the operands' shards, or of global arrays, and a schedule.
      operands: global arrays.
      in_specs, out_specs: specs of the shard_map around `function`.
      expected: the result of plain einsum.
      split: the label that the schedule "chunked" splits; None if it has a single chunk.
      global_arrays: whether `function` takes global arrays, and needs no shard_map.
    """

    name: str
    function: Callable[..., object]
    operands: tuple[Operand, ...]
    in_specs: tuple[P, ...]
    out_specs: P | None
    expected: jax.Array | list[jax.Array]
    split: str | None = None
    global_arrays: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a check under a schedule.

    Attributes:
      check, schedule: names of the check and of the schedule.
      error: the largest difference over the largest expected value; None if the schedule cannot serve.
      sent: bytes that the busiest device sends; None likewise.
    """

    check: str
    schedule: str
    error: float | None
    sent: int | None

    @property
    def served(self) -> bool:
        """Whether the schedule can serve the function."""
        return self.error is not None

    @property
    def passed(self) -> bool:
        """Whether the error is within `TOLERANCE`."""
        return self.error is None or self.error <= TOLERANCE


def run(target: Target) -> Iterator[Outcome]:
    """Runs all checks on a target with eight devices."""
    mesh = target.mesh((2, 4), _XY)
    for check in _checks(mesh):
        for name in SCHEDULES:
            schedule: str | ce.Schedule = name
            if name == "chunked":
                schedule = ce.Schedule("chunked", chunks=2 if check.split else 1, label=check.split)
            yield _outcome(check, name, schedule, mesh)


def _outcome(
    check: Check, name: str, schedule: str | ce.Schedule, mesh: jax.sharding.Mesh
) -> Outcome:
    def function(*operands: Operand) -> object:
        return check.function(*operands, schedule)

    if not check.global_arrays:
        function = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=check.in_specs,
            out_specs=check.out_specs,
            check_vma=False,
        )
    try:
        compiled = jax.jit(function).lower(*check.operands).compile()
    except ValueError:
        return Outcome(check.name, name, None, None)
    got = compiled(*check.operands)
    error = max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(check.expected), strict=True)
    )
    return Outcome(check.name, name, error, sent_bytes(compiled.as_text() or ""))


def print_outcomes(outcomes: Sequence[Outcome]) -> str:
    """Formats two tables: largest errors, and kilobytes that the busiest device sent."""
    names = list(dict.fromkeys(outcome.check for outcome in outcomes))
    by_name = {(outcome.check, outcome.schedule): outcome for outcome in outcomes}

    def cells(format_: Callable[[Outcome], str]) -> list[tuple[str, ...]]:
        return [
            (n, *(format_(by_name[n, s]) if by_name[n, s].served else "-" for s in SCHEDULES))
            for n in names
        ]

    return "\n".join(
        [
            "measured: largest error against plain einsum, as a fraction of the largest result",
            table(
                ("", *SCHEDULES), cells(lambda o: f"{o.error:.1e}{'' if o.passed else ' WRONG'}")
            ),
            "",
            "counted: kB that each device sent, from the collectives of the compiled program",
            table(("", *SCHEDULES), cells(lambda o: f"{(o.sent or 0) / 1e3:.1f}")),
            "",
            'Columns: the schedule; -: the function refuses it, "auto" and "blocking" serve always.',
        ]
    )


def _checks(mesh: jax.sharding.Mesh) -> list[Check]:
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape, jnp.float32)

    def einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.einsum(spec, a, b, precision=lax.Precision.HIGHEST)

    x, w, w2 = normal(_ROWS, _IN), normal(_IN, _OUT), normal(_IN, _OUT)
    batched, weights = normal(16, _ROWS, 8), normal(16, 8, 24)
    q = ce.quantize(w, axis=0)
    dense = q.values.astype(jnp.float32) * q.scale
    y, z = einsum("mk,kn->mn", x, w), einsum("mk,kn->mn", x, w2)
    options: dict[str, Any] = {"precision": lax.Precision.HIGHEST}

    def gather(spec: str, label: str) -> Callable[..., object]:
        return lambda a, b, schedule: ce.all_gather_einsum(
            spec, a, b, axis_name=_XY, gather=label, schedule=schedule, **options
        )

    def both(a: jax.Array, b: jax.Array, schedule: str | ce.Schedule) -> jax.Array:
        return ce.all_gather_einsum_reduce_scatter(
            "mk,kn->mn",
            a,
            b,
            gather_axis_name="y",
            gather="k",
            scatter_axis_name="x",
            scatter="n",
            schedule=schedule,
            **options,
        )

    def fold(a: jax.Array, b: jax.Array, schedule: str | ce.Schedule) -> jax.Array:
        def put(h: jax.Array, arrived: jax.Array, index: jax.Array) -> jax.Array:
            return h.at[index].set(jnp.tanh(einsum("mk,kn->mn", a, arrived)))

        h = jnp.zeros((8, a.shape[0], b.shape[1]), a.dtype)
        h = ce.all_gather_fold(put, h, b, axis_name=_XY, schedule=schedule)
        return jnp.concatenate(list(h), axis=1)

    placed: dict[str, Any] = {
        "mesh": mesh,
        "in_specs": (P(None, ("x", "y")), P("x", "y")),
        "out_sharding": P(None, ("y", "x")),
        **options,
    }

    def global_einsum(a: jax.Array, b: jax.Array, schedule: str | ce.Schedule) -> jax.Array:
        return ce.einsum("mk,kn->mn", a, b, schedule=schedule, **placed)

    def dots(a: jax.Array, b: jax.Array, schedule: str | ce.Schedule) -> jax.Array:
        return ce.dot_general(a, b, (((1,), (0,)), ((), ())), schedule=schedule, **placed)

    columns, rows = P(None, _XY), P(_XY)
    scatter_specs = (columns, rows)
    stack = normal(*(8 * n for n in (1, 2, 1)))
    summed = stack.reshape(8, 1, *stack.shape[1:]).sum(0)
    return [
        Check(
            "all_gather_einsum, contracted label",
            gather("mk,kn->mn", "k"),
            (x, w),
            (columns, P()),
            P(),
            y,
            "m",
        ),
        Check(
            "all_gather_einsum, free label",
            gather("mk,kn->mn", "m"),
            (x, w),
            (rows, P()),
            P(),
            y,
            "k",
        ),
        Check(
            "all_gather_einsum, weights move",
            gather("mk,kn->mn", "n"),
            (x, w),
            (P(), columns),
            P(),
            y,
            "k",
        ),
        Check(
            "all_gather_einsum, batch label",
            gather("bmk,bkn->bmn", "b"),
            (batched, weights),
            (rows, P()),
            P(),
            einsum("bmk,bkn->bmn", batched, weights),
            "m",
        ),
        Check(
            "all_gather_einsum, two weights",
            gather("mk,kn->mn", "k"),
            (x, [w, w2]),
            (columns, P()),
            P(),
            [y, z],
            "m",
        ),
        Check(
            "all_gather_einsum, int8 weights",
            gather("mk,kn->mn", "k"),
            (x, q),
            (columns, P()),
            P(),
            einsum("mk,kn->mn", x, dense),
            "m",
        ),
        Check(
            "einsum_reduce_scatter",
            lambda a, b, schedule: ce.einsum_reduce_scatter(
                "mk,kn->mn", a, b, axis_name=_XY, scatter="n", schedule=schedule, **options
            ),
            (x, w),
            scatter_specs,
            columns,
            y,
            "m",
        ),
        Check(
            "einsum_all_reduce",
            lambda a, b, schedule: ce.einsum_all_reduce(
                "mk,kn->mn", a, b, axis_name=_XY, schedule=schedule, **options
            ),
            (x, w),
            scatter_specs,
            P(),
            y,
            "m",
        ),
        Check(
            "all_gather_einsum_reduce_scatter",
            both,
            (x, w),
            (P(None, _XY), P("x")),
            P(None, "x"),
            y,
            "m",
        ),
        Check(
            "einsum (global arrays)", global_einsum, (x, w), (), None, y, "m", global_arrays=True
        ),
        Check("dot_general (global arrays)", dots, (x, w), (), None, y, global_arrays=True),
        Check(
            "all_gather",
            lambda a, schedule: ce.all_gather(a, _XY, axis=1, schedule=schedule),
            (x,),
            (columns,),
            P(),
            x,
        ),
        Check(
            "all_gather_fold",
            fold,
            (x, w),
            (P(), columns),
            P(),
            jnp.tanh(y),
        ),
        Check(
            "reduce_scatter",
            lambda a, schedule: ce.reduce_scatter(
                a[0], _XY, scatter_dimension=0, schedule=schedule
            ),
            (stack,),
            (rows,),
            P(_XY),
            summed[0],
        ),
        Check(
            "all_reduce",
            lambda a, schedule: ce.all_reduce(a, _XY, schedule=schedule),
            (stack,),
            (rows,),
            P(),
            summed,
        ),
        Check(
            "all_to_all",
            lambda a, schedule: ce.all_to_all(a, _XY, 2, 1, schedule=schedule),
            (batched,),
            (P(None, _XY),),
            P(None, None, _XY),
            batched,
        ),
    ]


def largest_error(outcomes: Sequence[Outcome]) -> float:
    """The largest error of all outcomes that ran; NaN if none did."""
    return max((o.error for o in outcomes if o.error is not None), default=math.nan)
