"""The safetensors files of a checkpoint: headers that are checked first, and slices that are read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .tensor_files import StoredTensor


class SafetensorsFiles:
    """The tensors of a folder of safetensors, as `TensorFiles`.

    Raises:
      ValueError: no file, one that is damaged, or an index that does not fit its files.
      ImportError: safetensors is not installed.
    """

    readable = ("BF16", "F16", "F32", "F64")

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._stack = contextlib.ExitStack()
        self._open: dict[str, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        try:
            expected = self._file_of_each()
            for file in sorted(set(expected.values())) or ["model.safetensors"]:
                self._add(file)
            for name, file in expected.items():
                if name not in self.tensors or self.tensors[name].file != file:
                    raise ValueError(
                        f"model.safetensors.index.json says that {file} holds {name!r}, but it does "
                        "not; download both again"
                    )
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> SafetensorsFiles:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A slice of a tensor, in its own dtype; only its bytes are read."""
        return self._open[self.tensors[name].file].get_slice(name)[index]

    def _file_of_each(self) -> Mapping[str, str]:
        """The file of each tensor, as the index says; empty for one file without an index."""
        if (self._folder / "model.safetensors").is_file():
            return {}
        index = self._folder / "model.safetensors.index.json"
        if not index.is_file():
            other = sorted(path.name for path in self._folder.glob("*.bin"))
            hint = (
                f"; {other[0]} is in PyTorch's own format: load it with transformers and write it with "
                "save_pretrained, which makes safetensors"
                if other
                else ""
            )
            raise ValueError(
                f"{str(self._folder)!r} has neither model.safetensors nor "
                f"model.safetensors.index.json{hint}"
            )
        try:
            return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{index} has no weight_map of tensors to files: {error!r}") from error

    def _add(self, file: str) -> None:
        try:
            from safetensors import (  # pyright: ignore[reportMissingImports]
                SafetensorError,
                safe_open,
            )
        except ImportError as error:
            raise ImportError(
                "reading checkpoints needs safetensors: pip install collective-einsum[checkpoints]"
            ) from error
        path = self._folder / file
        if not path.is_file():
            raise ValueError(
                f"model.safetensors.index.json names {file}, but {str(self._folder)!r} has no such "
                "file; download it"
            )
        try:
            # JAX registers bfloat16 with numpy, so that safetensors can read it there.
            opened = self._stack.enter_context(safe_open(str(path), framework="np"))
            names = list(opened.keys())
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is no whole safetensors file ({error}); download it again"
            ) from error
        self._open[file] = opened
        for name in names:
            header = opened.get_slice(name)
            if name in self.tensors:
                raise ValueError(f"{file} and {self.tensors[name].file} both hold {name!r}")
            self.tensors[name] = StoredTensor(file, tuple(header.get_shape()), header.get_dtype())
