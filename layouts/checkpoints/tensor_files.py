"""The tensors of a checkpoint, whatever the format of its files."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, Protocol

import numpy as np


class StoredTensor(NamedTuple):
    """The header of a tensor: the file that holds it, its shape and its dtype in the format's words."""

    file: str
    shape: tuple[int, ...]
    dtype: str


class TensorFiles(Protocol):
    """The tensors of a checkpoint, open for reading; a context manager.

    Attributes:
      tensors: the header of each tensor, by name.
      readable: the dtypes that `read` makes numbers of.
    """

    tensors: dict[str, StoredTensor]

    @property
    def readable(self) -> Collection[str]: ...

    def __enter__(self) -> TensorFiles: ...

    def __exit__(self, *raised: object) -> None: ...

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor, in its own dtype or in float32; only its bytes are read."""
        ...
