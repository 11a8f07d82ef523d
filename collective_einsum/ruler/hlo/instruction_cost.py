"""The flops and the HBM bytes of one instruction of a scheduled module.

A fusion counts the bytes that it reads and writes: of a dynamic slice of a stacked parameter only the
slice, of an update in place only the update. Counting follows OpenXLA's `HloCostAnalysis`
(`xla/service/hlo_cost_analysis.cc`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes

# Opcodes that name, group or reinterpret values and move nothing.
FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "add-dependency",
        "get-dimension-size",
        "domain",
    )
)
_ALIASES = ("bitcast", "reshape", "get-tuple-element", "opt-barrier", "convert")
_SLICES = ("dynamic-slice", "slice", "gather")

# Opcodes that move data over the links; `collective_einsum.ruler.hlo.transfers` counts their bytes.
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Targets of custom calls that allocate memory, or prepare an asynchronous call.
_FREE_TARGETS = ("AllocateBuffer", "ConcatBitcast", "PrepareAsyncCallStart", "PrepareAsyncCallDone")


def is_free(instruction: hlo.Instruction) -> bool:
    """Whether an instruction takes no time and moves nothing."""
    return instruction.opcode in FREE or instruction.custom_call_target in _FREE_TARGETS


def hbm_bytes(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> int:
    """Bytes that a synchronous instruction reads from and writes to HBM; of a kernel whose author
    estimates them (`pl.CostEstimate`), no more than that."""
    if is_free(instruction):
        return 0
    if instruction.opcode in ("fusion", "call"):
        inner = module.computations[instruction.calls[0]]
        read = sum(
            _read(module, inner, parameter)
            for parameter, operand in zip(inner.parameters, instruction.operands, strict=False)
            if in_hbm(computation[operand].shape)
        )
        return read + _written(module, inner, instruction.shape, inner.root)
    read = sum(
        _operand_read(instruction, place, computation[operand])
        for place, operand in enumerate(instruction.operands)
    )
    moved = read + _written(module, computation, instruction.shape, instruction)
    # A kernel may read a part of its operands: one layer of all layers' keys.
    return min(moved, instruction.estimated_bytes or moved)


@dataclasses.dataclass(frozen=True)
class Multiplied:
    """A dot or a convolution in an instruction.

    Attributes:
      flops: its multiplications and additions.
      lhs, rhs: its operands.
    """

    flops: int
    lhs: shapes.Shape
    rhs: shapes.Shape


def multiplied(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> Iterator[Multiplied]:
    """The dots and convolutions in an instruction."""
    count = _FLOPS.get(instruction.opcode)
    if count is not None:
        lhs, rhs = (_array(computation, name) for name in instruction.operands[:2])
        yield Multiplied(count(computation, instruction), lhs, rhs)
    elif instruction.opcode in ("fusion", "call", "async-start"):
        for name in instruction.calls:
            inner = module.computations[name]
            for called in inner:
                yield from multiplied(module, inner, called)


def flops(module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction) -> int:
    """Multiplications and additions of the dots and convolutions in an instruction."""
    return sum(one.flops for one in multiplied(module, computation, instruction))


def in_hbm(shape: shapes.AnyShape) -> bool:
    """Whether any array of a shape is in HBM."""
    return any(leaf.memory_space == shapes.HBM for leaf in shapes.leaves(shape))


def bytes_in_hbm(shape: shapes.AnyShape) -> int:
    """Bytes of the arrays of a shape that are in HBM."""
    return sum(leaf.bytes for leaf in shapes.leaves(shape) if leaf.memory_space == shapes.HBM)


def total_bytes(shape: shapes.AnyShape) -> int:
    """Bytes of all arrays of a shape, in any memory."""
    return sum(leaf.bytes for leaf in shapes.leaves(shape))


def elements(shape: shapes.AnyShape) -> int:
    """The number of elements of all arrays of a shape."""
    return sum(leaf.size for leaf in shapes.leaves(shape))


def _operand_read(user: hlo.Instruction, place: int, operand: hlo.Instruction) -> int:
    if not in_hbm(operand.shape):
        return 0
    if user.opcode in _SLICES and place == 0:
        return total_bytes(user.shape)
    if user.opcode in ("dynamic-update-slice", "scatter") and place == 0:
        return 0
    return bytes_in_hbm(operand.shape)


def _read(module: hlo.Module, computation: hlo.Computation, value: hlo.Instruction) -> int:
    """HBM bytes of `value` that its users inside a fused computation read."""
    size = total_bytes(value.shape)
    read = 0
    for user in computation.users[value.name]:
        for place, operand in enumerate(user.operands):
            if operand != value.name:
                continue
            if user.opcode in _SLICES and place == 0:
                read += total_bytes(user.shape)
            elif user.opcode in ("dynamic-update-slice", "scatter") and place == 0:
                read += 0
            elif _is_alias(user):
                read += min(_read(module, computation, user), size)
            elif user.opcode in ("fusion", "call"):
                inner = module.computations[user.calls[0]]
                read += _read(module, inner, inner.parameters[place])
                if _is_passed_on(inner, inner.parameters[place]):
                    read += min(_read(module, computation, user), size)
            elif user.opcode in COLLECTIVES or (user.opcode == "tuple" and user.is_root):
                read += 0
            else:
                read += size
    return min(read, size)


def _is_passed_on(computation: hlo.Computation, value: hlo.Instruction) -> bool:
    """Whether a computation returns `value`, in another shape or dtype, for its own users to read."""
    return value.is_root or any(
        _is_alias(user) and _is_passed_on(computation, user)
        for user in computation.users[value.name]
    )


def _is_alias(user: hlo.Instruction) -> bool:
    """Whether what an instruction makes is its operand in another shape, dtype or tiles: the last for a
    reader of int8, by a fusion that aliases the same bytes."""
    return user.opcode in _ALIASES or "output_to_operand_aliasing" in user.attributes


def _written(
    module: hlo.Module, computation: hlo.Computation, shape: shapes.AnyShape, root: hlo.Instruction
) -> int:
    """Bytes written to HBM for a result of `shape`, produced by `root`."""
    if isinstance(shape, shapes.TupleShape) and root.opcode == "tuple":
        return sum(
            _written(module, computation, element, computation[operand])
            for element, operand in zip(shape.elements, root.operands, strict=True)
        )
    if not in_hbm(shape):
        return 0
    if root.opcode in ("bitcast", "reshape", "opt-barrier") and isinstance(shape, shapes.Shape):
        return _written(module, computation, shape, computation[root.operands[0]])
    if root.opcode == "dynamic-update-slice":
        return total_bytes(computation[root.operands[1]].shape)
    if root.opcode == "scatter":
        return total_bytes(computation[root.operands[-1]].shape)
    if root.opcode in ("fusion", "call"):
        inner = module.computations[root.calls[0]]
        return _written(module, inner, shape, inner.root)
    if root.opcode in COLLECTIVES:
        return 0
    if root.opcode == "parameter":
        return 0 if root.shape == shape else bytes_in_hbm(shape)
    return bytes_in_hbm(shape)


def _array(computation: hlo.Computation, name: str) -> shapes.Shape:
    return shapes.leaves(computation[name].shape)[0]


def _dot_flops(computation: hlo.Computation, dot: hlo.Instruction) -> int:
    lhs = _array(computation, dot.operands[0])
    contracted = math.prod(
        lhs.dims[d] for d in shapes.integers(dot.attributes.get("lhs_contracting_dims", ""))
    )
    return 2 * shapes.leaves(dot.shape)[0].size * contracted


def _convolution_flops(computation: hlo.Computation, convolution: hlo.Instruction) -> int:
    lhs, rhs = (_array(computation, name) for name in convolution.operands[:2])
    out = shapes.leaves(convolution.shape)[0]
    lhs_labels, _, rest = convolution.attributes["dim_labels"].partition("_")
    rhs_labels, _, out_labels = rest.partition("->")
    window = dict(
        re.findall(r"(\w+)=(\S+)", convolution.attributes.get("window", "{}").strip("{}"))
    )

    def field(name: str, index: int, default: int) -> int:
        return int(window[name].split("x")[index]) if name in window else default

    valid = 1
    for index in range(len(lhs_labels) - 2):
        label = str(index)
        low = int(window["pad"].split("x")[index].split("_")[0]) if "pad" in window else 0
        # Positions of the window that fall on padding or between dilated elements cost nothing.
        dilation = field("lhs_dilate", index, 1)
        starts = np.arange(out.dims[out_labels.index(label)]) * field("stride", index, 1) - low
        places = starts[:, None] + np.arange(field("size", index, 1)) * field(
            "rhs_dilate", index, 1
        )
        size = lhs.dims[lhs_labels.index(label)]
        valid *= int(((places >= 0) & (places % dilation == 0) & (places // dilation < size)).sum())
    batch = out.dims[out_labels.index("b")]
    features = rhs.dims[rhs_labels.index("i")] * out.dims[out_labels.index("f")]
    groups = int(convolution.attributes.get("batch_group_count", "1"))
    return 2 * valid * batch * features // groups


_FLOPS = {"dot": _dot_flops, "convolution": _convolution_flops}
