"""Any einsum, sizes, ring and schedule: right, or refused in words that name them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective_einsum import Schedule
from collective_einsum.ops.schedule import DIRECTIONS
from collective_einsum.rings.streams import ring_directions

from .oracle import Case, MeshOf, assert_close, on_devices, ours, random

MESHES = [
    *(((n,), ("x",)) for n in range(1, 9)),
    ((2, 2), ("y", "x")),
    ((2, 3), ("y", "x")),
    ((2, 2, 2), ("z", "x", "y")),
]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Case, dict[str, int], Any, Any]:
    """An einsum with one collective, its local sizes, a mesh and a schedule."""
    groups = [draw(st.integers(0, 2)) for _ in range(4)]
    letters = iter(draw(st.permutations("abcdefgh")))
    batch, left, right, contracting = ("".join(next(letters) for _ in range(g)) for g in groups)
    shuffled = lambda labels: "".join(draw(st.permutations(labels)))  # noqa: E731
    lhs, rhs = shuffled(batch + left + contracting), shuffled(batch + right + contracting)
    out = shuffled(batch + left + right)
    spec = f"{lhs},{rhs}->{out}"
    kinds = ["reduce", *(["gather"] if lhs + rhs else []), *(["scatter"] if out else [])]
    kind = draw(st.sampled_from(kinds))
    labels = dict.fromkeys(lhs + rhs)
    sizes = {c: draw(st.integers(1, 4)) for c in labels}
    case = Case(spec, reduce=kind == "reduce")
    if kind == "gather":
        label = draw(st.sampled_from(sorted(labels)))
        sides = [side for side, term in (("lhs", lhs), ("rhs", rhs)) if label in term]
        case = Case(spec, label, draw(st.sampled_from(sides)))
    elif kind == "scatter":
        case = Case(spec, scatter=draw(st.sampled_from(out)))
    direction = draw(st.sampled_from(DIRECTIONS))
    schedule = draw(
        st.sampled_from(["auto", "blocking", "chunked", direction])
        | st.builds(Schedule, st.just("ring"), st.just(direction), rolled=st.booleans())
        | st.builds(
            Schedule,
            st.just("chunked"),
            st.just(direction) | st.just("async"),
            chunks=st.integers(1, 4) | st.lists(st.integers(1, 3), min_size=1).map(tuple),
            label=st.none() | st.sampled_from("abcdefgh"),
        )
    )
    return case, sizes, draw(st.sampled_from(MESHES)), schedule


@settings(max_examples=60)
@given(problem=problems())
def test_right_or_refused(mesh_of: MeshOf, problem: Any) -> None:
    case, sizes, (shape, names), schedule = problem
    n = math.prod(shape)
    ng, ns = (n, 1) if case.gather else (1, n)
    operands = []
    for i, side in enumerate(("lhs", "rhs")):
        local = [
            sizes[c]
            * (ns if c == case.scatter else 1)
            * (ng if c == case.gather and side != case.operand else 1)
            for c in case.terms[i]
        ]
        operands.append(random((n, *local), i))
    mesh = mesh_of(shape, "xyz"[: len(shape)])

    try:
        got = on_devices(
            mesh, names, lambda a, b: ours(case, a, b, names, schedule=schedule), *operands
        )
    except ValueError as error:
        words = str(error)
        assert repr(case.spec) in words
        assert "cannot serve" in words, words
        assert not isinstance(schedule, str) or schedule in ("bidirectional", "chunked")
        return
    assert_close({schedule: got}, case.expected(*operands, ng, ns), dtype=np.float32)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_ring_of_any_length_covers_every_device_once(direction: Any) -> None:
    for n in range(1, 70):
        for size in (1, 2, 7):
            seen = np.zeros((n, size), int)
            seen[0] += 1
            for way in ring_directions(n, direction, size):
                assert 1 <= way.hops <= n - 1
                for hop in range(1, way.hops + 1):
                    seen[(way.step * hop) % n, way.start : way.start + way.size] += 1
            assert (seen == 1).all()
