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
      rate: bytes/s now.
      end: seconds at which the last byte left; None until then.
    """

    name: str
    left: float
    uses: Mapping[Resource, float]
    cap: float = math.inf
    latency: float = 0.0
    rate: float = 0.0
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
            flow.end = self.now
            return flow
        self.flows.append(flow)
        self._share()
        return flow

    def advance(self, until: float) -> None:
        """Moves the clock to `until`; flows that finish by then get their `end`."""
        while self.flows:
            first = min(self.flows, key=lambda flow: flow.left / flow.rate)
            at = self.now + first.left / first.rate
            if at > until:
                break
            self._move(at, first)
        self._move(until, None)

    def wait(self, flow: Flow[Resource]) -> None:
        """Moves the clock to the arrival of a flow, if that is still to come."""
        while flow.end is None:
            first = min(self.flows, key=lambda flow: flow.left / flow.rate)
            self._move(self.now + first.left / first.rate, first)
        if flow.arrival > self.now:
            self.advance(flow.arrival)

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
        open_flows = list(self.flows)
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
