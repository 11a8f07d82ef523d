"""What an einsum with collectives must give on every device, computed by numpy in float64."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import Schedule
from collective_einsum.ops.schedule import DIRECTIONS

MeshOf = Callable[..., Mesh]

# Odd, so that halves and chunks are uneven, and different, so that no two labels can be confused.
SIZES = {"a": 2, "b": 3, "l": 3, "m": 4, "k": 5, "n": 7, "e": 5, "f": 3, "h": 3}

RINGS = tuple(range(1, 9))
# (mesh shape, mesh axes, axis_name): tuples in mesh order and in others, some axes of them, of 1.
TORI = [
    ((2, 4), "xy", ("x", "y")),
    ((2, 4), "xy", ("y", "x")),
    ((4, 2), "xy", ("x", "y")),
    ((4, 2), "xy", ("y", "x")),
    *(((2, 2, 2), "xyz", names) for names in itertools.permutations("xyz")),
    ((2, 2, 2), "xyz", ("z", "x")),
    ((3, 2), "xy", ("y", "x")),
    ((1, 4), "xy", ("y", "x")),
]
FEW_TORI = [TORI[1], TORI[2], TORI[5], TORI[11]]


def torus_id(torus: Any) -> str:
    """A readable id of one of `TORI`."""
    shape, _, names = torus
    return f"{'x'.join(map(str, shape))} over {''.join(names)}"


def parameter_id(value: Any) -> str:
    """A readable id of a torus or of another parameter."""
    return torus_id(value) if isinstance(value, tuple) else str(value)


def pieces(free: str) -> list[str | Schedule]:
    """The gather of a label that stands in the result alone, in pieces of its shards."""
    return [Schedule("chunked", "async", chunks=(1, 2), label=label) for label in free]


def schedules(splittable: str = "", free: str = "") -> list[str | Schedule]:
    """One schedule for each way through the code.

    Args:
      splittable: the labels that may be split into chunks.
      free: a gathered label of which every shard may be split.
    """
    return [
        "blocking",
        *DIRECTIONS,
        Schedule("ring", "bidirectional", rolled=True),
        Schedule("ring", "latency", rolled=True),
        Schedule("chunked", "bidirectional"),
        *(Schedule("chunked", "latency", chunks=3, label=label) for label in splittable[:1]),
        *(Schedule("chunked", "async", chunks=2, label=label) for label in splittable[1:]),
        "async",
        *pieces(free),
    ]


def torus_schedules(splittable: str = "", free: str = "") -> list[str | Schedule]:
    """Those of `schedules` that differ over several axes."""
    return [
        "bidirectional",
        Schedule("ring", "latency", rolled=True),
        Schedule("chunked", "bidirectional"),
        *(Schedule("chunked", "latency", chunks=2, label=label) for label in splittable[:1]),
        "async",
        *pieces(free),
    ]


def all_schedules(splittable: str = "", free: str = "") -> list[str | Schedule]:
    """Every kind, direction and loop, and several chunk counts."""
    return [
        "auto",
        "blocking",
        *(Schedule("ring", d, rolled=rolled) for d in DIRECTIONS for rolled in (False, True)),
        *(Schedule("chunked", d, rolled=rolled) for d in DIRECTIONS for rolled in (False, True)),
        "async",
        *(
            Schedule("chunked", direction, chunks=chunks, label=label)
            for label in splittable
            for chunks, direction in zip((1, 2, 4, (1, 2)), (*DIRECTIONS, "async"), strict=True)
        ),
        *pieces(free),
    ]


@dataclasses.dataclass(frozen=True)
class Case:
    """An einsum with collectives, on operands of `SIZES`.

    A gathered label has its size in the operand that moves and n times it in the other; a scattered
    one n times its size in the operands.
    """

    spec: str
    gather: str = ""
    operand: str = "lhs"
    scatter: str = ""
    reduce: bool = False
    splittable: str = ""

    def __str__(self) -> str:
        words = [self.spec]
        words += [f"gather {self.gather} of {self.operand}"] if self.gather else []
        words += [f"scatter {self.scatter}"] if self.scatter else []
        return " ".join([*words, *(["reduce"] if self.reduce else [])])

    @property
    def terms(self) -> tuple[str, str, str]:
        """The labels of lhs, rhs and the output, `...` being `bl`."""
        inputs, _, out = self.spec.replace("...", "bl").partition("->")
        lhs, rhs = inputs.split(",")
        if "->" not in self.spec:
            both = lhs + rhs
            dots = "bl" if "..." in self.spec else ""
            out = dots + "".join(sorted(c for c in both if both.count(c) == 1 and c not in dots))
        return lhs, rhs, out

    @property
    def free(self) -> str:
        """The gathered label, if it is of one operand and the result."""
        lhs, rhs, out = self.terms
        return self.gather if self.gather in out and (lhs + rhs).count(self.gather) == 1 else ""

    def shape(self, side: str, ng: int = 1, ns: int = 1) -> tuple[int, ...]:
        """The local shape of "lhs" or "rhs"."""
        shape = []
        for label in self.terms[side == "rhs"]:
            size = SIZES[label]
            if label == self.scatter:
                size *= ns
            if label == self.gather and side != self.operand:
                size *= ng
            shape.append(size)
        return tuple(shape)

    def operands(self, ng: int = 1, ns: int = 1, dtype: Any = np.float32) -> list[np.ndarray]:
        """lhs and rhs of all devices, other ones on each: [ng * ns, ...]."""
        sides = enumerate(("lhs", "rhs"))
        return [random((ng * ns, *self.shape(side, ng, ns)), i, dtype) for i, side in sides]

    def expected(self, lhs: Any, rhs: Any, ng: int = 1, ns: int = 1) -> np.ndarray:
        """The results on all devices, [ng * ns, ...], the gather's axes major."""
        terms = self.terms
        split = [wide(x).reshape(ng, ns, *np.shape(x)[1:]) for x in (lhs, rhs)]
        if self.gather:
            i = int(self.operand == "rhs")
            dim = terms[i].index(self.gather)
            whole = [np.concatenate(list(split[i][:, s]), axis=dim) for s in range(ns)]
            split[i] = np.stack([np.stack(whole)] * ng)
        formula = f"{terms[0]},{terms[1]}->{terms[2]}"
        y = np.stack(
            [
                np.stack([np.einsum(formula, split[0][g, s], split[1][g, s]) for s in range(ns)])
                for g in range(ng)
            ]
        )
        if self.scatter or self.reduce:
            totals = y.sum(axis=1)
            dim = terms[2].index(self.scatter) if self.scatter else 0
            parts = [np.split(t, ns, axis=dim) if self.scatter else [t] * ns for t in totals]
            y = np.stack([np.stack(part) for part in parts])
        return y.reshape(ng * ns, *y.shape[2:])


def ours(case: Case, lhs: Any, rhs: Any, *axes: tuple[str, ...], **options: Any) -> Any:
    """The function of this library that `case` describes; `axes` as in `by_lax`."""
    if case.gather and case.scatter:
        return ce.all_gather_einsum_reduce_scatter(
            case.spec,
            lhs,
            rhs,
            gather_axis_name=axes[0],
            gather=case.gather,
            scatter_axis_name=axes[1],
            scatter=case.scatter,
            **options,
        )
    options["axis_name"] = axes[0]
    if case.gather:
        return ce.all_gather_einsum(case.spec, lhs, rhs, gather=case.gather, **options)
    if case.scatter:
        return ce.einsum_reduce_scatter(case.spec, lhs, rhs, scatter=case.scatter, **options)
    return ce.einsum_all_reduce(case.spec, lhs, rhs, **options)


def by_lax(case: Case, lhs: Any, rhs: Any, *axes: tuple[str, ...]) -> Any:
    """The same with lax's collectives; `axes` are those of the gather, then of the others."""
    operands, terms = [lhs, rhs], case.terms
    if case.gather:
        i = int(case.operand == "rhs")
        dim = terms[i].index(case.gather)
        operands[i] = lax.all_gather(operands[i], axes[0], axis=dim, tiled=True)
    y = jnp.einsum(f"{terms[0]},{terms[1]}->{terms[2]}", *operands, precision="highest")
    if case.scatter:
        dim = terms[2].index(case.scatter)
        y = lax.psum_scatter(y, axes[-1], scatter_dimension=dim, tiled=True)
    return lax.psum(y, axes[-1]) if case.reduce else y


def wide(x: Any) -> np.ndarray:
    """`x` in float64 or complex128."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.iscomplexobj(x) else np.float64)


def random(shape: Sequence[int], seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Normal numbers, or small whole ones."""
    rng = np.random.default_rng(seed)
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0 if np.issubdtype(dtype, np.unsignedinteger) else -9, 9, shape, dtype)
    x = rng.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * rng.normal(size=shape)
    return x.astype(dtype)


def on_devices(
    mesh: Mesh,
    names: tuple[str, ...],
    function: Callable[..., Any],
    *args: Any,
    check_vma: bool = True,
) -> Any:
    """The results of `function` on every device of `names`, which gets its entry of each argument.

    Entries stand in the order of `names`, the first one major, as lax orders devices.
    """
    program = shard(mesh, names, function, check_vma=check_vma)
    return jax.tree.map(np.asarray, jax.jit(program)(*args))


def shard(
    mesh: Mesh, names: tuple[str, ...], function: Callable[..., Any], *, check_vma: bool = True
) -> Callable[..., Any]:
    """`on_devices` as a function of arrays, not yet jitted."""

    def local(*args: Any) -> Any:
        own = [jax.tree.map(lambda x: x[0], arg) for arg in args]
        return jax.tree.map(lambda y: y[None], function(*own))

    return jax.shard_map(
        local, mesh=mesh, in_specs=P(names), out_specs=P(names), check_vma=check_vma
    )


def hlo(mesh: Mesh, names: tuple[str, ...], function: Callable[..., Any], *args: Any) -> str:
    """The program of `on_devices` as jax hands it to the compiler, with the names of its scopes."""
    lowered = jax.jit(shard(mesh, names, function)).lower(*args)
    return lowered.as_text(debug_info=True)


def assert_close(
    got: dict[Any, Any], want: np.ndarray, *, tolerance: float = 2e-5, dtype: Any = None
) -> None:
    """Every result of `got`, by schedule, is `want` up to `tolerance` of its largest element."""
    largest = np.abs(want).max(initial=0.0)
    for schedule, y in got.items():
        assert y.shape == want.shape, f"{schedule}: shape {y.shape}, not {want.shape}"
        assert dtype is None or y.dtype == dtype, f"{schedule}: {y.dtype}, not {dtype}"
        off = np.abs(wide(y) - want).max(initial=0.0)
        assert off <= tolerance * largest, f"{schedule}: off by {off} of {largest}"
