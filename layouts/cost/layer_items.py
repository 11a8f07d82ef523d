"""The items of a layer on one chip, as data: einsums, collectives and attention, from sizes alone.

Letters are those of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from ..mesh.axis_collectives import Axes, size

# Bytes of an element of activations, on the chip and on the links: bfloat16.
ACTIVATION_BYTES = 2
# The all-to-alls that send tokens to the chips that have their experts, and results back.
EXPERTS_TOKENS = "experts' tokens"

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all"]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A collective between chips.

    Attributes:
      name: of the array that moves.
      kind: the collective.
      axes: mesh axes, of sizes above 1.
      chips: the product of their sizes.
      bytes: on each chip, of the larger array: the result of an all-gather, the operand of the others.
      of_lanes: whether a reduce-scatter by itself scatters the last dimension, the lanes of a TPU's
        tile, which takes memory passes.
    """

    name: str
    kind: Kind
    axes: Axes
    chips: int
    bytes: float
    of_lanes: bool = False

    @property
    def of_weight(self) -> bool:
        """Whether a weight moves, which is in memory before it is needed."""
        return self.name.startswith("w_")

    def joins(self, other: Transfer) -> bool:
        """Whether the compiler combines this and the next item `other` into one all-reduce."""
        return self.kind == other.kind == "all-reduce" and self.axes == other.axes

    @property
    def sent_bytes(self) -> float:
        """Bytes that a chip sends over K chips: (K - 1)/K of `bytes`, an all-reduce twice that (appendix
        A.1)."""
        share = (self.chips - 1) / self.chips
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Einsum:
    """Activations [m, e] times weights [e, f] on one chip, with the collectives before and after it.

    Attributes:
      names: of the weights.
      m, e: sizes of the matmuls themselves, after a gather and before a scatter.
      f: size f of every weight.
      weight_bytes: of one element of a weight.
      gather: the gathered label, "m", "e" or "f", and the collective; None for no gather.
      gathers_weight: whether the weight is gathered, rather than the activations.
      scatter: the scattered label, and the collective; None for no scatter.
      gather_shared: whether an einsum before this one makes the same gather; the compiler then combines
        both, unless a schedule overlaps it.
      experts: how many matrices there are of each weight, each of which is multiplied with `m` rows of
        its own.
      input_bytes: of one element of the activations.
    """

    names: tuple[str, ...]
    m: int
    e: int
    f: tuple[int, ...]
    weight_bytes: int
    gather: tuple[str, Transfer] | None = None
    gathers_weight: bool = False
    scatter: tuple[str, Transfer] | None = None
    gather_shared: bool = False
    experts: int = 1
    input_bytes: int = ACTIVATION_BYTES

    @property
    def rows(self) -> int:
        """Rows of the activations, those of all experts."""
        return self.experts * self.m

    @property
    def moves_tokens(self) -> bool:
        """Whether its collectives gather and scatter tokens, rather than features."""
        labels = {end[0] for end in (self.gather, self.scatter) if end is not None}
        return labels == {"m"}

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2 * self.rows * self.e * sum(self.f)

    @property
    def streamed_bytes(self) -> float:
        """Bytes of the weights."""
        return self.experts * self.e * sum(self.f) * self.weight_bytes

    @property
    def activation_bytes(self) -> float:
        """Bytes of activations that the matmuls read and write."""
        return self.rows * (self.e + sum(self.f)) * ACTIVATION_BYTES

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """The collectives before and after it, without a shared gather."""
        # H10 in docs/compiler.md.
        ends = (None if self.gather_shared else self.gather, self.scatter)
        return tuple(end[1] for end in ends if end is not None)


@dataclasses.dataclass(frozen=True)
class Attention:
    """Scores, softmax and the weighted sum of values, on one chip.

    Attributes:
      sequences: those that this chip attends for.
      queries: new positions of one sequence whose queries this chip has.
      new: new positions of one sequence, on all chips; a query sees them up to its own.
      heads, kv_heads: query and key-value heads on this chip.
      d_head: D.
      past: cached positions of one sequence, which every query sees.
      cache_bytes: of one element of the cache.
      window: how many positions a query sees, its own and those before it; None for all.
    """

    sequences: float
    queries: int
    new: int
    heads: float
    kv_heads: float
    d_head: int
    past: int
    cache_bytes: int
    window: int | None = None

    @property
    def scores(self) -> float:
        """Number of scores: a query sees the cache, and half of the new positions on average; or those
        of its window, if these are fewer."""
        new, window = self.new, min(self.window or self.new, self.new)
        # The first `window` queries see half of it on average.
        seen = self.past + (window * (window + 1) / 2 + (new - window) * window) / new
        return self.sequences * self.heads * self.queries * seen

    @property
    def flops(self) -> float:
        """Multiplications and additions of q k and of the weighted sum of v: 4 D per score."""
        return 4 * self.scores * self.d_head

    @property
    def streamed_bytes(self) -> float:
        """Bytes of keys and values in the cache, read once."""
        return 2 * self.sequences * self.kv_heads * self.past * self.d_head * self.cache_bytes


@dataclasses.dataclass(frozen=True)
class Copies:
    """Memory passes that are no part of an einsum or of a collective.

    Attributes:
      name: of what is copied.
      bytes: read and written.
    """

    name: str
    bytes: float


Item = Einsum | Transfer | Attention | Copies


@dataclasses.dataclass(frozen=True)
class Load:
    """The workload of a step.

    Attributes:
      batch: sequences.
      new: new positions of one sequence: 1 for decode, the length of the prompt for prefill.
      past: positions of one sequence that are in the cache already.
      weight_bytes: of one element of a weight: 2 for bf16, 1 for int8.
      cache_bytes: of one element of the cache.
    """

    batch: int
    new: int
    past: int
    weight_bytes: int = 2
    cache_bytes: int = 2

    @property
    def tokens(self) -> int:
        """Rows of all activations."""
        return self.batch * self.new


def transfer(
    name: str,
    kind: Kind,
    axes: Iterable[str],
    elements: float,
    element_bytes: float,
    sizes: Mapping[str, int],
) -> Iterator[Transfer]:
    """A collective of `elements` elements of `element_bytes` on a chip; none over one chip."""
    axes = tuple(axis for axis in axes if sizes[axis] > 1)
    if axes:
        yield Transfer(name, kind, axes, size(axes, sizes), elements * element_bytes)


def gathered_weight(
    name: str,
    m: int,
    e: int,
    columns: int,
    stored: Axes,
    way: Literal["in", "out"],
    axes: Axes,
    sizes: Mapping[str, int],
    element_bytes: int,
    input_bytes: int = ACTIVATION_BYTES,
) -> Iterator[Item]:
    """The all-gather over x of a weight, [e, columns] ("in") or [columns, e] ("out"), and its einsum,
    with the all-gather over the other axes.

    Args:
      name: of the weight.
      m: rows of the activations.
      e, columns: global sizes of the weight.
      stored: the axes that shard its columns.
      way: "in" or "out".
      axes: those over which the layout gathers weights.
      sizes: of the mesh axes.
      element_bytes: of the weight.
      input_bytes: of an element of the activations.
    """
    over = tuple(axis for axis in stored if axis in axes and sizes[axis] > 1)
    left = columns // size(tuple(axis for axis in stored if axis not in axes), sizes)
    if over:
        part = e * columns / size(stored, sizes)
        yield from transfer(name, "all-gather", ("x",), part, element_bytes, sizes)
    gather = next(
        transfer(name, "all-gather", over or ("x",), e * left, element_bytes, sizes), None
    )
    inner, outer = (e, left) if way == "in" else (left, e)
    label = "f" if bool(over) == (way == "in") else "e"
    ends = gather and (label, gather)
    yield Einsum(
        (name,),
        m,
        inner,
        (outer,),
        element_bytes,
        ends,
        gathers_weight=True,
        input_bytes=input_bytes,
    )
