"""From the shardings of an einsum's operands and result to the collectives that it needs.

Plain strings and numbers, one mesh axis at a time; `einsum` says which rule decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from ..ops.request import RequestedCollectives
from ..spec.sizes import symbolic
from ..spec.spec import Spec

Axes = tuple[str, ...]
# The mesh axes of every dimension of an array, the major one first.
Layout = tuple[Axes, ...]
# Stands for a symbolic size where bytes are compared.
SOME = 1024


@dataclasses.dataclass(frozen=True)
class Change:
    """The collectives and slices that bring an array from one layout into another, in this order.

    Attributes:
      swaps: all-to-alls, as (axes, dimension to split, dimension to join).
      early: slices that need no other device's data, as (dimension, axes).
      sorts: permutations of shards, as (dimension, axes as they are, axes as wanted).
      gathers: as (dimension, axes).
      late: slices of what had to be gathered first, as (dimension, axes).
      resorts: as `sorts`.
    """

    swaps: tuple[tuple[Axes, int, int], ...] = ()
    early: tuple[tuple[int, Axes], ...] = ()
    sorts: tuple[tuple[int, Axes, Axes], ...] = ()
    gathers: tuple[tuple[int, Axes], ...] = ()
    late: tuple[tuple[int, Axes], ...] = ()
    resorts: tuple[tuple[int, Axes, Axes], ...] = ()


def change(have: Layout, want: Layout) -> Change:
    """The `Change` from one layout to another of the same rank."""
    now, swaps = list(have), []
    for i in range(len(now)):
        for j in range(len(now)):
            moved = now[i][len(want[i]) :]
            after = now[j] + moved
            leaves = moved and i != j and now[i][: len(want[i])] == want[i]
            if leaves and want[j][: len(after)] == after:
                swaps.append((moved, j, i))
                now[i], now[j] = want[i], after
    used = {axis for axes in now for axis in axes}
    early, sorts, gathers, late, resorts = [], [], [], [], []
    for dim, (old, new) in enumerate(zip(now, want, strict=True)):
        kept = tuple(axis for axis in new if axis in old)
        gone = tuple(axis for axis in old if axis not in new)
        added = tuple(axis for axis in new if axis not in old)
        if not gone and not used.intersection(added):
            early += [(dim, added)] if added else []
            sorts += _sort(dim, old + added, new)
            continue
        sorts += _sort(dim, old, kept + gone)
        gathers += [(dim, gone)] if gone else []
        late += [(dim, added)] if added else []
        resorts += _sort(dim, kept + added, new)
    return Change(*map(tuple, (swaps, early, sorts, gathers, late, resorts)))


def _sort(dim: int, old: Axes, new: Axes) -> list[tuple[int, Axes, Axes]]:
    """The permutation, if any, that brings the axes of a dimension into another order."""
    while old and old[0] == new[0]:
        old, new = old[1:], new[1:]
    return [(dim, old, new)] if old else []


@dataclasses.dataclass(frozen=True)
class Plan:
    """The collectives around a local einsum.

    Attributes:
      lhs: the changes of the left operand before the einsum.
      rhs: those of the right operand.
      fused: the collectives before and after the einsum that overlap with it.
      scatters: reduce-scatters after it, as (dimension of the output, axes).
      reduce: the axes of an all-reduce after these.
      out: the changes of the result, last.
    """

    lhs: Change
    rhs: Change
    fused: RequestedCollectives
    scatters: tuple[tuple[int, Axes], ...]
    reduce: Axes
    out: Change

    @property
    def reduced(self) -> Axes:
        """The axes over which the result is all-reduced."""
        axes = self.fused.reduce
        return (*self.reduce, *(axes if isinstance(axes, tuple) else ()))


@dataclasses.dataclass(frozen=True)
class Case:
    """An einsum whose labels are each in two of lhs, rhs and out, or in all, and once in each.

    Attributes:
      spec: the einsum.
      sizes: of the labels.
      widths: the bytes of an element of lhs, rhs and out.
      mesh: the sizes of the mesh axes.
      lhs: the layout of lhs.
      rhs: the layout of rhs.
      out: the layout of out.
    """

    spec: Spec
    sizes: Mapping[str, int]
    widths: tuple[int, int, int]
    mesh: Mapping[str, int]
    lhs: Layout
    rhs: Layout
    out: Layout

    def bytes(self, side: int) -> int:
        """The bytes of the unsharded lhs (0), rhs (1) or output (2)."""
        labels = (self.spec.lhs, self.spec.rhs, self.spec.out)[side]
        sizes = [self.sizes[label] for label in labels]
        return self.widths[side] * math.prod(SOME if symbolic(size) else size for size in sizes)

    def axes_of(self, side: int) -> dict[str, Axes]:
        """The axes of each label of lhs (0), rhs (1) or output (2)."""
        labels = (self.spec.lhs, self.spec.rhs, self.spec.out)[side]
        return dict(zip(labels, (self.lhs, self.rhs, self.out)[side], strict=True))

    def label_of(self, side: int) -> dict[str, str]:
        """The label that each axis shards, in lhs (0), rhs (1) or output (2)."""
        return {axis: label for label, axes in self.axes_of(side).items() for axis in axes}

    def devices(self, axes: Axes) -> int:
        """The number of devices along `axes`."""
        return math.prod(self.mesh[axis] for axis in axes)


def infer(case: Case) -> Plan:
    """The collectives of a case: every axis is given a label to divide the local einsums by."""
    spec = case.spec
    work = _work(case)

    def layout(labels: str) -> Layout:
        return tuple(work.get(label, ()) for label in labels)

    lhs, rhs = change(case.lhs, layout(spec.lhs)), change(case.rhs, layout(spec.rhs))
    partial = [axis for label in spec.summed_labels for axis in work.get(label, ())]
    scatters = _scatters(case, work, partial)
    scattered = {axis for _, axes in scatters for axis in axes}
    reduce = tuple(axis for axis in partial if axis not in scattered)
    have = list(layout(spec.out))
    for dim, axes in scatters:
        have[dim] += axes
    out = change(tuple(have), case.out)
    scatter = scatters.pop(0) if scatters else None
    gather, lhs, rhs = _fuse_gather(case, lhs, rhs, scatter)
    fused = RequestedCollectives(
        gather=gather,
        scatter=scatter and (spec.out[scatter[0]], scatter[1]),
        reduce=reduce if reduce and scatter is None else None,
    )
    left = () if scatter is None else reduce
    return Plan(lhs, rhs, fused, tuple(scatters), left, out)


def _work(case: Case) -> dict[str, Axes]:
    """The axes that divide each label in the local einsums."""
    where = [case.label_of(side) for side in range(3)]
    divided: dict[str, Axes] = {}
    # The larger operand decides the order of axes, since it is the one to leave alone.
    first = (0, 1) if case.bytes(0) >= case.bytes(1) else (1, 0)
    for side in (*first, 2):
        for label, axes in case.axes_of(side).items():
            for axis in axes:
                before = divided.get(label, ())
                if axis in before or _home(case, axis, where) != label:
                    continue
                # Operands and output may each divide a label, and all of them together not.
                if case.sizes[label] % case.devices((*before, axis)) == 0:
                    divided[label] = (*before, axis)
    return divided


def _home(case: Case, axis: str, where: list[dict[str, str]]) -> str | None:
    """The label that `axis` divides in the local einsums; None if all its devices do the same."""
    lhs, rhs, out = (labels.get(axis) for labels in where)
    if lhs == rhs:
        return out if lhs is None else lhs
    if lhs is not None and rhs is not None:
        if out in (lhs, rhs):
            return out
        choices = [label for label in (lhs, rhs, out) if label is not None]
        return min(choices, key=lambda label: _traffic(case, axis, label, (lhs, rhs, out)))
    side = 0 if rhs is None else 1
    label = lhs or rhs or ""
    mine, others = (case.axes_of(s).get(label, ()) for s in (side, 1 - side))
    may_stay = out is None or label not in case.spec.out
    # Other axes divide it in the other operand: only one of the two needs to give way.
    if others and may_stay and (set(others) <= set(mine) or _stays(case, side)):
        return label
    return out


def _stays(case: Case, side: int) -> bool:
    """Whether the operand is the larger one, the first if they are equal."""
    return case.bytes(side) > case.bytes(1 - side) or (side == 0 and case.bytes(0) == case.bytes(1))


def _traffic(
    case: Case, axis: str, label: str, shards: tuple[str | None, str | None, str | None]
) -> float:
    """Bytes that a device receives along `axis` if it divides `label`, but for a common factor.

    `shards` are the labels that the axis shards in lhs, rhs and out.
    """
    spec, n = case.spec, case.mesh[axis]

    def moved(side: int, labels: str, have: str | None, want: str | None) -> float:
        if have is None or have == want:
            return 0
        return case.bytes(side) / n if want is not None and want in labels else case.bytes(side)

    before = moved(0, spec.lhs, shards[0], label) + moved(1, spec.rhs, shards[1], label)
    if label in spec.out:
        return before + moved(2, spec.out, label, shards[2])
    return before + case.bytes(2) * (2 if shards[2] is None else 1)


def _scatters(case: Case, work: dict[str, Axes], partial: list[str]) -> list[tuple[int, Axes]]:
    """The reduce-scatters of sums over `partial`, the largest first."""
    scatters = []
    for dim, (label, axes) in enumerate(zip(case.spec.out, case.out, strict=True)):
        summed = tuple(axis for axis in axes if axis in partial)
        n = case.devices((*work.get(label, ()), *summed))
        if summed and case.sizes[label] % n == 0:
            scatters.append((dim, summed))
    return sorted(scatters, key=lambda scatter: -case.devices(scatter[1]))


def _fuse_gather(
    case: Case, lhs: Change, rhs: Change, scatter: tuple[int, Axes] | None
) -> tuple[tuple[str, Axes] | None, Change, Change]:
    """Hands the largest gather to the einsum; the changes without it."""
    best, sides = None, [lhs, rhs]
    for side, labels in enumerate((case.spec.lhs, case.spec.rhs)):
        for dim, axes in sides[side].gathers:
            if scatter is not None and labels[dim] == case.spec.out[scatter[0]]:
                continue
            # It comes last, so no slice may wait for it; only a slice calls for another sort.
            if any(d == dim or set(a) & set(axes) for d, a in sides[side].late):
                continue
            n = case.devices(axes)
            gain = case.bytes(side) * (n - 1) / n
            if best is None or gain > best[0]:
                best = (gain, side, dim, axes)
    if best is None:
        return None, lhs, rhs
    _, side, dim, axes = best
    rest = tuple(gather for gather in sides[side].gathers if gather != (dim, axes))
    sides[side] = dataclasses.replace(sides[side], gathers=rest)
    labels = (case.spec.lhs, case.spec.rhs)[side]
    return (labels[dim], axes), sides[0], sides[1]
