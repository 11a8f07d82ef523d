"""Transfers that divide the links and HBM by max-min fairness, simulated from event to event."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Resource = TypeVar("Resource", bound=Hashable)


@dataclasses.dataclass(eq=False)
class Flow(Generic[Resource]):
    """A transfer in flight.

    Attributes:
      name: its name in error messages.
      left: bytes that remain.
      uses: bytes of each resource that one byte of the transfer uses.
      cap: the largest rate in bytes/s, even without other flows.
      latency: seconds from when the last byte leaves to when it arrives.
      queue: the name of whom it waits for: transfers of one queue run one after another, in the order
        of their starts. None if it waits for nobody.
      rate: bytes/s now.
      begin: seconds at which the first byte left; infinite until then.
      end: seconds at which the last byte left; None until then.
    """

    name: str
    left: float
    uses: Mapping[Resource, float]
    cap: float = math.inf
    latency: float = 0.0
    queue: str | None = None
    rate: float = 0.0
    begin: float = math.inf
    end: float | None = None

    @property
    def arrival(self) -> float:
        """The second at which its last byte arrives; only once `end` is known."""
        if self.end is None:
            raise ValueError(f"transfer {self.name} has not ended yet; call Network.wait first.")
        return self.end + self.latency


class Network(Generic[Resource]):
    """Resources with capacities in bytes/s, a clock, and the flows now sharing them.

    Rates are max-min fair in bytes/s: all grow together until a flow meets its cap or a resource is
    full, and the others continue to grow (Bertsekas and Gallager, Data Networks, section 6.5.2).
    """

    def __init__(self, capacities: Mapping[Resource, float]):
        self.capacities = dict(capacities)
        self.now = 0.0
        self.flows: list[Flow[Resource]] = []

    def start(self, flow: Flow[Resource]) -> Flow[Resource]:
        """Adds a flow; one that needs nothing ends at once."""
        if flow.left <= 0 or (not flow.uses and flow.cap == math.inf):
            flow.begin = flow.end = self.now
            return flow
        self.flows.append(flow)
        self._share()
        return flow

    def advance(self, until: float) -> None:
        """Moves the clock to `until`; flows that finish by then get their `end`."""
        while self.flows:
            first = self._first()
            at = self.now + first.left / first.rate
            if at > until:
                break
            self._move(at, first)
        self._move(until, None)

    def wait(self, flow: Flow[Resource]) -> None:
        """Moves the clock to the arrival of a flow, if that is still to come."""
        while flow.end is None:
            first = self._first()
            self._move(self.now + first.left / first.rate, first)
        if flow.arrival > self.now:
            self.advance(flow.arrival)

    def _first(self) -> Flow[Resource]:
        """The flow that ends first, of those that move."""
        return min((f for f in self.flows if f.rate), key=lambda flow: flow.left / flow.rate)

    def _move(self, at: float, ending: Flow[Resource] | None) -> None:
        for flow in self.flows:
            flow.left = max(0.0, flow.left - flow.rate * (at - self.now))
        self.now = max(at, self.now)
        if ending is not None:
            ending.left, ending.end = 0.0, self.now
            self.flows.remove(ending)
            self._share()

    def _share(self) -> None:
        free = dict(self.capacities)
        open_flows = self._at_the_front()
        level = 0.0
        while open_flows:
            step = min(flow.cap - level for flow in open_flows)
            demand: dict[Resource, float] = {}
            for flow in open_flows:
                for resource, use in flow.uses.items():
                    demand[resource] = demand.get(resource, 0.0) + use
            for resource, use in demand.items():
                if use > 0:
                    step = min(step, free[resource] / use)
            level += step
            for resource, use in demand.items():
                free[resource] -= step * use
            full = {
                resource
                for resource, use in demand.items()
                if use > 0 and free[resource] <= 1e-9 * self.capacities[resource]
            }
            done = [
                flow
                for flow in open_flows
                if level >= flow.cap * (1 - 1e-12)
                or any(use and r in full for r, use in flow.uses.items())
            ]
            for flow in done:
                flow.rate = level
            open_flows = [flow for flow in open_flows if flow not in done]

    def _at_the_front(self) -> list[Flow[Resource]]:
        """The flows that no other of their queue is before; the rest gets no rate."""
        front, queues = [], set()
        for flow in self.flows:
            flow.rate = 0.0
            if flow.queue is None or flow.queue not in queues:
                front.append(flow)
                flow.begin = min(flow.begin, self.now)
            queues.add(flow.queue)
        return front
