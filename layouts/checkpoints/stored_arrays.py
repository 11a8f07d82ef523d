"""Parameters as rows of stored tensors, of which any slice can be read by itself.

A matrix of layouts is [inputs, outputs], and of a checkpoint [outputs, inputs]. Fused matrices, the
order of keys and values, padded heads and padded tokens only say which stored row, or which zeros, stand
at each index of one dimension: a list of runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from .tensor_files import TensorFiles

# Columns of a matrix that are read at a time where all of them are summed.
_COLUMNS = 512
Index = tuple[slice, ...]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive rows of a tensor, or a constant.

    Attributes:
      tensor: its name, with "{layer}" for the number of a layer; None for a constant.
      start: the first row.
      count: how many rows.
      value: the constant.
    """

    tensor: str | None
    start: int
    count: int
    value: float = 0.0


def joined(runs: Iterable[Run]) -> tuple[Run, ...]:
    """The same rows in as few runs as possible."""
    whole: list[Run] = []
    for run in runs:
        last = whole[-1] if whole else None
        if last and (last.tensor, last.value) == (run.tensor, run.value):
            start = last.start if run.tensor is None else run.start - last.count
            if start == last.start:
                whole[-1] = dataclasses.replace(last, count=last.count + run.count)
                continue
        whole.append(run)
    return tuple(whole)


class StoredArray(Protocol):
    """A parameter of one layer, or outside of the layers, in a checkpoint."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The tensors that it is read from, with the shape that each must have."""
        ...

    def read(self, files: TensorFiles, layer: int, index: Index) -> np.ndarray:
        """A slice of the parameter, in the dtype of the tensors or in float32."""
        ...


@dataclasses.dataclass(frozen=True)
class Rows:
    """A parameter whose indices along one dimension are rows of tensors.

    Attributes:
      runs: which rows stand at dimension `dim`, from its first index to its last.
      dim: of the parameter.
      transposed: the tensors are the parameter's transpose.
      stored_shapes: the tensors, with their shapes.
    """

    runs: tuple[Run, ...]
    dim: int
    transposed: bool
    stored_shapes: Mapping[str, Shape]

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """As `StoredArray`."""
        return self.stored_shapes

    def read(self, files: TensorFiles, layer: int, index: Index) -> np.ndarray:
        """As `StoredArray`."""
        total = sum(run.count for run in self.runs)
        start, stop, _ = index[self.dim].indices(total)
        others = index[: self.dim] + index[self.dim + 1 :]
        parts, at = [], 0
        for run in self.runs:
            low, high = max(start, at), min(stop, at + run.count)
            if low < high:
                parts.append((run, slice(run.start + low - at, run.start + high - at)))
            at += run.count
        arrays = [
            self._part(files, layer, run.tensor, rows, others)
            for run, rows in parts
            if run.tensor is not None
        ]
        dtype = arrays[0].dtype if arrays else np.dtype(np.float32)
        rest = self._rest(others)
        reading = iter(arrays)
        filled = [
            next(reading)
            if run.tensor is not None
            else np.full(self._shape(rows.stop - rows.start, rest), run.value, dtype)
            for run, rows in parts
        ]
        axis = 0 if not rest else self._stored_dim
        x = filled[0] if len(filled) == 1 else np.concatenate(filled, axis=axis)
        return np.ascontiguousarray(x.T) if self.transposed else x

    @property
    def _stored_dim(self) -> int:
        return 1 - self.dim if self.transposed else self.dim

    def _rest(self, others: Index) -> tuple[int, ...]:
        """The sizes of the other dimension's slice, of a parameter that has one."""
        if not others:
            return ()
        shape = next(iter(self.stored_shapes.values()))
        return (len(range(*others[0].indices(shape[1 - self._stored_dim]))),)

    def _shape(self, rows: int, rest: tuple[int, ...]) -> Shape:
        return (rows, *rest) if self._stored_dim == 0 else (*rest, rows)

    def _part(
        self, files: TensorFiles, layer: int, tensor: str, rows: slice, others: Index
    ) -> np.ndarray:
        name = at_layer(tensor, layer)
        if not others and len(self.stored_shapes[tensor]) > 1:
            # A vector that is stored as [heads, D] is small.
            return files.read(name, (slice(None), slice(None))).reshape(-1)[rows]
        index = (rows, *others) if self._stored_dim == 0 else (*others, rows)
        return files.read(name, index)


@dataclasses.dataclass(frozen=True)
class ScaledRows:
    """A matrix [inputs, outputs] times a norm's scale [inputs], which is folded into it.

    Attributes:
      matrix: without the scale.
      scale: the norm's.
    """

    matrix: Rows
    scale: Rows

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """As `StoredArray`."""
        return {**self.matrix.shapes, **self.scale.shapes}

    def read(self, files: TensorFiles, layer: int, index: Index) -> np.ndarray:
        """As `StoredArray`; float32."""
        matrix = self.matrix.read(files, layer, index).astype(np.float32)
        return matrix * self.scale.read(files, layer, index[:1]).astype(np.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class AddedRows:
    """A bias [outputs] plus a norm's bias [inputs] times the matrix [inputs, outputs] behind the norm.

    A slice of it reads the columns of the whole matrix, in chunks.

    Attributes:
      bias: that is stored; None for 0.
      matrix: behind the norm.
      norm_bias: the norm's.
    """

    bias: Rows | None
    matrix: Rows
    norm_bias: Rows

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """As `StoredArray`."""
        own = {} if self.bias is None else self.bias.shapes
        return {**own, **self.matrix.shapes, **self.norm_bias.shapes}

    def read(self, files: TensorFiles, layer: int, index: Index) -> np.ndarray:
        """As `StoredArray`; float32."""
        norm_bias = self.norm_bias.read(files, layer, (slice(None),)).astype(np.float32)
        start, stop, _ = index[0].indices(sum(run.count for run in self.matrix.runs))
        added = np.empty(stop - start, np.float32)
        for low in range(start, stop, _COLUMNS):
            columns = slice(low, min(low + _COLUMNS, stop))
            matrix = self.matrix.read(files, layer, (slice(None), columns)).astype(np.float32)
            added[low - start : columns.stop - start] = norm_bias @ matrix
        if self.bias is None:
            return added
        return added + self.bias.read(files, layer, index).astype(np.float32)


def at_layer(tensor: str, layer: int) -> str:
    """The name of a tensor in one layer."""
    return tensor.replace("{layer}", str(layer))
