"""The meaning of a two-operand einsum, and the effect of a gather or a scatter of one of its labels.

Everything here works from plain strings and shapes, so it needs no device and raises while tracing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from opt_einsum import parser as oe_parser

Shape = Sequence[int]
Operand = Literal["lhs", "rhs"]
Role = Literal["contracting", "batch", "lhs_free", "rhs_free", "lhs_summed", "rhs_summed"]


@dataclasses.dataclass(frozen=True)
class Spec:
    """A two-operand einsum with `...` expanded, the output explicit and every label one letter.

    `text` is what the user wrote and is only used in messages. A label may stand twice in one
    operand (`"ii,ij->j"`, the diagonal) but never twice in the output, as in `jnp.einsum`.
    """

    text: str
    lhs: str
    rhs: str
    out: str

    @property
    def formula(self) -> str:
        """The einsum to hand to `jnp.einsum`."""
        return f"{self.lhs},{self.rhs}->{self.out}"

    def __str__(self) -> str:
        plain = self.text == self.formula
        return repr(self.text) if plain else f"{self.text!r} (that is, {self.formula!r})"

    @property
    def labels(self) -> str:
        """Every label once, in the order of first appearance."""
        return "".join(dict.fromkeys(self.lhs + self.rhs))

    def swapped(self) -> Spec:
        """The same einsum with its operands exchanged."""
        return dataclasses.replace(self, lhs=self.rhs, rhs=self.lhs)

    def role(self, label: str) -> Role:
        """The fate of `label`; a `summed` label stands in one operand and not in the output.

        Raises:
          ValueError: neither operand has the label.
        """
        in_lhs, in_rhs, in_out = label in self.lhs, label in self.rhs, label in self.out
        if len(label) != 1 or not (in_lhs or in_rhs):
            raise ValueError(
                f"label {label!r} is in no operand of einsum {self}; its labels are {self.labels!r}"
            )
        if in_lhs and in_rhs:
            return "batch" if in_out else "contracting"
        if in_lhs:
            return "lhs_free" if in_out else "lhs_summed"
        return "rhs_free" if in_out else "rhs_summed"

    @property
    def summed_labels(self) -> str:
        """The labels that the output lacks, whether in both operands or in one."""
        return "".join(label for label in self.labels if label not in self.out)


def parse(text: str, lhs_shape: Shape, rhs_shape: Shape) -> Spec:
    """Reads an einsum of two operands as `jnp.einsum` does, against their ranks.

    An implicit output has the `...` dimensions first and then, in alphabetical order, the labels
    that occur once. The sizes are not compared here (see `check_sizes`): a gathered label has two.

    Raises:
      ValueError: not a string, not two operands, a malformed `...` or output, or ranks that do not
        match.
    """
    (lhs, rhs), out = parse_terms(text, (lhs_shape, rhs_shape))
    return Spec(text, lhs, rhs, out)


def sides(count: int) -> list[str]:
    """The names that messages give to the operands of an einsum of so many."""
    return ["lhs", "rhs"] if count == 2 else [f"operand {i}" for i in range(count)]


def parse_terms(text: str, shapes: Sequence[Shape]) -> tuple[list[str], str]:
    """The labels of every operand and of the output, with `...` expanded; as `parse`."""
    if not isinstance(text, str):
        raise ValueError(f"the einsum must be a string such as 'ij,jk->ik', got {text!r}")
    inputs = text.replace(" ", "").split("->")[0]
    terms = inputs.split(",")
    if "-" in inputs or ">" in inputs:
        raise ValueError(f"einsum {text!r}: write the output once, after '->'")
    if len(terms) != len(shapes):
        takes = (
            "a collective einsum takes exactly two"
            if len(shapes) == 2
            else f"there are {len(shapes)}"
        )
        raise ValueError(f"einsum {text!r} names {len(terms)} operand(s); {takes}")
    for side, term, shape in zip(sides(len(shapes)), terms, shapes, strict=True):
        letters = term.replace("...", "", 1)
        open_ended = letters != term
        if "." in letters:
            raise ValueError(
                f"einsum {text!r}: '...' may stand once in {side} {term!r}, and no other dots"
            )
        if len(shape) < len(letters) or (len(shape) > len(letters) and not open_ended):
            wants = f"{len(letters)} dimensions" + (" or more" if open_ended else "")
            hint = "" if open_ended else "; write '...' for dimensions without a label"
            raise ValueError(
                f"einsum {text!r}: {term!r} asks for {wants}, but {side} has shape {tuple(shape)} "
                f"({len(shape)}){hint}"
            )
    try:
        # The parser of jnp.einsum itself, so that the two cannot disagree.
        labels, out, _ = oe_parser.parse_einsum_input((text, *map(tuple, shapes)), shapes=True)
    except ValueError as error:
        words = " and ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"einsum {text!r} with operands of shapes {words}: {error}") from error
    return labels.split(","), out


@dataclasses.dataclass(frozen=True)
class Gather:
    """An all-gather of `label` before the einsum: `operand` moves, in `n` shards of size `shard`.

    `lhs_dim`, `rhs_dim` and `out_dim` are the label's positions, None where it is absent.
    """

    label: str
    operand: Operand
    n: int
    shard: int
    full: int
    lhs_dim: int | None
    rhs_dim: int | None
    out_dim: int | None


@dataclasses.dataclass(frozen=True)
class Scatter:
    """A reduce-scatter of `label` after the einsum: each of `n` devices keeps `shard` of `full`."""

    label: str
    n: int
    full: int
    shard: int
    lhs_dim: int | None
    rhs_dim: int | None
    out_dim: int


def _dim(labels: str, label: str) -> int | None:
    return labels.index(label) if label in labels else None


def _over(axis_name: object, n: int) -> str:
    return f"over axis {axis_name!r} of size {n}"


def _check_label(spec: Spec, label: str, keyword: Literal["gather", "scatter"]) -> None:
    """The label is one that the user wrote, and its place in each operand is unambiguous."""
    if not isinstance(label, str) or len(label) != 1 or label in ".,->" or label not in spec.text:
        written = "".join(c for c in spec.labels if c in spec.text)
        hint = " (a dimension under '...' needs a letter of its own)" if "..." in spec.text else ""
        raise ValueError(
            f"{keyword}={label!r} is not a label of einsum {spec}: choose one of {written!r}{hint}"
        )
    if max(spec.lhs.count(label), spec.rhs.count(label)) > 1:
        raise ValueError(
            f"{keyword}={label!r}: einsum {spec} repeats {label!r} within one operand, and the "
            "shards of a diagonal are not the diagonals of the shards; take the diagonal first, "
            "then use a single label"
        )


def resolve_gather(
    spec: Spec, label: str, lhs_shape: Shape, rhs_shape: Shape, *, n: int, axis_name: object
) -> Gather:
    """The operand that a gather of `label` moves, from local shapes; `n` is the number of shards.

    A label in one operand moves that one. For a label in both, it is the operand whose local size
    times `n` is the other's local size; with `n == 1` and equal sizes, lhs.

    Raises:
      ValueError: no such label, one repeated within an operand, or sizes that neither reading
        explains.
    """
    _check_label(spec, label, "gather")
    lhs_dim, rhs_dim = _dim(spec.lhs, label), _dim(spec.rhs, label)
    operand: Operand = "rhs"
    if lhs_dim is not None and rhs_dim is not None:
        where = f"gather={label!r} {_over(axis_name, n)} in einsum {spec}"
        operand = _smaller(where, label, lhs_shape[lhs_dim], rhs_shape[rhs_dim], n)
    elif lhs_dim is not None:
        operand = "lhs"
    labels, shape = (spec.lhs, lhs_shape) if operand == "lhs" else (spec.rhs, rhs_shape)
    shard = shape[labels.index(label)]
    return Gather(label, operand, n, shard, shard * n, lhs_dim, rhs_dim, _dim(spec.out, label))


def _smaller(where: str, label: str, lhs_size: int, rhs_size: int, n: int) -> Operand:
    """The operand that holds one of `n` shards of the label that the other holds in full."""
    if lhs_size == rhs_size and n > 1:
        raise ValueError(
            f"{where}: both operands hold {lhs_size} of {label!r}, so it is not clear which one "
            "is the shard. If both are shards, use einsum_reduce_scatter or einsum_all_reduce, which "
            f"sum over the devices; else pass one operand with all {lhs_size * n}"
        )
    if lhs_size * n == rhs_size:
        return "lhs"
    if rhs_size * n == lhs_size:
        return "rhs"
    raise ValueError(
        f"{where}: lhs holds {lhs_size} of {label!r} and rhs holds {rhs_size}; one of them must "
        f"hold {n} times the other: rhs {lhs_size * n} if lhs is gathered, or lhs {rhs_size * n} "
        "if rhs is"
    )


def resolve_scatter(
    spec: Spec, label: str, lhs_shape: Shape, rhs_shape: Shape, *, n: int, axis_name: object
) -> Scatter:
    """The size of `label` that a scatter leaves on each of `n` devices, from the shapes the einsum sees.

    Raises:
      ValueError: no such label, one that is summed over or repeated, or a size that `n` does not
        divide.
    """
    _check_label(spec, label, "scatter")
    if label not in spec.out:
        choices = f"scatter one of {spec.out!r}, or " if spec.out else ""
        raise ValueError(
            f"scatter={label!r} {_over(axis_name, n)}: einsum {spec} sums over {label!r}, so the "
            f"output has nothing of it to scatter; {choices}use einsum_all_reduce"
        )
    lhs_dim, rhs_dim = _dim(spec.lhs, label), _dim(spec.rhs, label)
    sizes = [s[d] for s, d in ((lhs_shape, lhs_dim), (rhs_shape, rhs_dim)) if d is not None]
    # Size 1 broadcasts; a true disagreement is for check_sizes to report.
    full = next((size for size in sizes if size != 1), 1)
    if full % n:
        below, above = full // n * n, (full // n + 1) * n
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"scatter={label!r} {_over(axis_name, n)} in einsum {spec}: {n} does not divide the "
            f"size {full} of {label!r}; the nearest that it divides: {nearest}. Pad {label!r} with "
            "zeros and slice the result, or scatter another label"
        )
    return Scatter(label, n, full, full // n, lhs_dim, rhs_dim, spec.out.index(label))


def check_both_ends(
    spec: Spec,
    gather: str,
    scatter: str,
    *,
    gather_axes: tuple[str, ...],
    scatter_axes: tuple[str, ...],
) -> None:
    """A gather and a scatter around one einsum must concern different axes.

    Raises:
      ValueError: they share an axis.
    """
    shared = tuple(axis for axis in gather_axes if axis in scatter_axes)
    if shared:
        raise ValueError(
            f"einsum {spec}: gather={gather!r} over {gather_axes!r} and scatter={scatter!r} over "
            f"{scatter_axes!r} share the axis {shared[0]!r}; after the gather its devices hold the "
            "same data, so their sum would count it once per device. Use different axes"
        )
