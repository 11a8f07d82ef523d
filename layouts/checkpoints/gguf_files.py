"""GGUF files, the format of llama.cpp: metadata, and tensors that are dequantized as they are read."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .tensor_files import StoredTensor

# Files of a model that is split have numbers, from 1.
_PART = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")
_PLAIN = ("F16", "F32", "F64")


def gguf_paths(path: str | os.PathLike[str]) -> list[Path]:
    """The GGUF files of a model: of a file, itself and the other parts of the model; of a folder without
    a config.json, those in it. Empty where there are none.

    Raises:
      ValueError: the folder has files of several models, a part is missing, or the file is no GGUF.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(
                f"{str(path)!r} is no .gguf file; give one, or the folder of a checkpoint"
            )
        return _parts(path)
    if (path / "config.json").is_file():
        return []
    files = sorted(path.glob("*.gguf"))
    if not files:
        return []
    parts = _parts(files[0])
    if set(files) != set(parts):
        raise ValueError(
            f"{str(path)!r} has GGUF files of several models, {', '.join(x.name for x in files)}; give "
            "one of the files"
        )
    return parts


def _parts(path: Path) -> list[Path]:
    """All files of the model that a file belongs to."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    name, count = match.groups()
    parts = [path.with_name(f"{name}-{i + 1:05d}-of-{count}.gguf") for i in range(int(count))]
    for part in parts:
        if not part.is_file():
            raise ValueError(f"{path.name} is one of {int(count)} files, but there is no {part}")
    return parts


class GgufFiles:
    """The tensors of GGUF files, as `TensorFiles`.

    Args:
      paths: the files of one model.

    Attributes:
      metadata: of all files but the tokenizer's, by key.

    Raises:
      ValueError: a file is damaged, or of the other byte order.
      ImportError: gguf is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, StoredTensor] = {}
        self._stored: dict[str, Any] = {}
        for path in paths:
            self._add(path)

    def __enter__(self) -> GgufFiles:
        return self

    def __exit__(self, *raised: object) -> None:
        # The files are unmapped with the last of their arrays.
        self._stored.clear()

    @property
    def readable(self) -> Collection[str]:
        """As `TensorFiles`."""
        kinds = {x.tensor_type for x in self._stored.values()}
        return {kind.name for kind in kinds if kind.name in _PLAIN or _dequantizes(kind)}

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """As `TensorFiles`; dequantized to float32."""
        stored, shape = self._stored[name], self.tensors[name].shape
        if stored.tensor_type.name in _PLAIN:
            # A copy: the memory of the file is not lent to anyone.
            return np.array(stored.data[index])
        *outer, last = index
        start, stop, _ = last.indices(shape[-1])
        block, size = gguf_package().GGML_QUANT_SIZES[stored.tensor_type]
        low, high = start // block, -(-stop // block)
        blocks = stored.data[(*outer, slice(low * size, high * size))]
        x = gguf_package().dequantize(np.ascontiguousarray(blocks), stored.tensor_type)
        return x[..., start - low * block : stop - low * block]

    def _add(self, path: Path) -> None:
        try:
            reader = gguf_package().GGUFReader(path)
            values = {
                key: field.contents()
                for key, field in reader.fields.items()
                if not key.startswith("tokenizer.")
            }
        except (ValueError, IndexError, KeyError, OSError) as error:
            raise ValueError(
                f"{path} is no whole GGUF file ({error}); download it again"
            ) from error
        if reader.byte_order == "S":
            raise ValueError(f"{path} is of the other byte order than this machine; convert it")
        self.metadata = values | self.metadata
        for x in reader.tensors:
            if x.name in self.tensors:
                raise ValueError(
                    f"{path.name} and {self.tensors[x.name].file} both hold {x.name!r}"
                )
            shape = tuple(int(size) for size in reversed(x.shape))
            self.tensors[x.name] = StoredTensor(path.name, shape, x.tensor_type.name)
            self._stored[x.name] = x


def _dequantizes(kind: Any) -> bool:
    """Whether gguf can make numbers of this type."""
    size = gguf_package().GGML_QUANT_SIZES[kind][1]
    try:
        gguf_package().dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def gguf_package() -> Any:
    """The package, which is an extra."""
    try:
        import gguf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "reading GGUF files needs gguf: pip install collective-einsum[checkpoints]"
        ) from error
    return gguf
