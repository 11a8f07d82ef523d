"""The torus under a mesh: the coordinates of its devices, and the links that a transfer loads.

A link is named by its torus axis and direction, `(0, +1)` being from coordinate c to c+1 of the
first axis. All chips of an SPMD program do the same at the same time, so one number for each axis
and direction, that of its most loaded link, says how long a transfer takes. Only permutes may load
the links of one axis and direction differently; these are then distinguished, as `(0, +1, 2)`.

A chip of two devices (TPU7x) has two at every coordinate. The link between them is one more axis of the
torus, of size two, the last one; the links of the other axes are the chip's, and both devices use them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import jax

from collective_einsum.chips.chip import Chip

Link = tuple[int, ...]
Crossing = tuple[tuple[int, ...], Link]
Pairs = Sequence[tuple[int, int]]
# A torus axis, the chips along it, whether they are a ring, and the distance between neighbours.
_Span = tuple[int, int, bool, int]


@dataclasses.dataclass(frozen=True)
class Route:
    """A transfer on the torus.

    Attributes:
      bytes: size of a message; a link of `loads` carries it times its load.
      loads: by axis and direction, the number of messages on the most loaded link.
      hops: links between the farthest sender and receiver.
    """

    bytes: float
    loads: dict[Link, float]
    hops: int


_NOTHING = Route(0, {}, 0)


@dataclasses.dataclass(frozen=True)
class Torus:
    """The coordinates of the devices, in the mesh's flat order, and the links between them.

    Attributes:
      coords: coordinates of every device.
      sizes: chips along every torus axis.
      wrapped: for every torus axis, whether its last chip has a link to its first.
      names: names of the torus axes, after the mesh axes that lie along them.
      distinguished: (coordinates where a link starts, its axis and direction) to the link's name.
      die_axis: the axis between the two devices of a chip; None where every chip is one device.
    """

    coords: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    wrapped: tuple[bool, ...]
    names: tuple[str, ...]
    distinguished: Mapping[Crossing, Link] = dataclasses.field(default_factory=dict)
    die_axis: int | None = None

    @classmethod
    def of_mesh(cls, mesh: jax.sharding.Mesh, chip: Chip) -> Torus:
        """The torus spanned by the devices of a mesh, its axes named after the mesh axes that lie
        along them.

        Raises ValueError if the devices have no coordinates on a torus.
        """
        devices = list(mesh.devices.flat)
        if not hasattr(devices[0], "coords"):
            raise ValueError(
                f"devices of kind {devices[0].device_kind!r} have no coordinates on a torus; "
                "replay a program compiled for a TPU topology, such as 'v4:4x4x4'."
            )
        coords = tuple(tuple(int(c) for c in device.coords) for device in devices)
        dies = tuple(int(getattr(device, "core_on_chip", 0)) for device in devices)
        two = len(set(dies)) > 1
        if two:
            coords = tuple((*place, die) for place, die in zip(coords, dies, strict=True))
        low = [min(axis) for axis in zip(*coords, strict=True)]
        coords = tuple(
            tuple(c - base for c, base in zip(place, low, strict=True)) for place in coords
        )
        sizes = tuple(max(axis) + 1 for axis in zip(*coords, strict=True))
        return cls(
            coords,
            sizes,
            tuple(
                size > 1 and chip.wraps(size) and not (two and axis == len(sizes) - 1)
                for axis, size in enumerate(sizes)
            ),
            _names(mesh, coords),
            die_axis=len(sizes) - 1 if two else None,
        )

    def bandwidth(self, link: Link, chip: Chip) -> float:
        """Bytes/s that a link carries one way."""
        return chip.die_bandwidth if link[0] == self.die_axis else chip.link_bandwidth

    def link_name(self, link: Link) -> str:
        """`x+`: growing coordinates on the torus axis that the mesh axis x lies along."""
        return self.names[link[0]] + ("+" if link[1] > 0 else "-")

    @property
    def links(self) -> list[Link]:
        """All axes and directions that have links."""
        return [
            (axis, sign) for axis, size in enumerate(self.sizes) if size > 1 for sign in (1, -1)
        ]

    @property
    def distinguished_links(self) -> list[Link]:
        """The keys of a route's loads: all links, with one name where permutes load them alike."""
        return [name for link in self.links for name in self._names_of(link)]

    def distinguish(self, permutes: Iterable[Pairs]) -> Torus:
        """This torus with those links distinguished that these permutes load differently."""
        loads = [self._crossings(pairs)[0] for pairs in permutes]
        distinguished: dict[Crossing, Link] = {}
        for link in self.links:
            axis, sign = link
            end = 0 if sign < 0 else self.sizes[axis] - 1
            starts = [c for c in self._chips(axis) if self.wrapped[axis] or c[axis] != end]
            marks = [tuple(load[start, link] for load in loads) for start in starts]
            names = {mark: (*link, i) for i, mark in enumerate(dict.fromkeys(marks))}
            if len(names) > 1:
                distinguished |= {
                    (start, link): names[mark] for start, mark in zip(starts, marks, strict=True)
                }
        return dataclasses.replace(self, distinguished=distinguished)

    def fraction(self, name: Link) -> float:
        """The fraction of the links of one axis and direction that have this name; 1 where they are not
        distinguished."""
        counts = self._link_counts.get(name[:2])
        return counts[name] / counts.total() if counts else 1.0

    def _names_of(self, link: Link) -> list[Link]:
        """The names of the links of one axis and direction."""
        return list(self._link_counts.get(link, [link]))

    @functools.cached_property
    def _link_counts(self) -> dict[Link, collections.Counter[Link]]:
        """The number of links under each distinguished name of an axis and direction."""
        counts: dict[Link, collections.Counter[Link]] = {}
        for (_, link), name in self.distinguished.items():
            counts.setdefault(link, collections.Counter())[name] += 1
        return counts

    def permute(self, pairs: Iterable[tuple[int, int]], message_bytes: float) -> Route:
        """The route of a collective-permute: every message takes the shortest way, axis by axis."""
        crossings, longest = self._crossings(pairs)
        loads: dict[Link, float] = {}
        for (start, link), count in crossings.items():
            link = self.distinguished.get((start, link), link)
            loads[link] = max(loads.get(link, 0), count)
        return Route(message_bytes if loads else 0, loads, longest)

    def _crossings(
        self, pairs: Iterable[tuple[int, int]]
    ) -> tuple[collections.Counter[Crossing], int]:
        """The number of messages on each link, by where it starts; and the hops of the longest way."""
        crossings: collections.Counter[Crossing] = collections.Counter()
        longest = 0
        for source, target in pairs:
            place, hops = list(self.coords[source]), 0
            for axis, size in enumerate(self.sizes):
                distance = self.coords[target][axis] - place[axis]
                if self.wrapped[axis]:
                    distance = (distance + (size - 1) // 2) % size - (size - 1) // 2
                sign = 1 if distance > 0 else -1
                for _ in range(abs(distance)):
                    crossings[self._chip(place, axis), (axis, sign)] += 1
                    place[axis] = (place[axis] + sign) % size
                hops += abs(distance)
            longest = max(longest, hops)
        return crossings, longest

    def _chip(self, place: Sequence[int], axis: int) -> tuple[int, ...]:
        """The coordinates of the chip of a device, whose links along `axis` are the device's."""
        if self.die_axis is None or axis == self.die_axis:
            return tuple(place)
        return (*place[:-1], 0)

    def _chips(self, axis: int) -> Iterable[tuple[int, ...]]:
        """All coordinates at which links along `axis` start."""
        return dict.fromkeys(self._chip(place, axis) for place in self.coords)

    def all_gather(self, groups: Sequence[Sequence[int]], gathered_bytes: float) -> Route:
        """The route of an all-gather whose result on a chip has `gathered_bytes`, or of the
        reduce-scatter that mirrors it: all links of its axes at once.

        The time is D (K-1)/K over the bandwidth of the links, two for an axis that is a ring and one
        for a line (Chan et al. 2007, as in Pope et al., arXiv 2211.05102, appendix A.1); the farthest
        chip is `hops` links away. Where both devices of a chip are in the group, each gathers half from
        the other chips, and the halves are exchanged over the link between them; where they are in two
        groups, both load the chip's links.
        """
        spans, dies, size = self._spans(groups)
        hops = sum((n // 2 if ring else n - 1) * stride for _, n, ring, stride in spans)
        loads = self._loads({axis: 1.0 for axis, *_ in spans})
        exchanged = gathered_bytes * (dies - 1) / dies
        if not spans:
            return Route(exchanged, self._loads({self.die_axis: 1.0}), 1) if dies > 1 else _NOTHING
        links = sum((2 if ring else 1) / stride for _, _, ring, stride in spans)
        chips = size // dies
        sent = gathered_bytes * (chips - 1) / chips / links * self._sharing(spans, dies, size)
        if dies > 1:
            loads |= self._loads({self.die_axis: exchanged / sent})
        return Route(sent, loads, hops + dies - 1)

    def all_reduce(self, groups: Sequence[Sequence[int]], reduced_bytes: float) -> Route:
        """The route of an all-reduce: a reduce-scatter, then an all-gather."""
        half = self.all_gather(groups, reduced_bytes)
        return Route(2 * half.bytes, half.loads, 2 * half.hops)

    def all_to_all(self, groups: Sequence[Sequence[int]], local_bytes: float) -> Route:
        """The route of an all-to-all, in which a chip sends 1/K of `local_bytes` to each of K chips.

        The most loaded link of an axis of n chips carries n/8 of `local_bytes` on a ring, a quarter of
        an all-gather of as many bytes from every chip, and n/4 on a line.
        """
        spans, dies, size = self._spans(groups)
        sharing = self._sharing(spans, dies, size) * dies
        loads = self._loads(
            {
                axis: ((n * n - n % 2) / 8 / n if ring else (n * n // 4) / n) * stride * sharing
                for axis, n, ring, stride in spans
            }
        )
        if dies > 1:
            loads |= self._loads({self.die_axis: (dies - 1) / dies})
        hops = sum((n // 2 if ring else n - 1) * stride for _, n, ring, stride in spans)
        return Route(local_bytes, loads, hops + dies - 1) if loads else _NOTHING

    def _loads(self, by_axis: Mapping[int | None, float]) -> dict[Link, float]:
        """The same load on both directions of every axis given."""
        return {
            link: load
            for axis, load in by_axis.items()
            if axis is not None
            for sign in (1, -1)
            for link in self._names_of((axis, sign))
        }

    def _sharing(self, spans: Sequence[_Span], dies: int, size: int) -> float:
        """The number of groups that load the same links at the same time."""
        return 1.0 if self.die_axis is None else 2 * math.prod(n for _, n, *_ in spans) / size

    def _spans(self, groups: Sequence[Sequence[int]]) -> tuple[list[_Span], int, int]:
        """What the largest group spans: its torus axes, the devices of one chip, and its size."""
        group = max(groups, key=len, default=()) or range(len(self.coords))
        spans, dies = [], 1
        for axis in range(len(self.sizes)):
            places = sorted({self.coords[member][axis] for member in group})
            if axis == self.die_axis:
                dies = len(places)
            elif len(places) > 1:
                n = len(places)
                stride = max(1, (places[-1] - places[0]) // (n - 1))
                ring = self.wrapped[axis] and stride * n == self.sizes[axis]
                spans.append((axis, n, ring, stride))
        return spans, dies, len(group)


def _names(mesh: jax.sharding.Mesh, coords: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
    """A name for every torus axis: the mesh axes that lie along it, numbered where one mesh axis lies
    along several."""
    shape = mesh.devices.shape
    along: list[list[str]] = [[] for _ in coords[0]]
    for index, name in enumerate(mesh.axis_names):
        stride = 1
        for size in shape[index + 1 :]:
            stride *= size
        for axis in range(len(along)):
            if len({coords[step * stride][axis] for step in range(shape[index])}) > 1:
                along[axis].append(str(name))
    uses = collections.Counter(name for names in along for name in names)
    seen: collections.Counter[str] = collections.Counter()
    names = []
    for axis, owners in enumerate(along):
        labels = []
        for owner in owners:
            labels.append(f"{owner}{seen[owner]}" if uses[owner] > 1 else owner)
            seen[owner] += 1
        names.append("*".join(labels) or f"torus{axis}")
    return tuple(names)
