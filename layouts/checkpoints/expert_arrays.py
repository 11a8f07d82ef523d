"""Parameters of experts that a checkpoint stores in one tensor, as gpt-oss does: numbers, or MXFP4.

MXFP4 (OCP Microscaling Formats 1.0) has a power of two for each 32 numbers of 4 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..models.params import Params
from .family import ExpertStack
from .stored_arrays import Index, Shape, at_layer
from .tensor_files import TensorFiles

# Numbers that share a scale.
_BLOCK = 32
# Of the 4 bits: a sign, two bits of exponent and one of mantissa.
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = np.array([*_MAGNITUDES, *(-x for x in _MAGNITUDES)], np.float32)
_SCALE_BIAS = 127


@dataclasses.dataclass(frozen=True)
class StackedMatrices:
    """The matrices [inputs, outputs] of all experts side by side.

    Attributes:
      source: the tensor, [experts, inputs, outputs], with outputs of other matrices between these; or
        packed, [experts, outputs, inputs].
      experts, inputs, outputs: sizes.
      dim: of the parameter, along which experts follow each other.
    """

    source: ExpertStack
    experts: int
    inputs: int
    outputs: int
    dim: int

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """As `StoredArray`."""
        source, outputs = self.source, self.source.of * self.outputs
        if not source.packed:
            return {source.tensor: (self.experts, self.inputs, outputs)}
        blocks = (self.experts, outputs, self.inputs // _BLOCK)
        return {
            f"{source.tensor}_blocks": (*blocks, _BLOCK // 2),
            f"{source.tensor}_scales": blocks,
        }

    def read(self, files: TensorFiles, layer: int, index: Index) -> np.ndarray:
        """As `StoredArray`."""
        size = (self.inputs, self.outputs)[self.dim]
        start, stop, _ = index[self.dim].indices(self.experts * size)
        other = slice(*index[1 - self.dim].indices((self.inputs, self.outputs)[1 - self.dim])[:2])
        parts = []
        for expert in range(start // size, -(-stop // size)):
            first = expert * size
            own = slice(max(start - first, 0), min(stop - first, size))
            rows, columns = (own, other) if self.dim == 0 else (other, own)
            parts.append(self._expert(files, layer, expert, rows, columns))
        return np.concatenate(parts, axis=self.dim)

    def _expert(
        self, files: TensorFiles, layer: int, expert: int, rows: slice, columns: slice
    ) -> np.ndarray:
        source, step, one = self.source, self.source.of, slice(expert, expert + 1)
        tensor = at_layer(source.tensor, layer)
        # To the last of these outputs: others of the tensor may follow it.
        last = source.index + (columns.stop - 1) * step
        among = slice(source.index + columns.start * step, last + 1)
        if not source.packed:
            return files.read(tensor, (one, rows, among))[0][:, ::step]
        blocks = slice(rows.start // _BLOCK, -(-rows.stop // _BLOCK))
        packed = files.read(f"{tensor}_blocks", (one, among, blocks, slice(None)))[0][::step]
        scales = files.read(f"{tensor}_scales", (one, among, blocks))[0][::step]
        numbers = unpacked(packed, scales)
        first = blocks.start * _BLOCK
        return np.ascontiguousarray(numbers[:, rows.start - first : rows.stop - first].T)


@dataclasses.dataclass(frozen=True)
class StackedBiases:
    """The biases [outputs] of all experts one after another; arguments as of `StackedMatrices`."""

    source: ExpertStack
    experts: int
    outputs: int

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """As `StoredArray`."""
        return {self.source.bias: (self.experts, self.source.of * self.outputs)}

    def read(self, files: TensorFiles, layer: int, index: Index) -> np.ndarray:
        """As `StoredArray`."""
        name = at_layer(self.source.bias, layer)
        every = files.read(name, (slice(None), slice(None)))
        return every[:, self.source.index :: self.source.of].reshape(-1)[index[0]]


def unpacked(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The numbers that MXFP4 stands for.

    Args:
      blocks: [rows, n, 16] uint8, each two numbers of 4 bits, the lower bits first.
      scales: [rows, n] uint8, exponents of two plus 127.

    Returns:
      [rows, n * 32] float32.
    """
    halves = np.stack([blocks & 15, blocks >> 4], axis=-1)
    numbers = _NUMBERS[halves].reshape(*scales.shape, _BLOCK)
    exponents = scales.astype(np.int32)[..., None] - _SCALE_BIAS
    return np.ldexp(numbers, exponents).reshape(scales.shape[0], -1)


def packed_tensors(plan: Params, layers: int) -> frozenset[str]:
    """The tensors of a plan that are packed: integers, of which `read` makes numbers."""
    arrays: list[Any] = jax.tree.leaves(plan["blocks"])
    stacked = [a for a in arrays if isinstance(a, StackedMatrices) and a.source.packed]
    names = [name for array in stacked for name in array.shapes]
    return frozenset(at_layer(name, layer) for name in names for layer in range(layers))
