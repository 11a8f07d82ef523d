"""Routes on a torus, and what collectives ask of its links."""

from __future__ import annotations

import collections
import itertools

import pytest

from collective_einsum.rings.hamiltonian_rings import hamiltonian_ring
from collective_einsum.ruler.torus import Route, Torus

RING = (True,)


def torus(*sizes: int, wrapped: tuple[bool, ...]) -> Torus:
    """A torus whose devices stand in row-major order."""
    coords = tuple(itertools.product(*(range(size) for size in sizes)))
    return Torus(coords, sizes, wrapped, tuple("xyz"[: len(sizes)]))


def test_shift_by_one_on_a_ring() -> None:
    ring = torus(4, wrapped=RING)
    route = ring.permute([(i, (i + 1) % 4) for i in range(4)], 100)
    assert route == Route(100, {(0, 1): 1}, 1)
    back = ring.permute([(i, (i - 1) % 4) for i in range(4)], 100)
    assert back == Route(100, {(0, -1): 1}, 1)


def test_shift_by_two_shares_every_link() -> None:
    route = torus(4, wrapped=RING).permute([(i, (i + 2) % 4) for i in range(4)], 100)
    assert route == Route(100, {(0, 1): 2}, 2)


def test_a_line_sends_the_last_message_all_the_way_back() -> None:
    route = torus(4, wrapped=(False,)).permute([(i, (i + 1) % 4) for i in range(4)], 100)
    assert route == Route(100, {(0, 1): 1, (0, -1): 1}, 3)


def test_two_axes_in_one_permute() -> None:
    square = torus(4, 4, wrapped=(True, True))
    pairs = [(4 * i + j, 4 * ((i + 1) % 4) + (j - 1) % 4) for i in range(4) for j in range(4)]
    assert square.permute(pairs, 100) == Route(100, {(0, 1): 1, (1, -1): 1}, 2)


def test_nothing_to_send() -> None:
    assert torus(4, wrapped=RING).permute([(0, 0), (1, 1)], 100) == Route(0, {}, 0)
    assert torus(4, wrapped=RING).all_gather([[0], [1], [2], [3]], 100) == Route(0, {}, 0)


@pytest.mark.parametrize(
    ("sizes", "wrapped", "groups", "seconds_of_bytes", "hops"),
    [
        # D (K-1)/K over two links on a ring, over one on a line.
        ((4,), (True,), [[0, 1, 2, 3]], 0.75 / 2, 2),
        ((4,), (False,), [[0, 1, 2, 3]], 0.75, 3),
        ((2,), (False,), [[0, 1]], 0.5, 1),
        # Over four links on two rings.
        ((4, 4), (True, True), [list(range(16))], 15 / 16 / 4, 4),
        # Over one ring and one line.
        ((4, 2), (True, False), [list(range(8))], 7 / 8 / 3, 3),
        # One of two axes.
        ((4, 4), (True, True), [[4 * i + j for i in range(4)] for j in range(4)], 0.75 / 2, 2),
        # Half of a ring is a line; every other chip of one shares its links with the others.
        ((8,), (True,), [[0, 1, 2, 3], [4, 5, 6, 7]], 0.75, 3),
        ((8,), (True,), [[0, 2, 4, 6], [1, 3, 5, 7]], 0.75 / 2 * 2, 4),
        # No groups: all devices.
        ((4,), (True,), [], 0.75 / 2, 2),
    ],
)
def test_collectives(
    sizes: tuple[int, ...],
    wrapped: tuple[bool, ...],
    groups: list[list[int]],
    seconds_of_bytes: float,
    hops: int,
) -> None:
    place = torus(*sizes, wrapped=wrapped)
    gather = place.all_gather(groups, 1000.0)
    assert gather.bytes == pytest.approx(1000 * seconds_of_bytes)
    assert gather.hops == hops
    assert set(gather.loads.values()) == {1}
    reduce = place.all_reduce(groups, 1000.0)
    assert (reduce.bytes, reduce.hops) == (pytest.approx(2 * gather.bytes), 2 * hops)
    assert reduce.loads == gather.loads


@pytest.mark.parametrize(
    ("size", "wrapped", "load"),
    [(4, True, 0.5), (8, True, 1.0), (5, True, 0.6), (4, False, 1.0), (2, False, 0.5)],
)
def test_all_to_all(size: int, wrapped: bool, load: float) -> None:
    """The load of the busiest link, counted message by message."""
    line = torus(size, wrapped=(wrapped,))
    route = line.all_to_all([list(range(size))], 1000.0)
    crossings: collections.defaultdict[tuple[int, int], float] = collections.defaultdict(float)
    for source, target in itertools.permutations(range(size), 2):
        forward = (target - source) % size
        ways = [(forward, 1), (size - forward, -1)] if wrapped else []
        ways = [way for way in ways if way[0] == min(way[0] for way in ways)] or [
            (abs(target - source), 1 if target > source else -1)
        ]
        for hops, sign in ways:
            for hop in range(hops):
                crossings[(source + sign * hop) % size, sign] += 1 / size / len(ways)
    assert max(crossings.values()) == pytest.approx(load)
    assert route.loads == {(0, 1): pytest.approx(load), (0, -1): pytest.approx(load)}
    assert route.bytes == 1000.0


def test_all_to_all_is_a_quarter_of_an_all_gather() -> None:
    """Of the same bytes from every chip, on a long ring."""
    ring = torus(64, wrapped=RING)
    gather = ring.all_gather([list(range(64))], 64 * 1000.0)
    exchange = ring.all_to_all([list(range(64))], 1000.0)
    assert exchange.bytes * exchange.loads[0, 1] == pytest.approx(gather.bytes / 4, rel=0.02)


def test_links_are_distinguished_where_permutes_load_them_differently() -> None:
    # A ring through all of 4x4, both ways: no link carries more than one of the two, each only some.
    places = hamiltonian_ring([4, 4])
    stops = [4 * row + column for row, column in places]
    there = list(zip(stops, [*stops[1:], stops[0]], strict=True))
    back = [(b, a) for a, b in there]
    plain = torus(4, 4, wrapped=(True, True))
    distinguished = plain.distinguish([there, back])
    one, other = (distinguished.permute(pairs, 100).loads for pairs in (there, back))
    assert set(one.values()) == set(other.values()) == {1}
    assert not set(one) & set(other)
    # Not distinguished, both ways look as if they shared links.
    assert set(plain.permute(there, 100).loads) & set(plain.permute(back, 100).loads)
    # What loads all links alike takes all of those that are distinguished.
    everywhere = distinguished.all_gather([list(range(16))], 100).loads
    assert set(everywhere) == set(distinguished.distinguished_links) > set(one)
    # The two ways, of 16 links each, are half of all 64.
    assert sum(distinguished.fraction(link) for link in (*one, *other)) == pytest.approx(2)
    names = distinguished.distinguished_links
    assert sum(map(distinguished.fraction, names)) == pytest.approx(4)
    # Shifts along an axis load its links alike.
    shift = [(4 * i + j, 4 * i + (j + 1) % 4) for i in range(4) for j in range(4)]
    assert plain.distinguish([shift]).distinguished == {}


def halves() -> Torus:
    """2x2 chips of two devices each, one line along each axis, in row-major order."""
    coords = tuple(itertools.product((0, 1), (0, 1), (0, 1)))
    return Torus(coords, (2, 2, 2), (False,) * 3, ("x", "y", "die"), die_axis=2)


def test_devices_of_a_chip_share_its_links() -> None:
    place = halves()
    # Both devices of every chip send to the same neighbour, over one link.
    shift = [(i, (i + 4) % 8) for i in range(8)]
    assert place.permute(shift, 100).loads == {(0, 1): 2, (0, -1): 2}
    # The first devices alone do not share it.
    assert place.permute(shift[::2], 100).loads == {(0, 1): 1, (0, -1): 1}
    # Between the devices of a chip there is a link of its own.
    exchange = [(i, i ^ 1) for i in range(8)]
    assert place.permute(exchange, 100) == Route(100, {(2, 1): 1, (2, -1): 1}, 1)
    names = place.distinguish([shift, exchange]).distinguished_links
    assert names == [(axis, sign) for axis in range(3) for sign in (1, -1)]


@pytest.mark.parametrize("dies", [1, 2])
def test_all_gather_over_devices_that_share_links(dies: int) -> None:
    """Against the bytes that have to enter each chip."""
    place, size = halves(), 1000.0
    groups = [range(8)] if dies == 2 else [range(0, 8, 2), range(1, 8, 2)]
    route = place.all_gather([list(group) for group in groups], size)
    # A chip holds a quarter of each result of its devices, and has two links.
    results = 1 if dies == 2 else 2
    assert route.bytes == pytest.approx(results * size * 3 / 4 / 2)
    assert {link: route.loads[link] for link in ((0, 1), (1, -1))} == {(0, 1): 1, (1, -1): 1}
    if dies == 2:
        assert route.bytes * route.loads[2, 1] == pytest.approx(size / 2)
    assert ((2, 1) in route.loads) == (dies == 2)
    exchanged = place.all_to_all([list(group) for group in groups], size)
    # Half of what a chip's two devices hold goes to the other side of x, over one link.
    assert exchanged.bytes * exchanged.loads[0, 1] == pytest.approx(2 * size / 2)


def test_all_gather_between_the_devices_of_a_chip() -> None:
    route = halves().all_gather([[i, i + 1] for i in range(0, 8, 2)], 1000.0)
    assert route == Route(500.0, {(2, 1): 1, (2, -1): 1}, 1)
