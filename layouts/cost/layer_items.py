"""What a layer is made of, on one chip: matmuls, transfers and attention, from sizes alone.

Letters are those of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from ..mesh.axis_collectives import Axes, size

# Of activations, on the chip and on the links: bfloat16.
ACTIVATION_BYTES = 2

Kind = Literal["all-gather", "reduce-scatter", "all-reduce", "all-to-all"]


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A collective between chips.

    Attributes:
      name: what moves.
      kind: what it is.
      axes: mesh axes, of sizes above 1.
      chips: along them all.
      bytes: on each chip, on the larger side: what a gather makes, what the others begin with.
      of_lanes: whether a sum by itself is scattered by columns, which a TPU has to move apart.
    """

    name: str
    kind: Kind
    axes: Axes
    chips: int
    bytes: float
    of_lanes: bool = False

    @property
    def of_weight(self) -> bool:
        """Whether what moves is a weight: those are there before they are needed."""
        return self.name.startswith("w_")

    def joins(self, other: Transfer) -> bool:
        """Whether compilers make one all-reduce of this and `other`, next to each other."""
        return self.kind == other.kind == "all-reduce" and self.axes == other.axes

    @property
    def sent_bytes(self) -> float:
        """Bytes that a chip sends: (K - 1)/K of those above over K chips, an all-reduce twice that
        (appendix A.1)."""
        share = (self.chips - 1) / self.chips
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Einsum:
    """Activations [m, e] times weights [e, f] on one chip, with the collectives at its ends.

    Attributes:
      names: of the weights.
      m, e: sizes of the matmuls themselves, after a gather and before a scatter.
      f: of each weight.
      weight_bytes: of one element of a weight.
      gather: the label, "m", "e" or "f", that is gathered, and how.
      gathers_weight: whether the weight is what is gathered.
      scatter: the label that is scattered, and how.
      gather_shared: whether an einsum before this one has made the same gather; the compiler then
        makes one of both, unless it is hidden.
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

    @property
    def moves_tokens(self) -> bool:
        """Whether its collectives gather and scatter tokens, rather than features."""
        ends = [end[0] for end in (self.gather, self.scatter) if end is not None]
        return bool(ends) and set(ends) == {"m"}

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2 * self.m * self.e * sum(self.f)

    @property
    def streamed_bytes(self) -> float:
        """Bytes of the weights."""
        return self.e * sum(self.f) * self.weight_bytes

    @property
    def activation_bytes(self) -> float:
        """Bytes read and written beside the weights."""
        return self.m * (self.e + sum(self.f)) * ACTIVATION_BYTES

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """Those at its ends, but for a shared gather."""
        # H10 in docs/compiler.md.
        ends = (None if self.gather_shared else self.gather, self.scatter)
        return tuple(end[1] for end in ends if end is not None)


@dataclasses.dataclass(frozen=True)
class Attention:
    """Scores, softmax and the weighted sum of values, on one chip.

    Attributes:
      sequences: whose queries are here.
      queries: of each, that are here.
      new: new positions of each, of which every query sees those up to its own.
      heads, kv_heads: that are here.
      d_head: D.
      past: cached positions that each query sees, beside the new ones up to its own.
      cache_bytes: of one element of the cache.
    """

    sequences: float
    queries: int
    new: int
    heads: float
    kv_heads: float
    d_head: int
    past: int
    cache_bytes: int

    @property
    def scores(self) -> float:
        """How many there are: a query sees the cache, and half of the new positions on average."""
        seen = self.past + (self.new + 1) / 2
        return self.sequences * self.heads * self.queries * seen

    @property
    def flops(self) -> float:
        """Of q k and of the sum of v: 4 D for each score."""
        return 4 * self.scores * self.d_head

    @property
    def streamed_bytes(self) -> float:
        """Bytes of keys and values in the cache, each read once."""
        return 2 * self.sequences * self.kv_heads * self.past * self.d_head * self.cache_bytes


Item = Einsum | Transfer | Attention


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked of a layer.

    Attributes:
      batch: sequences.
      new: positions of each that are read in: 1 for decode, the length of the prompt for prefill.
      past: positions that are in the cache already.
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
    """A collective of so many elements of `each` bytes on a chip; none over one chip."""
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
) -> Iterator[Item]:
    """A weight [e, columns], or back, gathered over x and then, with its matmul, over the rest.

    `axes` are those that weights are gathered over, `each` the bytes of an element.
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
    yield Einsum((name,), m, inner, (outer,), element_bytes, gather and (label, gather), True)
