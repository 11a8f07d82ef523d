"""The Schedule value: what it takes, what it is called, and what it makes of chunks."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective_einsum import Schedule
from collective_einsum.ops.schedule import NAMED, as_schedule
from collective_einsum.rings.slicing import chunk_spans


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "looped"}, "kind 'looped' is not 'blocking', 'ring' or 'chunked'"),
        ({"direction": "left"}, "direction 'left' is none of ('unidirectional', 'bidirectional'"),
        ({"direction": "async"}, "goes round no ring; use kind='chunked'"),
        ({"kind": "chunked", "chunks": 0}, "must be a positive integer, or a tuple of such"),
        ({"kind": "chunked", "chunks": True}, "got True"),
        ({"kind": "chunked", "chunks": 2.0}, "got 2.0"),
        ({"kind": "chunked", "chunks": ()}, "got ()"),
        ({"kind": "chunked", "chunks": (1, 0)}, "got (1, 0)"),
        ({"kind": "chunked", "chunks": [1, 3]}, "got [1, 3]"),
        ({"chunks": 2}, "only kind='chunked' splits into chunks"),
        ({"chunks": (1, 1)}, "only kind='chunked' splits into chunks"),
        ({"kind": "blocking", "label": "m"}, "only kind='chunked' splits into chunks"),
        ({"ring_of": "both"}, "ring_of='both' is neither 'gather' nor 'scatter'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Schedule(**options)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Schedule("blocking"), "blocking"),
        (
            Schedule("ring", "latency", ring_of="gather", rolled=True),
            "latency, of the gather, rolled",
        ),
        (Schedule("chunked", "async"), "chunked 1, async"),
        (Schedule("chunked", chunks=4, label="m"), "chunked 4 over 'm', latency"),
        (Schedule("chunked", "async", chunks=(1, 3), label="m"), "chunked 1+3 over 'm', async"),
        (Schedule(wire_dtype="bfloat16"), "latency, bfloat16 wire"),
    ],
)
def test_what_it_is_called(schedule: Schedule, text: str) -> None:
    assert str(schedule) == text


def test_equal_schedules_hash_alike() -> None:
    assert Schedule(wire_dtype="bfloat16") == Schedule(wire_dtype=jnp.bfloat16)
    assert len({Schedule(wire_dtype="bfloat16"), Schedule(wire_dtype=jnp.bfloat16)}) == 1
    assert {as_schedule(name) for name in NAMED} == set(NAMED.values())
    assert as_schedule("auto") is None


@given(
    size=st.integers(1, 5000),
    shares=st.integers(1, 9) | st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple),
    tile=st.sampled_from([1, 8, 128]),
)
def test_pieces_cover_all_in_proportion(size: int, shares: Any, tile: int) -> None:
    parts = Schedule("chunked", chunks=shares).proportions
    if sum(parts) > size:
        return
    found = chunk_spans(size, shares, tile)
    assert [lo for lo, _ in found] == [sum(n for _, n in found[:i]) for i in range(len(found))]
    assert sum(n for _, n in found) == size
    assert all(n > 0 for _, n in found)
    assert len(found) == len(parts)
    # Each edge is at most a tile from where it would be.
    for (lo, _), before in zip(found, range(len(parts)), strict=True):
        exact = size * sum(parts[:before]) / sum(parts)
        assert abs(lo - exact) <= tile
        assert lo % tile == 0 or size // tile < sum(parts)


def test_only_kind_and_direction_are_positional() -> None:
    arguments: tuple[Any, ...] = ("chunked", "async", 2)
    with pytest.raises(TypeError, match="positional"):
        Schedule(*arguments)
