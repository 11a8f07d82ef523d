"""Fair shares of links and HBM."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective_einsum.ruler.replay.fair_share import Flow, Network


def test_alone_and_late() -> None:
    network = Network({"x+": 10.0})
    flow = network.start(Flow("a", 100.0, {"x+": 1.0}, latency=2.0))
    network.advance(3.0)
    assert network.now == 3.0
    network.wait(flow)
    assert flow.end == pytest.approx(10.0)
    assert network.now == pytest.approx(12.0)


def test_two_on_one_link_share_it() -> None:
    network = Network({"x+": 10.0})
    long = network.start(Flow("long", 100.0, {"x+": 1.0}))
    short = network.start(Flow("short", 20.0, {"x+": 1.0}))
    network.wait(short)
    assert network.now == pytest.approx(4.0)
    network.wait(long)
    assert network.now == pytest.approx(12.0)


def test_one_queue_runs_one_after_another() -> None:
    network = Network({"x+": 10.0, "y+": 10.0})
    first = network.start(Flow("first", 100.0, {"x+": 1.0}, latency=1.0, queue="q"))
    second = network.start(Flow("second", 20.0, {"y+": 1.0}, queue="q"))
    beside = network.start(Flow("beside", 20.0, {"x+": 1.0}))
    network.wait(second)
    # `first` shares its link with `beside` alone; `second`, on a free one, waits for it.
    assert (first.begin, beside.end, first.end) == pytest.approx((0.0, 4.0, 12.0))
    assert (second.begin, second.end) == pytest.approx((12.0, 14.0))
    assert network.now == pytest.approx(14.0)


def test_two_queues_run_side_by_side() -> None:
    network = Network({"x+": 10.0, "y+": 10.0})
    flows = [network.start(Flow(on, 100.0, {on: 1.0}, queue=on)) for on in ("x+", "y+")]
    for flow in flows:
        network.wait(flow)
    assert network.now == pytest.approx(10.0)


def test_two_directions_do_not_share() -> None:
    network = Network({"x+": 10.0, "x-": 10.0})
    flows = [network.start(Flow(name, 100.0, {name: 1.0})) for name in ("x+", "x-")]
    for flow in flows:
        network.wait(flow)
    assert network.now == pytest.approx(10.0)


def test_load_counts() -> None:
    network = Network({"x+": 10.0})
    network.wait(network.start(Flow("far", 100.0, {"x+": 2.0})))
    assert network.now == pytest.approx(20.0)


def test_what_one_cannot_use_another_gets() -> None:
    network = Network({"hbm": 10.0})
    slow = network.start(Flow("slow", 20.0, {"hbm": 1.0}, cap=2.0))
    fast = network.start(Flow("fast", 80.0, {"hbm": 1.0}))
    network.wait(fast)
    network.wait(slow)
    assert network.now == pytest.approx(10.0)
    assert fast.end == pytest.approx(10.0)


def test_nothing_ends_at_once() -> None:
    network = Network({})
    network.advance(1.0)
    flow = network.start(Flow("none", 0.0, {}, latency=3.0))
    assert flow.arrival == pytest.approx(4.0)


def test_arrival_is_unknown_before_the_end() -> None:
    network = Network({"x+": 1.0})
    with pytest.raises(ValueError, match="has not ended"):
        _ = network.start(Flow("a", 1.0, {"x+": 1.0})).arrival


SIZES = st.floats(1.0, 1e9)


@given(
    st.lists(
        st.tuples(
            SIZES,
            st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 3.0), min_size=1),
            st.one_of(st.just(math.inf), st.floats(1.0, 100.0)),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_never_faster_than_any_bound(flows: list[tuple[float, dict[str, float], float]]) -> None:
    """No resource gives more than it has, no flow exceeds its cap, and no time is lost."""
    capacities = {"a": 10.0, "b": 20.0, "c": 5.0}
    network = Network(capacities)
    started = [network.start(Flow("f", size, uses, cap)) for size, uses, cap in flows]
    for flow in started:
        network.wait(flow)
    bounds = [
        sum(size * uses.get(name, 0.0) for size, uses, _ in flows) / capacity
        for name, capacity in capacities.items()
    ]
    alone = [
        size / min(cap, *(capacities[name] / use for name, use in uses.items()))
        for size, uses, cap in flows
    ]
    assert network.now >= max(*bounds, *alone) * (1 - 1e-6)
    assert network.now <= sum(alone) * (1 + 1e-6)
