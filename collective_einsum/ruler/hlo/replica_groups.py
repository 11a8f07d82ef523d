"""The groups of devices that take part in a collective, in the three forms that HLO has for them.

Sources: OpenXLA, `xla/hlo/ir/replica_group.cc` and `xla/hlo/ir/mesh_and_axis.cc`.
"""

from __future__ import annotations

import itertools
import math
import re

import numpy as np

from collective_einsum.ruler.hlo.shapes import integers


def parse_replica_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """Reads the groups of a collective; an empty list means that all devices form one.

    The three forms are `{{0,1},{2,3}}`; `[2,2]<=[2,2]T(1,0)`, a reshaped and transposed iota; and
    `mesh['a'=2,'b'=4],device_ids=([4,2]T(1,0)) {'a','b':(2)2}`, axes and sub-axes of a mesh.

    Raises ValueError if `text` has none of these forms.
    """
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if "<=" in text:
        shape, _, source = text.partition("<=")
        return _rows(_iota(source).reshape(integers(shape)))
    groups = tuple(integers(group) for group in re.findall(r"\{([\d,\s]+)\}", text))
    if not groups and text.strip("{} "):
        raise ValueError(f"ruler.hlo.replica_groups cannot read the replica groups {text[:80]!r}.")
    return groups


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(i) for i in row) for row in ids)


def _iota(text: str) -> np.ndarray:
    """Reads `[4,4]T(1,0)`: 0, 1, 2, ... reshaped, then transposed."""
    shape, _, order = text.partition("T")
    ids = np.arange(math.prod(integers(shape))).reshape(integers(shape))
    return ids.transpose(integers(order)) if order else ids


def _mesh_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """Reads `mesh['a'=2,'b'=8],device_ids=(...) {'b':(2)4}`; `(2)4` is the sub-axis of size 4 behind a
    major one of size 2."""
    head, _, grouped = text.rpartition("{")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", head)}
    ids = np.arange(math.prod(sizes.values()))
    if match := re.search(r"device_ids=\((.*)\)", head):
        ids = _iota(match[1]).reshape(-1) if "[" in match[1] else np.array(integers(match[1]))
    bounds = {name: {1, size} for name, size in sizes.items()}
    chosen: list[tuple[str, int, int]] = []
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", grouped):
        major, minor = int(before or 1), int(size or sizes[name])
        chosen.append((name, major, minor))
        bounds[name] |= {major, major * minor}
    shape: list[int] = []
    place: dict[tuple[str, int], int] = {}
    for name in sizes:
        for low, high in itertools.pairwise(sorted(bounds[name])):
            place[name, low] = len(shape)
            shape.append(high // low)
    inside = [place[name, before] for name, before, size in chosen if size > 1]
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    count = math.prod(size for _, _, size in chosen)
    return _rows(ids.reshape(shape).transpose(outside + inside).reshape(-1, count))
